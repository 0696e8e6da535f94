"""Reviews: every published layout and compression; damage is a counted skip or an error that names the file."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fastlstm.corpus import prepare as prepare_module
from fastlstm.corpus.prepare import prepare_reviews
from fastlstm.corpus.shards import Corpus, CorpusWriter, Document, Manifest
from fastlstm.corpus.splits import CountedSplits, Fractions, HashSplits, key_hash
from fastlstm.errors import InputError

LAYOUTS: dict[str, Any] = {
    "2018": lambda i: {"overall": 4.0, "asin": f"P{i}", "reviewerID": f"R{i}", "unixReviewTime": i, "reviewText": "T"},
    "2023": lambda i: {
        "rating": 4.0,
        "parent_asin": f"P{i}",
        "asin": "x",
        "user_id": f"R{i}",
        "timestamp": i,
        "text": "T",
    },
    "plain": lambda i: {"id": f"P{i}/R{i}/{i}", "stars": 4, "label": 1, "product_id": f"P{i}", "text": "T"},
}


def record(i: int, **fields: Any) -> dict[str, Any]:
    return {"review_id": f"r{i}", "asin": f"P{i // 3}", "stars": i % 5 + 1, "text": f"review {i}"} | fields


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


def run(sources: Path | list[Path], out: Path, **options: Any) -> Manifest:
    return prepare_reviews(sources if isinstance(sources, list) else [sources], out, progress=False, **options)


def documents(folder: Path) -> list[Document]:
    corpus = Corpus(folder)
    return [document for split in ("train", "valid", "test") for document in corpus.documents(split)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def skipped(folder: Path) -> list[tuple[int, str]]:
    return [
        (entry["line"], entry["reason"])
        for entry in map(json.loads, (folder / "skipped.jsonl").read_text().splitlines())
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_every_layout_and_compression(tmp_path: Path, layout: str, compression: str) -> None:
    text = " Grüße,\nline two\r\n "
    records = [LAYOUTS[layout](i) for i in range(10)]
    for r in records:
        r["reviewText" if "reviewText" in r else "text"] = text
    content = lines(records)
    content = {"": content, ".gz": gzip.compress(content), ".zst": zstandard.compress(content)}[compression]
    source = tmp_path / f"reviews.json{compression}"
    source.write_bytes(content)
    manifest = run(source, tmp_path / "out")
    found = documents(tmp_path / "out")
    assert sorted(d.id for d in found) == [f"P{i}/R{i}/{i}" for i in range(10)]
    assert {d.text for d in found} == {"\n Grüße, line two\n".encode()}
    assert {d.label for d in found} == {4.0}
    assert manifest.label_meaning == "stars 1-5"
    assert manifest.sources[0].name == source.name
    assert {split: manifest.documents(split) for split in manifest.splits} == {"train": 8, "valid": 1, "test": 1}


def test_python_dictionaries_of_2014(tmp_path: Path) -> None:
    content = (
        "{'asin': 'A', 'reviewerID': 'R', 'unixReviewTime': 1, 'overall': 2.0, 'reviewText': 'It\\'s \"so\" \\_ bad'}\n"
    )
    (tmp_path / "old.json").write_text(content)
    run(tmp_path / "old.json", tmp_path / "out")
    assert [(d.id, d.text, d.label) for d in documents(tmp_path / "out")] == [
        ("A/R/1", b'\n It\'s "so" \\_ bad\n', 2.0)
    ]


def test_a_dictionary_is_read_never_run(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{'reviewText': __import__('os').getcwd()}\n" + json.dumps(record(0)) + "\n")
    assert run(tmp_path / "old.json", tmp_path / "out").skipped == 1
    assert skipped(tmp_path / "out") == [(1, "neither JSON nor a Python dictionary")]


def test_classes_and_missing_labels(tmp_path: Path) -> None:
    imdb = [{"id": f"i{i}", "text": "t", "label": i % 2, "rating": 10} for i in range(6)] + [{"id": "u", "text": "t"}]
    (tmp_path / "imdb.jsonl").write_bytes(lines(imdb))
    assert run(tmp_path / "imdb.jsonl", tmp_path / "out").label_meaning == "sentiment 0/1"
    assert {d.id: d.label for d in documents(tmp_path / "out")} == {f"i{i}": i % 2 for i in range(6)} | {"u": None}
    (tmp_path / "stars.jsonl").write_bytes(lines([record(0)]))
    with pytest.raises(InputError, match=r"stars\.jsonl, line 1: the label is stars 1-5, but the first .* sentiment"):
        run([tmp_path / "imdb.jsonl", tmp_path / "stars.jsonl"], tmp_path / "mixed")


def test_mixed_folder_in_sorted_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines([record(3)])))
    (folder / "a.json").write_bytes(lines([record(0), record(1)]) + json.dumps(record(2)).encode())  # no last newline
    # Two frames, as `cat` of two archives leaves them.
    frames = zstandard.compress(lines([record(4)])) + zstandard.compress(lines([record(5)]))
    (folder / "sub" / "c.jsonl.zst").write_bytes(frames)
    (folder / "notes.txt").write_text("not reviews")
    manifest = run(folder, tmp_path / "out", valid_fraction=0, test_fraction=0)
    assert [d.id for d in documents(tmp_path / "out")] == [f"r{i}" for i in range(6)]
    assert [source.name for source in manifest.sources] == ["a.json", "b.jsonl.gz", "c.jsonl.zst"]


BAD = [
    (b'{"text": "cut', "not JSON"),
    (b'{"text": "caf\xe9", "stars": 5}', "not UTF-8 \\(byte 13"),
    (b'{"stars": 5, "text": 7}', "text is a int"),
    (b'{"title": "no text"}', "no reviewText and no text"),
    (b'{"text": "t", "stars": 9}', "stars is '9', expected 1 to 5"),
    (b'{"text": "t", "label": "pos"}', "label is 'pos', expected 0 or 1"),
    (b'{"text": "half \\ud83d pair"}', "lone surrogate"),
    (b"[1, 2]", "a JSON list"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_a_malformed_line_is_counted_named_and_skipped(tmp_path: Path, bad: bytes, reason: str) -> None:
    source = tmp_path / "r.jsonl"
    source.write_bytes(lines([record(0)]) + b"\n" + bad + b"\n" + lines([record(1)]))
    manifest = run(source, tmp_path / "out", max_bad_lines=1)
    assert manifest.skipped == 1
    assert sorted(d.id for d in documents(tmp_path / "out")) == ["r0", "r1"]
    [(line, found)] = skipped(tmp_path / "out")
    assert line == 3
    with pytest.raises(InputError, match=rf"r\.jsonl, line 3: .*{reason}.*more than 0 malformed") as caught:
        run(source, tmp_path / "none", max_bad_lines=0)
    assert "\n" not in str(caught.value)
    assert skipped(tmp_path / "none") == [(3, found)]
    # The limit is no part of the corpus: a higher one goes on in the same folder.
    run(source, tmp_path / "none", max_bad_lines=1)
    assert files(tmp_path / "none") == files(tmp_path / "out")


def test_empty_texts_are_left_out_and_not_malformed(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(
        lines([record(0), record(1, text=" \n "), {"overall": 5.0, "asin": "B"}, record(2, text=None)])
    )
    assert run(tmp_path / "r.json", tmp_path / "out", max_bad_lines=0).skipped == 0
    assert skipped(tmp_path / "out") == [(2, "empty text"), (3, "empty text"), (4, "empty text")]
    assert len(documents(tmp_path / "out")) == 1


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_truncated_archive_names_the_file(tmp_path: Path, compression: str) -> None:
    text = lines([record(i, text=str(key_hash(str(i)))) for i in range(2_000)])
    content = (
        gzip.compress(text) if compression == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(text)
    )
    source = tmp_path / f"cut.jsonl{compression}"
    for length in (len(content) // 2, len(content) - 3):
        source.write_bytes(content[:length])
        with pytest.raises(InputError, match=rf"cut\.jsonl\{compression}: .* archive ends too early") as caught:
            run(source, tmp_path / f"out{length}")
        assert "\n" not in str(caught.value)
    source.write_bytes(content[:100] + bytes(50) + content[150:])
    with pytest.raises(InputError, match=rf"cut\.jsonl\{compression}: damaged"):
        run(source, tmp_path / "damaged")
    source.write_bytes(text)
    with pytest.raises(InputError, match="named as an archive"):
        run(source, tmp_path / "plain")


def test_empty_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "full.jsonl").write_bytes(lines([record(0)]))
    with caplog.at_level(logging.WARNING):
        run([tmp_path / "empty.jsonl", tmp_path / "full.jsonl"], tmp_path / "out")
    assert "empty.jsonl: the file is empty" in caplog.text
    assert skipped(tmp_path / "out") == [(0, "empty file")]
    with pytest.raises(InputError, match=r"empty\.jsonl: no review found"):
        run(tmp_path / "empty.jsonl", tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "message"), [("absent.json", "no such file"), ("r.csv", "unknown ending"), ("d", "no file in this folder")]
)
def test_wrong_paths_are_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "r.csv").write_text("text\n")
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match=f"{name}: {message}"):
        run(tmp_path / name, tmp_path / "out")


def test_a_review_of_a_megabyte_in_blocks_of_any_size(tmp_path: Path) -> None:
    long = "wörd " * 250_000
    (tmp_path / "r.jsonl").write_bytes(lines([record(0), record(1, text=long), record(2)]))
    run(tmp_path / "r.jsonl", tmp_path / "out", valid_fraction=0, test_fraction=0)
    found = documents(tmp_path / "out")
    assert [d.id for d in found] == ["r0", "r1", "r2"]
    assert found[1].text == ("\n " + long.strip() + "\n").encode()


def test_lines_across_blocks_keep_their_numbers(tmp_path: Path) -> None:
    # About 3 MiB: three blocks; a bad line in the last.
    records = [record(i, text="x" * 300) for i in range(9_000)]
    (tmp_path / "r.jsonl").write_bytes(lines(records[:8_500]) + b"bad\n" + lines(records[8_500:]))
    manifest = run(tmp_path / "r.jsonl", tmp_path / "out", valid_fraction=0, test_fraction=0)
    assert manifest.documents("train") == 9_000
    assert skipped(tmp_path / "out")[0][0] == 8_501
    assert [d.id for d in documents(tmp_path / "out")] == [f"r{i}" for i in range(9_000)]


def test_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    records = [record(i, text=f"{i} " * 60) for i in range(9_000)]
    (tmp_path / "r.jsonl").write_bytes(lines(records[:4_000]) + b"bad\n" + lines(records[4_000:]))
    for workers in (1, 2):
        run(tmp_path / "r.jsonl", tmp_path / str(workers), workers=workers, reviews_per_shard=1_000, limit=8_000)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert len(documents(tmp_path / "1")) == 8_000


@pytest.mark.parametrize("small", [True, False])
def test_no_product_in_two_splits(tmp_path: Path, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr(prepare_module, "_SMALL_SOURCE_BYTES", 0)
    (tmp_path / "r.jsonl").write_bytes(lines([record(i) for i in range(600)]))
    for name in ("a", "b"):
        manifest = run(tmp_path / "r.jsonl", tmp_path / name, valid_fraction=0.1, test_fraction=0.1, workers=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    corpus = Corpus(tmp_path / "a")
    products = [{int(d.id[1:]) // 3 for d in corpus.documents(split)} for split in ("train", "valid", "test")]
    assert sum(map(len, products)) == len(set.union(*products)) == 200
    assert all(products)
    if small:
        assert manifest.documents("valid") == manifest.documents("test") == 60


def test_splits_of_few_keys() -> None:
    fractions = Fractions(0.01, 0.01)
    for keys in range(3, 8):
        counts = {key_hash(str(i)): 1000 for i in range(keys)}
        split = CountedSplits(counts, fractions)
        assert sorted(map(split, counts)) == ["test"] + ["train"] * (keys - 2) + ["valid"]
    assert CountedSplits({5: 10}, fractions)(5) == "train"
    assert sorted(map(CountedSplits({5: 1, 6: 1}, fractions), (5, 6))) == ["train", "valid"]
    shares = [HashSplits(Fractions(0.2, 0.3))(key_hash(str(i))) for i in range(2_000)]
    # Six standard deviations of 2,000 draws at the share named.
    assert abs(shares.count("valid") / 2_000 - 0.2) < 6 * (0.2 * 0.8 / 2_000) ** 0.5
    assert abs(shares.count("test") / 2_000 - 0.3) < 6 * (0.3 * 0.7 / 2_000) ** 0.5


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.jsonl").write_bytes(lines([record(i) for i in range(500)]) + b"bad\n")
    whole = run(tmp_path / "r.jsonl", tmp_path / "whole", reviews_per_shard=100)
    added = 0
    add = CorpusWriter.add_arrays

    def add_until_killed(self: CorpusWriter, split: str, **fields: Any) -> None:
        nonlocal added
        added += 1
        if added > 333:
            raise KeyboardInterrupt
        add(self, split, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(CorpusWriter, "add_arrays", add_until_killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "r.jsonl", tmp_path / "killed", reviews_per_shard=100)
    assert len(list((tmp_path / "killed").glob("train-*.bytes"))) == 3
    (tmp_path / "killed" / "train-00003.bytes.partial").write_bytes(b"stray")
    assert run(tmp_path / "r.jsonl", tmp_path / "killed", reviews_per_shard=100) == whole
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert run(tmp_path / "r.jsonl", tmp_path / "killed", reviews_per_shard=100) == whole  # already finished
    (tmp_path / "r.jsonl").write_bytes(lines([record(0)]))
    with pytest.raises(InputError, match="a finished corpus with sources_sha256"):
        run(tmp_path / "r.jsonl", tmp_path / "killed", reviews_per_shard=100)


@pytest.mark.slow
def test_real_beauty_reviews(tmp_path: Path, data_folder: Path) -> None:
    manifest = run(data_folder / "amazon" / "All_Beauty_5.json.gz", tmp_path)
    assert sum(manifest.documents(split) for split in manifest.splits) == 5_264  # 5 of the 5,269 have no text
    assert manifest.skipped == 0
    assert all(manifest.documents(split) for split in ("train", "valid", "test"))
