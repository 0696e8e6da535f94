"""Reviews: every published layout and compression; damage is a counted skip or an error that names the file."""

from __future__ import annotations

import gzip
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from fastlstm.corpus import duplicates as duplicates_module
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
    for i, r in enumerate(records):
        r["reviewText" if "reviewText" in r else "text"] = text + str(i)
    content = lines(records)
    content = {"": content, ".gz": gzip.compress(content), ".zst": zstandard.compress(content)}[compression]
    source = tmp_path / f"reviews.json{compression}"
    source.write_bytes(content)
    manifest = run(source, tmp_path / "out")
    found = documents(tmp_path / "out")
    assert sorted(d.id for d in found) == [f"P{i}/R{i}/{i}" for i in range(10)]
    assert {d.text for d in found} == {f"\n Grüße, line two\r  {i}\n".encode() for i in range(10)}
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
    imdb = [{"id": f"i{i}", "text": f"t{i}", "label": i % 2, "rating": 10} for i in range(6)] + [
        {"id": "u", "text": "t"}
    ]
    (tmp_path / "imdb.jsonl").write_bytes(lines(imdb))
    assert run(tmp_path / "imdb.jsonl", tmp_path / "out").label_meaning == "sentiment 0/1"
    assert {d.id: d.label for d in documents(tmp_path / "out")} == {f"i{i}": i % 2 for i in range(6)} | {"u": None}
    (tmp_path / "stars.jsonl").write_bytes(lines([record(0, text="late")]))
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
    records = [record(i, text=f"{i} " + "x" * 300) for i in range(9_000)]
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


@pytest.mark.parametrize("small", [True, False])
def test_no_text_twice(tmp_path: Path, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not small:
        monkeypatch.setattr(prepare_module, "_SMALL_SOURCE_BYTES", 0)
    monkeypatch.setattr(duplicates_module, "_RECENT", 7)
    # 600 reviews of 200 products with 150 texts, spelt with other white space; other stars make no other text.
    records = [record(i, text=f"text {i * i % 1_000 % 150}" + " " * (i % 2)) for i in range(600)]
    distinct = {r["text"].strip() for r in records}
    (tmp_path / "r.jsonl").write_bytes(lines(records))
    manifest = run(tmp_path / "r.jsonl", tmp_path / "out", valid_fraction=0.2, test_fraction=0.2, workers=1)
    found = documents(tmp_path / "out")
    assert sorted(d.text.decode().strip() for d in found) == sorted(distinct)
    assert manifest.duplicates == 600 - len(distinct) > 400
    first = {text: next(r["review_id"] for r in records if r["text"].strip() == text) for text in distinct}
    assert {d.text.decode().strip(): d.id for d in found} == first
    assert all(manifest.documents(split) for split in ("train", "valid", "test"))


def test_a_review_without_product_and_id_is_named_by_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": "same"}, {"text": "other"}]))
    (tmp_path / "b.jsonl").write_bytes(lines([{"text": "third"}, {"text": "same "}]))
    assert run([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out").duplicates == 1
    ids = {d.text: d.id for d in documents(tmp_path / "out")}
    assert len(set(ids.values())) == len(ids) == 3
    run(tmp_path / "b.jsonl", tmp_path / "b")
    assert {d.text: d.id for d in documents(tmp_path / "b")}.items() <= ids.items()


def test_seen_texts_against_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_module, "_RECENT", 50)
    seen, truth = duplicates_module.SeenTexts(), set()
    for i in range(2_000):
        digest = duplicates_module.text_digest(str(i * i % 997).encode())
        assert seen.first(digest) == (digest not in truth)
        truth.add(digest)
    assert min(truth) < 0 < max(truth)


def test_labels_may_begin_after_the_first_block(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"id": f"u{i}", "text": f"{i} " + "x" * 1_000} for i in range(1_500)]
    (tmp_path / "late.jsonl").write_bytes(lines([*records, record(0)]))
    assert run(tmp_path / "late.jsonl", tmp_path / "late").label_meaning == "stars 1-5"
    assert {d.label for d in documents(tmp_path / "late")} == {None, 1.0}
    (tmp_path / "none.jsonl").write_bytes(lines(records[:3]))
    assert run(tmp_path / "none.jsonl", tmp_path / "none").label_meaning is None
    (tmp_path / "mixed.jsonl").write_bytes(lines([*records, record(0), {"text": "t", "label": 1}]))
    with pytest.raises(InputError, match=r"mixed\.jsonl, line 1502: the label is sentiment 0/1, but the first"):
        run(tmp_path / "mixed.jsonl", tmp_path / "mixed")


def test_a_corpus_inside_the_sources_is_no_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "r.jsonl").write_bytes(lines([record(i) for i in range(30)]) + b"bad\n")
    for name in ("corpus", "corpus", "corpus2", "corpus2"):  # a second time: finished already
        manifest = run(folder, folder / name)
        assert [source.name for source in manifest.sources] == ["r.jsonl"]
    assert (folder / "corpus" / "skipped.jsonl").exists()
    assert "corpus: not read, it is a corpus (holds manifest.json)" in caplog.text
    (folder / "corpus" / "manifest.json").rename(folder / "corpus" / "unfinished.json")
    (folder / "corpus2" / "manifest.json").rename(folder / "corpus2" / "unfinished.json")
    assert len(run(folder, folder / "corpus3").sources) == 1
    with pytest.raises(InputError, match=r"corpus3: no file in this folder, outside corpora, ends in"):
        run(folder / "corpus3", tmp_path / "out")


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


# Runs in a process of its own: prepare_reviews in forked children, each killed with SIGKILL just before its n-th
# file operation below the corpus, until one survives. Prints how often it was killed, and with how many shards.
KILLER = """
import json, os, random, signal, sys
from pathlib import Path
from fastlstm.corpus.prepare import prepare_reviews

os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote; a power cut does
source, out = Path(sys.argv[1]), Path(sys.argv[2])

def attempt(operations):
    child = os.fork()
    if child == 0:
        left = operations
        def count(event, arguments):
            nonlocal left
            if event in ("open", "os.rename", "os.mkdir", "os.remove") and str(arguments[0]).startswith(str(out)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        prepare_reviews([source], out, reviews_per_shard=40, max_bad_lines=1, progress=False)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

draw, shards = random.Random(0), []
for _ in range(60):
    status = attempt(draw.randint(2, 12) + 12 * len(shards))
    if status == 0:
        break
    assert status == -signal.SIGKILL, status
    shards.append(len(list(out.glob("*.bytes"))))
print(json.dumps(shards))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_with_sigkill_again_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(lines([record(i, text=f"text {i % 450}") for i in range(500)]) + b"bad\n")
    whole = run(tmp_path / "r.jsonl", tmp_path / "whole", reviews_per_shard=40)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path / "r.jsonl", tmp_path / "killed"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shards = json.loads(done.stdout)
    assert len(shards) >= 4
    assert 0 < max(shards) <= whole.documents("train") // 40 + 3
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.slow
def test_real_beauty_reviews(tmp_path: Path, data_folder: Path) -> None:
    manifest = run(data_folder / "amazon" / "All_Beauty_5.json.gz", tmp_path)
    assert manifest.duplicates == 3_901  # of 5,269, and 5 have no text
    found = documents(tmp_path)
    assert len(found) == len({document.text for document in found}) == 1_363
    assert manifest.skipped == 0
    assert all(manifest.documents(split) for split in ("train", "valid", "test"))
