"""The store by itself: written from plain arrays, read back, refused when it is not whole."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from fastlstm.errors import InputError
from fastlstm.states import ModelAttributes, StoreAttributes, TextAttributes, open_states
from fastlstm.states import writer as writer_module
from fastlstm.states.progress import Progress, progress_path
from fastlstm.states.writer import StoreWriter, Stream

TEXT = b"\n a nice one \n dull\n"
OFFSET = (0, 13, 20)
WORDS = [(2, 3, "DT"), (4, 8, "JJ"), (9, 12, "NN"), (15, 19, "JJ")]
TAGSET = ("DT", "JJ", "NN")
ROWS, UNITS = len(TEXT), 300

ATTRIBUTES = StoreAttributes(
    format_version=1,
    model=ModelAttributes("a" * 64, 7, 512, False),
    text=TextAttributes("b" * 64, "lines", "sentiment 0/1", TAGSET, True, ("train", "test"), None),
    rows="all",
    units=tuple(range(5, 5 + UNITS)),
    state="document",
    dtype="float16",
    batch_size=2,
    versions={"fastlstm": "0", "torch": "0", "zarr": "0"},
    complete=False,
)


def arrays() -> dict[str, npt.NDArray[Any] | Stream]:
    text = np.frombuffer(TEXT, np.uint8)
    return {
        "position": Stream(ROWS, (np.arange(i, min(i + 7, ROWS)) for i in range(0, ROWS, 7))),
        "byte": text,
        "units": np.arange(5, 5 + UNITS, dtype=np.int32),
        "text": text,
        "document_offset": np.array(OFFSET),
        "row_offset": np.array(OFFSET),
        "document_label": np.array([1, np.nan], np.float32),
        "document_split": np.array([0, 2], np.uint8),
        "document_id": np.array(["één".encode(), b"b"]).view(np.uint8).reshape(2, -1),
        "word_start": np.array([word[0] for word in WORDS]),
        "word_end": np.array([word[1] for word in WORDS]),
        "word_tag": np.array([TAGSET.index(word[2]) for word in WORDS], np.uint8),
    }


def values() -> npt.NDArray[np.float16]:
    return np.random.default_rng(0).standard_normal((ROWS, UNITS)).astype(np.float16)


def begin(path: Path, attributes: StoreAttributes = ATTRIBUTES) -> StoreWriter:
    return StoreWriter(path, attributes, rows=ROWS, arrays=arrays(), block_rows=8, record_seconds=0)


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes that were synced, in order; without really syncing, which guards against power cuts only."""
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.append(os.fstat(descriptor).st_ino))
    return inodes


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    writer = begin(path)
    for start in range(0, ROWS, 3):  # never a whole block
        writer.append(values()[start : start + 3])
    writer.finish()
    return path


def test_what_is_written_is_read(store: Path) -> None:
    states = open_states(store)
    assert states.attributes == dataclasses.replace(ATTRIBUTES, complete=True)
    assert states.states.shape == (ROWS, UNITS)
    assert states.states.chunks == (8, 256)
    assert states.states.dtype == np.float16
    assert states.read(0, ROWS).dtype == np.float32
    np.testing.assert_array_equal(states.read(0, ROWS), values())
    np.testing.assert_array_equal(states.read(6, 11), values()[6:11])
    np.testing.assert_array_equal(states.column(5 + 270), values()[:, 270])
    for name, content in arrays().items():
        if name not in ("document_id", "position"):
            read = getattr(states, name)
            np.testing.assert_array_equal(read, content)
    np.testing.assert_array_equal(states.position, np.arange(ROWS))
    assert (states.rows, states.documents, states.document_ids) == (ROWS, 2, ["één", "b"])
    np.testing.assert_array_equal(states.document_of_row, [0] * 13 + [1] * 7)
    assert [states.document_text(d) for d in range(2)] == [TEXT[:13], TEXT[13:]]
    assert not progress_path(store).exists()


def test_byte_tags_are_the_words(store: Path) -> None:
    tags = open_states(store).byte_tags()
    assert tags.dtype == np.int16
    expected = np.full(len(TEXT), -1)
    for start, end, tag in WORDS:
        expected[start:end] = TAGSET.index(tag)
    np.testing.assert_array_equal(tags, expected)


def test_text_without_words(tmp_path: Path) -> None:
    attributes = dataclasses.replace(ATTRIBUTES, text=dataclasses.replace(ATTRIBUTES.text, tagset=None))
    plain = {name: content for name, content in arrays().items() if not name.startswith("word_")}
    writer = StoreWriter(tmp_path / "store", attributes, rows=ROWS, arrays=plain)
    writer.append(values())
    writer.finish()
    states = open_states(tmp_path / "store")
    assert states.word_start is states.word_end is states.word_tag is None
    with pytest.raises(InputError, match="no annotated words"):
        states.byte_tags()


def test_identity_names_the_input_and_nothing_else(store: Path, tmp_path: Path) -> None:
    identity = open_states(store).identity
    store.rename(tmp_path / "elsewhere")
    assert open_states(tmp_path / "elsewhere").identity == identity
    for change in ({"rows": "every:2"}, {"units": None}, {"model": dataclasses.replace(ATTRIBUTES.model, step=8)}):
        changed: StoreAttributes = dataclasses.replace(ATTRIBUTES, **change)  # type: ignore[arg-type]
        assert changed.identity != identity
    assert ATTRIBUTES.identity == identity


def test_nothing_about_time_or_place_is_stored(store: Path) -> None:
    for path in store.rglob("zarr.json"):
        assert str(store.parent) not in path.read_text()
    assert list(json.loads((store / "zarr.json").read_text())["attributes"]) == ["fastlstm_states"]


def test_unfinished_store_is_refused_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "store"
    begin(path).append(values()[:11])
    with pytest.raises(InputError, match="unfinished: give the same fastlstm dump command again"):
        open_states(path)
    writer = begin(path)
    assert writer.written == 8  # the whole block only
    writer.append(values()[8:])
    writer.finish()
    np.testing.assert_array_equal(open_states(path).read(0, ROWS), values())


def test_unfinished_rows_are_not_zeros(tmp_path: Path) -> None:
    begin(tmp_path / "store").append(values()[:8])
    states = zarr.open_group(tmp_path / "store", mode="r")["states"]
    assert isinstance(states, zarr.Array)
    assert np.isnan(np.asarray(states[8:])).all()


def test_counted_rows_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: list[int]) -> None:
    path = tmp_path / "store"
    unsynced_when_counted: list[set[Path]] = []
    write_progress = writer_module.write_progress

    def spy(store: Path, progress: Progress) -> None:
        if progress.ready:
            unsynced_when_counted.append({p for p in path.rglob("*") if p.stat().st_ino not in synced})
        write_progress(store, progress)

    monkeypatch.setattr(writer_module, "write_progress", spy)
    writer = begin(path)
    writer.append(values())
    assert unsynced_when_counted == [set()] * 4  # at the start, and after each of three blocks
    writer.finish()
    assert all(p.stat().st_ino in synced for p in path.rglob("*"))


def test_counting_waits(tmp_path: Path) -> None:
    path = tmp_path / "store"
    options = {"rows": ROWS, "arrays": arrays(), "block_rows": 8}
    StoreWriter(path, ATTRIBUTES, **options, record_seconds=3600).append(values()[:16])  # type: ignore[arg-type]
    (path / "states" / "c" / "1" / "0.f.partial").write_bytes(b"half")
    writer = begin(path)
    assert writer.written == 0
    assert not list(path.rglob("*.partial"))
    writer.append(values())
    writer.finish()
    np.testing.assert_array_equal(open_states(path).read(0, ROWS), values())


def test_missing_rows_cannot_be_finished(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store")
    writer.append(values()[:19])
    with pytest.raises(ValueError, match="16 of 20 rows"):
        writer.finish()
    with pytest.raises(ValueError, match="more than the 20 announced"):
        writer.append(values())


def test_an_unfinished_store_without_rows_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    begin(path)
    other = dataclasses.replace(ATTRIBUTES, dtype="float32")
    writer = begin(path, other)
    writer.append(values().astype(np.float32))
    writer.finish()
    assert open_states(path).attributes.dtype == "float32"


@pytest.mark.parametrize("finished", [False, True])
def test_another_store_is_refused_with_what_differs(tmp_path: Path, finished: bool) -> None:
    path = tmp_path / "store"
    writer = begin(path)
    writer.append(values() if finished else values()[:8])
    if finished:
        writer.finish()
    other = dataclasses.replace(ATTRIBUTES, model=dataclasses.replace(ATTRIBUTES.model, sha256="c" * 64), rows="word")
    with pytest.raises(InputError, match=r"model\.sha256 is aaaaaaaaaaaa…, now cccccccccccc…; rows is all, now word"):
        begin(path, other)


def test_versions_matter_only_while_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "store"
    newer = dataclasses.replace(ATTRIBUTES, versions={**ATTRIBUTES.versions, "torch": "9"})
    writer = begin(path)
    writer.append(values()[:8])
    with pytest.raises(InputError, match=r"versions\.torch is 0, now 9"):
        begin(path, newer)
    writer.append(values()[8:])
    writer.finish()
    assert writer_module.find_store(path, newer) == "finished"


def test_what_is_no_store_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("x")
    zarr.create_group(tmp_path / "group", zarr_format=3)
    for path in (folder, file, tmp_path / "group"):
        with pytest.raises(InputError, match="not a states store"):
            begin(path)
    assert (folder / "chapter.txt").read_text() == "years of work"
    for path, message in (
        (folder, "expected a states store"),
        (file, "found a file"),
        (tmp_path / "no", "found nothing"),
        (tmp_path / "group", "expected a states store"),
    ):
        with pytest.raises(InputError, match=message):
            open_states(path)


def test_lost_progress(tmp_path: Path) -> None:
    path = tmp_path / "store"
    begin(path).append(values()[:8])
    progress_path(path).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"store\.progress: damaged"):
        begin(path)
    progress_path(path).unlink()
    with pytest.raises(InputError, match="beside it is gone"):
        begin(path)


def test_progress_of_a_deleted_store_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "store"
    begin(path).append(values()[:8])
    path.rename(tmp_path / "away")
    assert begin(path, dataclasses.replace(ATTRIBUTES, rows="word")).written == 0


def test_full_disk_is_one_line_and_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    writer = begin(path)
    writer.append(values()[:8])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("zarr.storage._local._put", full)
        with pytest.raises(
            OSError, match=r"No space left on device .*make room and run the same command again.*store'"
        ):
            writer.append(values()[8:])
    with monkeypatch.context() as context:
        context.setattr(writer_module, "write_progress", full)
        with pytest.raises(OSError, match=r"No space left on device .*another'"):
            begin(tmp_path / "another")
    writer = begin(path)
    writer.append(values()[8:])
    writer.finish()
    np.testing.assert_array_equal(open_states(path).read(0, ROWS), values())


def test_damaged_store_is_refused(store: Path) -> None:
    chunk = store / "states" / "c" / "1" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-2])
    states = open_states(store)
    np.testing.assert_array_equal(states.read(0, 8), values()[:8])
    with pytest.raises(InputError, match="rows 8:16: a chunk is damaged"):
        states.read(8, 16)
    chunk.unlink()
    with pytest.raises(InputError, match="unit 5: a chunk is missing"):
        states.column(5)
    chunk.write_bytes(whole)
    with pytest.raises(InputError, match="unit 4 is not stored"):
        states.column(4)
    (store / "text" / "zarr.json").unlink()
    with pytest.raises(InputError, match="array text is missing"):
        open_states(store)


def test_arrays_must_fit_together(store: Path) -> None:
    group = zarr.open_group(store, mode="r+")
    group.create_array("byte", shape=(ROWS + 1,), dtype="uint8", overwrite=True)
    with pytest.raises(InputError, match=r"byte: expected \(20\) uint8, got \(21,\) uint8"):
        open_states(store)
    group.create_array("byte", data=np.zeros(ROWS, np.uint8), overwrite=True)
    group.create_array("row_offset", data=np.array([0, 13, 19]), overwrite=True)
    with pytest.raises(InputError, match="row_offset: ends at 19, expected 20"):
        open_states(store)


def test_attributes_of_another_version(store: Path) -> None:
    path = store / "zarr.json"
    metadata = json.loads(path.read_text())
    values_of = metadata["attributes"]["fastlstm_states"]
    for change, message in (({"format_version": 2}, "version 2, expected 1"), ({"rows": None}, "is missing or")):
        changed = {**values_of, **change}
        if changed["rows"] is None:
            del changed["rows"]
        path.write_text(json.dumps({**metadata, "attributes": {"fastlstm_states": changed}}))
        with pytest.raises(InputError, match=message):
            open_states(store)


@pytest.mark.parametrize("bad", ["{", "{}", "[]", "null", "\xff", '{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_metadata_is_named(store: Path, bad: str) -> None:
    array = store / "states" / "zarr.json"
    whole = array.read_bytes()
    array.write_bytes(bad.encode("latin-1"))
    with pytest.raises(InputError, match=r"states/zarr\.json: not the metadata|array states is missing") as caught:
        open_states(store)
    assert str(store) in str(caught.value)
    array.write_bytes(whole)
    (store / "zarr.json").write_bytes(bad.encode("latin-1"))
    with pytest.raises(InputError, match=r"store/zarr\.json: not the metadata|store: expected a states store"):
        open_states(store)
    with pytest.raises(InputError, match=r"store/zarr\.json: not the metadata|store: exists and is not a states"):
        begin(store)


def test_damaged_metadata_of_an_unfinished_store_is_named(tmp_path: Path) -> None:
    begin(tmp_path / "store").append(values()[:11])
    (tmp_path / "store" / "states" / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match=r"states/zarr\.json: not the metadata"):
        begin(tmp_path / "store")
