"""Reviews, lines and treebank sentences become labelled texts whose splits, labels and words are right."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import sqrt
from pathlib import Path

import nltk
import pytest
from nltk.corpus.reader import BracketParseCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from fastlstm.corpus.shards import Corpus, CorpusWriter, Document, Word
from fastlstm.corpus.splits import key_hash
from fastlstm.errors import InputError
from fastlstm_probes.concepts import label_lines, label_reviews, label_treebank, tagging
from fastlstm_probes.concepts.labelling import split_of
from fastlstm_probes.concepts.tagged_text import treebank_text

TAGS = ("DT", "NN", "VBD", ".")


def review(number: int, label: float | None) -> Document:
    text = f"\n The café {number} sank.\n".encode()
    ends = [text.index(b" ", 2), len(text) - 7, len(text) - 2, len(text) - 1]
    # "The", "café N", "sank", "."
    starts = [2, ends[0] + 1, ends[1] + 1, ends[2]]
    words = tuple(Word(s, e, tag) for s, e, tag in zip(starts, ends, TAGS, strict=True))
    assert [text[w.start : w.end].decode() for w in words] == ["The", f"café {number}", "sank", "."]
    return Document(f"review {number}", text, label, words)


def write_reviews(folder: Path, count: int = 60, label_meaning: str | None = "stars 1-5") -> Path:
    """A corpus whose held-out reviews have 1 to 5 stars or none in turn; its train split must not be read."""
    with CorpusWriter(
        folder,
        kind="grammar",
        preprocessing="test-1",
        label_meaning=label_meaning,
        tagset=TAGS,
        synthetic=True,
        documents_per_shard=7,
    ) as writer:
        for number in range(count):
            label = None if label_meaning is None or number % 6 == 0 else float(number % 6)
            writer.add("valid" if number % 2 else "test", review(number, label))
        writer.add("train", Document("never", b"\n read in training\n", None, ()))
        writer.finish()
    return folder


def all_documents(folder: Path) -> dict[str, tuple[str, Document]]:
    corpus = Corpus(folder)
    return {d.id: (split, d) for split in ("train", "valid", "test") for d in corpus.documents(split)}


def test_reviews_with_gold_tags(tmp_path: Path) -> None:
    summary = label_reviews(write_reviews(tmp_path / "in"), tmp_path / "out", tags="gold", progress=False)
    found = all_documents(tmp_path / "out")
    assert len(found) == 60
    classes = {0: None, 1: 0.0, 2: 0.0, 3: None, 4: 1.0, 5: 1.0}
    for number in range(60):
        split, document = found[f"review {number}"]
        original = review(number, None)
        assert document.text == original.text[:-1] + b" "
        assert document.words == original.words
        assert document.label == classes[number % 6]
        assert split == split_of(hashlib.sha256(document.text).hexdigest())
    assert summary.documents == {s: sum(split == s for split, _ in found.values()) for s in summary.documents}
    totals = {c: sum(counts[c] for counts in summary.labels.values()) for c in ("negative", "positive", "none")}
    assert totals == {"negative": 20, "positive": 20, "none": 20}
    assert summary.tags == dict.fromkeys(TAGS, 60)
    assert summary.words == 240
    assert summary.bytes == sum(len(d.text) for _, d in found.values())
    manifest = Corpus(tmp_path / "out").manifest
    assert (manifest.kind, manifest.synthetic, manifest.tagset) == ("grammar", True, TAGS)
    assert manifest.label_meaning == "sentiment 0/1"
    assert manifest.settings["corpus"] == Corpus(tmp_path / "in").sha256


def test_classes_pass_through_and_missing_labels_stay_missing(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "in", kind="r", preprocessing="p", label_meaning="sentiment 0/1") as writer:
        for number, label in enumerate([0.0, 1.0, None]):
            writer.add("valid", replace(review(number, label), words=None))
        writer.finish()
    label_reviews(tmp_path / "in", tmp_path / "out", progress=False)
    found = all_documents(tmp_path / "out")
    assert [found[f"review {n}"][1].label for n in range(3)] == [0.0, 1.0, None]
    assert Corpus(tmp_path / "out").manifest.tagset is None
    write_reviews(tmp_path / "none", label_meaning=None)
    summary = label_reviews(tmp_path / "none", tmp_path / "none_out", progress=False)
    assert {count for s in summary.labels.values() for c, count in s.items() if c != "none"} == {0}
    assert Corpus(tmp_path / "none_out").manifest.label_meaning is None


def test_a_part_of_the_reviews_is_a_fair_and_stable_choice(tmp_path: Path) -> None:
    source = write_reviews(tmp_path / "in")
    chosen = {}
    for documents in (10, 20):
        label_reviews(source, tmp_path / str(documents), documents=documents, progress=False)
        chosen[documents] = set(all_documents(tmp_path / str(documents)))
    assert len(chosen[10]) == 10
    assert chosen[10] < chosen[20]
    assert chosen[20] != {f"review {n}" for n in range(20)}
    label_reviews(source, tmp_path / "seed", documents=20, seed=1, progress=False)
    assert set(all_documents(tmp_path / "seed")) != chosen[20]
    label_reviews(source, tmp_path / "valid", splits=["valid"], progress=False)
    assert set(all_documents(tmp_path / "valid")) == {f"review {n}" for n in range(1, 60, 2)}


def test_equal_texts_are_taken_once_and_share_a_split(tmp_path: Path) -> None:
    for name, ids in {"in": "abcdefgh", "other": "ijkl"}.items():
        with CorpusWriter(tmp_path / name, kind="r", preprocessing="p", label_meaning="sentiment 0/1") as writer:
            for number, document_id in enumerate(ids):
                writer.add("valid", Document(document_id, f"\n text {number % 4}\n".encode(), 1.0))
            writer.finish()
    summary = label_reviews(tmp_path / "in", tmp_path / "out", progress=False)
    assert summary.duplicates == 4
    assert label_reviews(tmp_path / "in", tmp_path / "out", progress=False) == summary
    found = {document.text: split for split, document in all_documents(tmp_path / "out").values()}
    assert len(found) == sum(summary.documents.values()) == 4
    # The same texts under other names, as another labelled set would have them.
    assert label_reviews(tmp_path / "other", tmp_path / "again", progress=False).duplicates == 0
    again = {document.text: split for split, document in all_documents(tmp_path / "again").values()}
    assert again == found
    # So many texts as were asked for, whatever is left out.
    assert sum(label_reviews(tmp_path / "in", tmp_path / "3", documents=3, progress=False).documents.values()) == 3


def test_labelling_again_changes_nothing_and_other_settings_are_refused(tmp_path: Path) -> None:
    source = write_reviews(tmp_path / "in")
    first = label_reviews(source, tmp_path / "out", tags="gold", progress=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert label_reviews(source, tmp_path / "out", tags="gold", progress=False) == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    with pytest.raises(InputError, match="holds a finished corpus"):
        label_reviews(source, tmp_path / "out", documents=5, tags="gold", progress=False)


def test_split_shares_do_not_depend_on_how_the_corpus_was_split() -> None:
    # The 2 % of keys that a prepared corpus holds out all have small hashes.
    held_out = [str(n) for n in range(200_000) if key_hash(str(n)) < 0.02 * 2**64]
    n = len(held_out)
    for split, share in {"train": 0.8, "valid": 0.1, "test": 0.1}.items():
        # Five standard deviations of a binomial count.
        found = sum(split_of(key) == split for key in held_out)
        assert abs(found - n * share) < 5 * sqrt(n * share * (1 - share))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"documents": 0}, "documents: got 0, expected at least 1"),
        ({"tags": "silver"}, "tags: got 'silver', expected none, nltk or gold"),
        ({"splits": ["dev"]}, "split 'dev': expected one of train, valid, test"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        label_reviews(write_reviews(tmp_path / "in"), tmp_path / "out", **arguments)  # type: ignore[arg-type]


@pytest.mark.usefixtures("nltk_data")
def test_corpora_that_cannot_be_labelled(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "in", kind="r", preprocessing="p", label_meaning="grade") as writer:
        writer.add("valid", Document("a", b"\n caf\xe9\n", 1.0))
        writer.finish()
    with pytest.raises(InputError, match="labels mean 'grade', expected 'stars 1-5' or 'sentiment 0/1'"):
        label_reviews(tmp_path / "in", tmp_path / "out")
    with CorpusWriter(tmp_path / "in2", kind="r", preprocessing="p") as writer:
        writer.add("valid", Document("a", b"\n caf\xe9\n"))
        writer.finish()
    with pytest.raises(InputError, match="no documents in test"):
        label_reviews(tmp_path / "in2", tmp_path / "out", splits=["test"])
    with pytest.raises(InputError, match="no tagged words, so no gold tags"):
        label_reviews(tmp_path / "in2", tmp_path / "out", tags="gold")
    with pytest.raises(InputError, match="document 'a': not UTF-8 at byte 5"):
        label_reviews(tmp_path / "in2", tmp_path / "out", tags="nltk", progress=False)
    with pytest.raises(InputError, match="expected a corpus folder"):
        label_reviews(tmp_path / "nothing", tmp_path / "out")


@pytest.mark.usefixtures("nltk_data")
def test_reviews_with_nltk_tags(tmp_path: Path) -> None:
    source = write_reviews(tmp_path / "in", count=6)
    summary = label_reviews(source, tmp_path / "out", tags="nltk", progress=False)
    _, document = all_documents(tmp_path / "out")["review 4"]
    assert document.words is not None
    found = [(document.text[w.start : w.end].decode(), w.tag) for w in document.words]
    assert found == [("The", "DT"), ("café", "NN"), ("4", "CD"), ("sank", "NN"), (".", ".")]
    assert summary.words == 30


@pytest.mark.usefixtures("nltk_data")
def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_bytes(" \n = A Title = \n\n Dogs @,@ é bark . \n\n = = B = = \nNo spaces.\r\nThird line".encode())
    summary = label_lines(path, tmp_path / "out", progress=False)
    found = [d for _, d in all_documents(tmp_path / "out").values()]
    texts = {d.text for d in found}
    assert texts == {"\n Dogs @,@ é bark .  ".encode(), b"\n No spaces. ", b"\n Third line "}
    assert summary.words == sum(len(d.words or ()) for d in found) == sum(summary.tags.values())
    assert summary.tags["."] == 2
    label_lines(path, tmp_path / "two", documents=2, tags="none", progress=False)
    assert {d.text for _, d in all_documents(tmp_path / "two").values()} == texts - {b"\n Third line "}
    assert Corpus(tmp_path / "two").manifest.tagset is None


def test_lines_that_cannot_be_labelled(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    with pytest.raises(InputError, match=r"wiki\.txt: no such file"):
        label_lines(path, tmp_path / "out", tags="none")
    path.write_bytes(b"\n = Title = \n")
    with pytest.raises(InputError, match=r"wiki\.txt: no line with text in it"):
        label_lines(path, tmp_path / "out", tags="none")
    path.write_bytes(b"good\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"wiki\.txt, line 2: not UTF-8"):
        label_lines(path, tmp_path / "out", tags="none", progress=False)


def test_treebank_text_spells_what_the_treebank_escapes() -> None:
    sentence = [("-LRB-", "-LRB-"), ("*-1", "-NONE-"), ("1\\/2", "CD"), ("caf\u00e9s", "NNS"), ("-RCB-", "-RRB-")]
    text, words = treebank_text(sentence)
    assert text == "\n ( 1/2 cafés } ".encode()
    assert [(text[w.start : w.end].decode(), w.tag) for w in words] == [
        ("(", "("),
        ("1/2", "CD"),
        ("cafés", "NNS"),
        ("}", ")"),
    ]


@pytest.mark.usefixtures("nltk_data")
def test_treebank(tmp_path: Path) -> None:
    summary = label_treebank(tmp_path / "out", documents=40, progress=False)
    found = all_documents(tmp_path / "out")
    assert len(found) == 40
    _, first = found["wsj_0001-1"]
    assert first.words is not None
    assert first.text.startswith(b"\n Pierre Vinken , 61 years old , will join the board as ")
    assert [w.tag for w in first.words][:8] == ["NNP", "NNP", ",", "CD", "NNS", "JJ", ",", "MD"]
    for _, document in found.values():
        spans = [document.text[w.start : w.end] for w in document.words or ()]
        assert document.text == b"\n " + b" ".join(spans) + b" "
    assert sum(summary.tags.values()) == sum(len(d.words or ()) for _, d in found.values())
    assert "-NONE-" not in summary.tags


def test_missing_treebank_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    fresh = LazyCorpusLoader("treebank/combined", BracketParseCorpusReader, r"wsj_.*\.mrg")
    monkeypatch.setattr(nltk.corpus, "treebank", fresh)
    with pytest.raises(InputError, match=r"NLTK data: treebank not found; set NLTK_DATA") as caught:
        label_treebank(tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("nltk_data")
def test_tagger_accuracy_on_treebank(tmp_path: Path) -> None:
    label_treebank(tmp_path / "out", documents=500, progress=False)
    right = words = 0
    for _, document in all_documents(tmp_path / "out").values():
        gold = document.words or ()
        _, _, tagger = tagging.nltk_models()
        tagged = tagger.tag([document.text[w.start : w.end].decode() for w in gold])
        right += sum(word.tag == tag for word, (_, tag) in zip(gold, tagged, strict=True))
        words += len(gold)
    assert words == 11_784
    # Measured with NLTK 3.10.4: 96.7 %. A tag set or an order that is off by anything falls far below.
    assert right / words == pytest.approx(0.967, abs=0.005)
