"""The corpus format: what is written is read back, damage is named, and a killed run ends with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlstm.corpus.shards import Corpus, CorpusWriter, Document, Manifest, Source, Word
from fastlstm.errors import InputError

TAGSET = ("NN", ".")


def document(i: int) -> Document:
    word = f"wörd{i}".encode()
    words = (Word(2, 2 + len(word), "NN"), Word(2 + len(word), 3 + len(word), "."))
    return Document(f"ïd-{i}", b"\n " + word + b".\n", None if i % 5 == 4 else i % 2, words)


def split(i: int) -> str:
    return ("train", "train", "valid", "train", "test")[i % 5]


def writer(folder: Path, **options: object) -> CorpusWriter:
    arguments = {"kind": "lines", "preprocessing": "test-1", "tagset": TAGSET, "documents_per_shard": 4} | options
    return CorpusWriter(folder, **arguments)  # type: ignore[arg-type]


def write(folder: Path, count: int = 30, **options: object) -> Manifest:
    with writer(folder, **options) as out:
        for i in range(count):
            out.add(split(i), document(i))
        return out.finish([Source("source.txt", 3, "00")], skipped=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_documents_come_back_as_they_were_given(tmp_path: Path) -> None:
    manifest = write(tmp_path / "c")
    corpus = Corpus(tmp_path / "c")
    assert corpus.manifest == manifest
    assert manifest.skipped == 2
    for name in ("train", "valid", "test"):
        assert list(corpus.documents(name)) == [document(i) for i in range(30) if split(i) == name]
    assert [entry.documents for entry in corpus.shards("train")] == [4, 4, 4, 4, 2]
    assert manifest.documents("train") == 18


def test_shard_arrays_have_the_documented_types(tmp_path: Path) -> None:
    write(tmp_path)
    corpus = Corpus(tmp_path)
    shard = corpus.open_shard(corpus.shards("train")[1])
    assert shard.bytes.dtype == np.uint8
    assert not shard.bytes.flags.writeable
    assert shard.offset.dtype == np.int64
    assert shard.offset[-1] == len(shard.bytes)
    assert shard.label.dtype == np.float32
    assert shard.word_start is not None
    assert shard.word_start.dtype == np.int64
    assert shard.word_end is not None
    assert shard.word_tag is not None
    assert shard.word_tag.dtype == np.uint8
    assert len(shard) == len(shard.ids) == 4
    first = shard.bytes[shard.word_start[2] : shard.word_end[2]].tobytes()
    assert b"\n " + first + b".\n" == shard.bytes[shard.offset[1] : shard.offset[2]].tobytes()


def test_identity_is_of_the_text_not_of_where_it_came_from(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", settings={"note": "same text"})
    write(tmp_path / "c", count=29)
    write(tmp_path / "d", preprocessing="test-2")
    a, b, c, d = (Corpus(tmp_path / name).sha256 for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


@pytest.mark.parametrize("stop", [1, 7, 13, 29])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, stop: int) -> None:
    write(tmp_path / "whole")
    killed = tmp_path / "killed"
    out = writer(killed)
    for i in range(stop):
        out.add(split(i), document(i))
    out.__exit__(None, None, None)
    # As kill -9 leaves it: nothing closed, a partial file of garbage, a shard renamed but not yet recorded.
    (killed / "train-00004.index.npz.partial").write_bytes(b"garbage")
    (killed / "train-00004.bytes").write_bytes(b"garbage")
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("*.bytes") if path.name != "train-00004.bytes"}
    assert write(killed) == write(tmp_path / "whole")
    assert contents(killed) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_damaged_shard_of_a_killed_run_is_written_again(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    with writer(tmp_path / "killed") as out:
        for i in range(25):
            out.add(split(i), document(i))
    (tmp_path / "killed" / "train-00001.bytes").write_bytes(b"changed")
    write(tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_resume_false_begins_anew(tmp_path: Path) -> None:
    with writer(tmp_path / "killed", settings={"seed": 1}) as out:
        for i in range(25):
            out.add(split(i), document(i))
    write(tmp_path / "killed", resume=False)
    write(tmp_path / "whole")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_other_text_in_a_resumed_run_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        for i in range(25):
            out.add(split(i), document(i))
    with writer(tmp_path) as out:
        for i in range(3):
            out.add("train", document(10 + i))
        with pytest.raises(InputError, match="train-00000 of an earlier run holds other text"):
            out.add("train", document(13))


def test_other_settings_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "a", settings={"seed": 1}) as out:
        for i in range(25):
            out.add(split(i), document(i))
    with pytest.raises(InputError, match="an unfinished corpus with seed 1, now 2"):
        writer(tmp_path / "a", settings={"seed": 2})
    write(tmp_path / "b")
    with pytest.raises(InputError, match="a finished corpus with kind 'lines', now 'sst'"):
        writer(tmp_path / "b", kind="sst")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.doc").write_text("dear")
    with pytest.raises(InputError, match=r"not empty \(holds letter.doc\)"):
        writer(tmp_path / "c")
    assert (tmp_path / "c" / "letter.doc").read_text() == "dear"


@pytest.mark.parametrize(
    "bad", ["", "[]", "{}", '{"header": 1, "splits": {}}', '{"header": {}, "splits": {"train": [1]}}']
)
def test_a_damaged_unfinished_json_is_named(tmp_path: Path, bad: str) -> None:
    with writer(tmp_path) as out:
        out.add("train", document(0))
    (tmp_path / "unfinished.json").write_text(bad)
    with pytest.raises(InputError, match=r"unfinished\.json: damaged .*: delete the folder") as caught:
        writer(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "other-name").symlink_to(tmp_path / "c")
    with writer(tmp_path / "c") as out:
        for name in ("c", "other-name"):
            with pytest.raises(InputError, match=r"c: another process is writing it"):
                writer(tmp_path / name)
        out.add("train", document(0))
        out.finish()
    assert writer(tmp_path / "c").finished  # and the refused writers had left it alone
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("size", [10, 1 << 20])  # found when a shard is closed, and when a buffer is full
def test_a_full_disk_names_the_file_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def write_large(folder: Path) -> None:
        with writer(folder, tagset=None) as out:
            for i in range(10):
                out.add("valid" if i < 6 else "test", Document(str(i), b"x" * size))
            out.finish()

    real = Path.open

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        return real(Path("/dev/full") if path.name == "valid-00001.bytes.partial" else path, *arguments, **options)

    write_large(tmp_path / "whole")
    with monkeypatch.context() as context:
        context.setattr(Path, "open", full)
        with pytest.raises(OSError, match=r"No space left on device .*same command again.*valid-00001\.bytes'"):
            write_large(tmp_path / "full")
    assert sorted(path.name for path in (tmp_path / "full").glob("valid*.bytes")) == ["valid-00000.bytes"]
    write_large(tmp_path / "full")
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_the_meaning_of_labels_may_come_last(tmp_path: Path) -> None:
    for _ in range(2):
        with writer(tmp_path) as out:
            out.add("train", document(0))
            assert out.finish(label_meaning="stars 1-5").label_meaning == "stars 1-5"
    with pytest.raises(InputError, match="a finished corpus with label_meaning 'stars 1-5', now 'sentiment 0/1'"):
        writer(tmp_path, label_meaning="sentiment 0/1")


def test_a_finished_corpus_is_compared_not_rewritten(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert writer(tmp_path).finished == manifest
    assert write(tmp_path) == manifest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match=r"was not given again|holds other text"):
        write(tmp_path, count=20)
    with pytest.raises(InputError, match=r"holds other text|fewer"):
        write(tmp_path, count=31)


def test_an_unfinished_folder_is_not_a_corpus(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.add("train", document(0))
    with pytest.raises(InputError, match=r"no manifest\.json"):
        Corpus(tmp_path)
    with pytest.raises(InputError, match="found nothing"):
        Corpus(tmp_path / "absent")


def test_damage_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "train-00000.bytes"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    corpus = Corpus(tmp_path)
    with pytest.raises(InputError, match=r"train-00000\.bytes: sha256 .* the file was changed"):
        corpus.open_shard(corpus.shards("train")[0])
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=rf"train-00000\.bytes: {len(content) - 1} bytes, the manifest says"):
        Corpus(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"train-00000\.bytes: missing"):
        Corpus(tmp_path)
    path.write_bytes(content)
    index = tmp_path / "valid-00000.index.npz"
    index.write_bytes(index.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"valid-00000\.index\.npz: sha256"):
        list(Corpus(tmp_path).documents("valid"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"kind"', '"sort"', "missing or unknown fields: kind, sort"),
        ('"format_version": 1', '"format_version": 9', "version 9, expected 1"),
        ("train-00000", "../../etc/x", "not a valid name"),
        ("{", "", "not valid JSON"),
    ],
)
def test_a_bad_manifest_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    write(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        Corpus(tmp_path)
    assert str(manifest) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Document("a", b"text", words=(Word(0, 9, "NN"),)), "words are not sorted"),
        (Document("a", b"text", words=(Word(0, 3, "NN"), Word(2, 4, "NN"))), "words are not sorted"),
        (Document("a", b"text", words=(Word(2, 2, "NN"),)), "words are not sorted"),
        (Document("a", b"text", words=(Word(0, 4, "XX"),)), "tag 'XX' is not in the tagset"),
        (Document("a", b""), "the text is empty"),
        (Document("", b"text"), "expected 1 to 255 bytes"),
    ],
)
def test_a_bad_document_is_refused(tmp_path: Path, bad: Document, message: str) -> None:
    with writer(tmp_path) as out, pytest.raises(InputError, match=message):
        out.add("train", bad)


def test_words_need_a_tagset_and_documents_a_split(tmp_path: Path) -> None:
    with writer(tmp_path, tagset=None) as out:
        with pytest.raises(InputError, match="no tagset"):
            out.add("train", document(0))
        with pytest.raises(InputError, match="split 'dev'"):
            out.add("dev", Document("a", b"text"))
        with pytest.raises(InputError, match="no document was added"):
            out.finish()
