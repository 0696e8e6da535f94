"""The grammar corpus: the planted truth is exact, balanced, and the same for any size and number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastlstm.corpus import grammar
from fastlstm.corpus.prepare import prepare_grammar
from fastlstm.corpus.shards import Corpus
from fastlstm.errors import InputError

COUNT = 3_000


@pytest.fixture(scope="module")
def block() -> grammar.GrammarBlock:
    return grammar.generate(7, 0, COUNT)


def words_of(block: grammar.GrammarBlock) -> list[tuple[str, str]]:
    tagset = grammar.tagset()
    return [
        (block.text[start:end].decode("ascii"), tagset[tag])
        for start, end, tag in zip(
            block.word_start.tolist(), block.word_end.tolist(), block.word_tag.tolist(), strict=True
        )
    ]


def test_a_review_depends_on_seed_and_number_alone(block: grammar.GrammarBlock) -> None:
    part = grammar.generate(7, 1_234, 5)
    start, stop = block.offset[1_234], block.offset[1_239]
    assert part.text == block.text[start:stop]
    np.testing.assert_array_equal(part.label, block.label[1_234:1_239])
    own = slice(block.word_offset[1_234], block.word_offset[1_239])
    np.testing.assert_array_equal(part.word_start, block.word_start[own] - start)
    np.testing.assert_array_equal(part.word_tag, block.word_tag[own])
    assert grammar.generate(8, 1_234, 5).text != part.text


def test_words_cover_the_text_but_for_its_spaces(block: grammar.GrammarBlock) -> None:
    text = np.frombuffer(block.text, np.uint8)
    covered = np.zeros(len(text), np.int64)
    np.add.at(covered, block.word_start, 1)
    np.add.at(covered[: len(text)], block.word_end, -1)
    covered = np.cumsum(covered)
    assert set(covered.tolist()) == {0, 1}
    np.testing.assert_array_equal(covered == 0, np.isin(text, np.frombuffer(b" \n", np.uint8)))


def test_reviews_look_as_the_model_reads_them(block: grammar.GrammarBlock) -> None:
    for start, stop in zip(block.offset[:-1].tolist(), block.offset[1:].tolist(), strict=True):
        review = block.text[start:stop]
        assert review.startswith(b"\n ")
        assert review[2:3].isupper()
        assert review.endswith((b".\n", b"!\n"))
        assert review.count(b"\n") == 2
        assert b"  " not in review
        assert b" a e" not in review
    assert b"( " not in block.text
    assert b" )" not in block.text
    assert b"PRODUCT" not in block.text
    assert b"BRAND" not in block.text


def test_tags_are_those_of_penn_and_not_a_word_list(block: grammar.GrammarBlock) -> None:
    tags_of: dict[str, set[str]] = {}
    for word, tag in words_of(block):
        tags_of.setdefault(word.lower(), set()).add(tag)
        assert (tag == ".") == (word in ".!")
        assert tag != "MD" or word in {"can", "will", "would", "may"}
        assert tag != "NNP" or word[0].isupper()
    expected = "DT NN NNS NNP JJ JJR JJS RB VB VBD VBZ VBP VBG VBN MD PRP PRP$ IN TO CC CD . , ( ) WDT EX RBR"
    assert set(expected.split()) - set().union(*tags_of.values()) == set()
    assert set().union(*tags_of.values()) == set(grammar.tagset())
    assert tags_of["works"] == {"NNS", "VBZ"}
    assert tags_of["that"] == {"IN", "WDT"}
    assert tags_of["use"] == {"VB", "VBP"}
    assert tags_of["one"] == {"CD", "NN"}
    assert tags_of["better"] == {"JJR", "RBR"}
    ambiguous = [word for word, tags in tags_of.items() if len(tags) > 1]
    assert len(ambiguous) > 6, ambiguous


def test_labels_are_balanced_and_the_text_shows_them(block: grammar.GrammarBlock) -> None:
    # Six standard deviations of a fair coin thrown COUNT times.
    assert abs(block.label.mean() - 0.5) < 6 * 0.5 / COUNT**0.5
    texts = [block.text[a:b] for a, b in zip(block.offset[:-1].tolist(), block.offset[1:].tolist(), strict=True)]
    for phrase, label in ((b"would recommend", 1), (b"would return", 0), (b" best ", 1), (b"I hate", 0)):
        found = {float(block.label[i]) for i, text in enumerate(texts) if phrase in text}
        assert found == {label}, phrase
    for neutral in (b"uses it", b"needs one charge", b"I use it"):
        assert {float(block.label[i]) for i, text in enumerate(texts) if neutral in text} == {0, 1}


def test_prepared_corpus_holds_the_truth(tmp_path: Path, block: grammar.GrammarBlock) -> None:
    manifest = prepare_grammar(
        tmp_path, reviews=300, seed=7, valid_fraction=0.1, test_fraction=0.2, reviews_per_shard=100, progress=False
    )
    assert manifest.synthetic
    assert manifest.label_meaning == "sentiment 0/1"
    assert {split: manifest.documents(split) for split in manifest.splits} == {"train": 210, "valid": 30, "test": 60}
    corpus = Corpus(tmp_path)
    seen = set()
    for split in ("train", "valid", "test"):
        for document in corpus.documents(split):
            r = int(document.id.rsplit("-", 1)[1])
            seen.add(r)
            assert document.text == block.text[block.offset[r] : block.offset[r + 1]]
            assert document.label == block.label[r]
            assert document.words is not None
            own = range(block.word_offset[r], block.word_offset[r + 1])
            assert [(w.start, w.tag) for w in document.words] == [
                (block.word_start[i] - block.offset[r], grammar.tagset()[block.word_tag[i]]) for i in own
            ]
    assert seen == set(range(300))


def test_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    for workers in (1, 2):
        prepare_grammar(tmp_path / str(workers), reviews=2_500, workers=workers, progress=False)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "12")
    assert one == two


@pytest.mark.parametrize(("name", "value"), [("reviews", 0), ("seed", -1), ("valid_fraction", 1.0), ("workers", 0)])
def test_bad_arguments_are_named(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        prepare_grammar(tmp_path, progress=False, **{name: value})  # type: ignore[arg-type]
