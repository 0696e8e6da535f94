"""WikiText: the published preprocessing, articles never divided."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fastlstm.corpus.prepare import prepare_wikitext
from fastlstm.corpus.shards import Corpus
from fastlstm.errors import InputError

ARTICLES = 40


def article(n: int) -> str:
    return (
        f" \n = Title {n} = \n \n First paragraph of {n} , with = signs . \n"
        f" \n = = Section = = \n \n Second – of {n} . \n   \n = = = Deep = = = \n Third of {n} . \n"
    )


@pytest.fixture
def text() -> str:
    return "".join(article(n) for n in range(ARTICLES))


def prepare(sources: list[Path], out: Path, **options: float) -> Corpus:
    prepare_wikitext(sources, out, progress=False, **options)  # type: ignore[arg-type]
    return Corpus(out)


def test_headings_and_blank_lines_go_and_articles_stay_whole(tmp_path: Path, text: str) -> None:
    (tmp_path / "wiki.raw").write_text(text, encoding="utf-8")
    corpus = prepare([tmp_path / "wiki.raw"], tmp_path / "out", valid_fraction=0.1, test_fraction=0.1)
    split_of: dict[str, str] = {}
    texts = []
    for split in ("train", "valid", "test"):
        for document in corpus.documents(split):
            assert document.label is None
            texts.append(document.text.decode())
            number = document.text.decode().split(" of ")[1].split()[0]
            assert split_of.setdefault(number, split) == split
    assert sorted(texts) == sorted(
        f"\n {line} \n"
        for n in range(ARTICLES)
        for line in (f"First paragraph of {n} , with = signs .", f"Second – of {n} .", f"Third of {n} .")
    )
    assert [list(split_of.values()).count(split) for split in ("train", "valid", "test")] == [32, 4, 4]


def test_the_files_own_splits(tmp_path: Path, text: str) -> None:
    (tmp_path / "wiki.train.tokens").write_text(text, encoding="utf-8")
    (tmp_path / "wiki.valid.tokens.gz").write_bytes(gzip.compress(article(100).encode()))
    (tmp_path / "wiki.test.tokens").write_text(article(200), encoding="utf-8")
    (tmp_path / "README.md").write_text("not text")
    corpus = prepare([tmp_path], tmp_path / "out", lines_per_shard=50)
    assert [corpus.manifest.documents(split) for split in ("train", "valid", "test")] == [3 * ARTICLES, 3, 3]
    assert [entry.documents for entry in corpus.shards("train")] == [50, 50, 20]
    assert next(corpus.documents("valid")).text == b"\n First paragraph of 100 , with = signs . \n"


def test_text_without_headings_is_divided_in_runs(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("".join(f"line {i}\r\n\r\n" for i in range(500)), encoding="utf-8")
    corpus = prepare([tmp_path / "plain.txt"], tmp_path / "out", valid_fraction=0.1, test_fraction=0.1)
    assert [corpus.manifest.documents(split) for split in ("train", "valid", "test")] == [400, 50, 50]
    valid = [int(document.text.split()[1]) for document in corpus.documents("valid")]
    assert valid == list(range(valid[0], valid[0] + 50))


def test_one_article_leaves_splits_empty_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "one.txt").write_text(article(0), encoding="utf-8")
    corpus = prepare([tmp_path / "one.txt"], tmp_path / "out")
    assert list(corpus.manifest.splits) == ["train"]
    assert "the valid split is empty" in caplog.text
    assert "the test split is empty" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" one\n tw\xff\n", r"bad\.txt, line 2: not UTF-8"),
        (b" = Only = \n \n", "no document was added"),
        (b"", "no document was added"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare_wikitext([tmp_path / "bad.txt"], tmp_path / "out", progress=False)


@pytest.mark.slow
def test_real_validation_text_is_what_the_reference_trained_on(tmp_path: Path, data_folder: Path) -> None:
    """The concept-neuron study's own file: the raw text; WikiText-103's tokens replace rare words by <unk>."""
    reference = (data_folder / "wikitext" / "wikitext.valid.raw.noheadings.txt").read_bytes()
    corpus = prepare(
        [data_folder / "wikitext" / "wikitext-103.valid.tokens"], tmp_path / "out", valid_fraction=0, test_fraction=0
    )
    ours = b"".join(document.text for document in corpus.documents("train"))
    expected, found = reference.split(b"\n"), ours.split(b"\n")
    assert len(found) == len(expected)
    for raw, tokens in zip(expected, found, strict=True):
        # Whitespace apart (the raw file doubles some spaces), every word is the same or replaced.
        words = list(zip(raw.split(), tokens.split(), strict=False))
        assert raw[:1] == tokens[:1]
        assert len(raw.split()) == len(tokens.split())
        assert all(a == b or b == b"<unk>" for a, b in words), (raw, tokens)
    # The reference file, prepared again, is itself.
    again = prepare(
        [data_folder / "wikitext" / "wikitext.valid.raw.noheadings.txt"],
        tmp_path / "again",
        valid_fraction=0,
        test_fraction=0,
    )
    assert b"".join(document.text for document in again.documents("train")) == reference
