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
import torch
import zarr

from fastlstm.errors import InputError
from fastlstm.states import ModelAttributes, StoreAttributes, TextAttributes, open_states
from fastlstm.states import layout as layout_module
from fastlstm.states.layout import Layout
from fastlstm.states.progress import Progress
from fastlstm.states.storage import LocalStorage
from fastlstm.states.writer import Stream, begin_store, find_store, finish_store, write_store

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


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards, of two blocks and of one with four of its eight rows."""
    monkeypatch.setattr(layout_module, "BLOCK_ROWS", 8)
    monkeypatch.setattr(layout_module, "SHARD_BLOCKS", 2)


class Begun:
    """A store that is being written, group by group; a group is a shard of 16 rows."""

    def __init__(self, path: Path, attributes: StoreAttributes = ATTRIBUTES) -> None:
        self.storage = LocalStorage(path)
        self.attributes = attributes
        self.progress = Progress(self.storage)
        self.layout = Layout.of(ROWS, UNITS, attributes.dtype)
        if find_store(self.storage, attributes) == "nothing":
            begin_store(self.storage, attributes, arrays(), self.layout)

    def write(self, shard: int) -> None:
        rows = values()[16 * shard : 16 * shard + 16]
        blocks = (self.layout.block(rows[i : i + 8]) for i in range(0, len(rows), 8))
        self.storage.write_shard(shard, self.layout, blocks)
        self.progress.mark(shard, {})

    def finish(self) -> None:
        finish_store(self.storage, self.attributes)
        self.progress.remove()


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes that were synced, in order; without really syncing, which guards against power cuts only."""
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.append(os.fstat(descriptor).st_ino))
    return inodes


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    write_store(LocalStorage(path), ATTRIBUTES, arrays(), values())
    return path


def test_what_is_written_is_read(store: Path) -> None:
    states = open_states(store)
    assert states.attributes == dataclasses.replace(ATTRIBUTES, complete=True)
    assert states.states.shape == (ROWS, UNITS)
    assert states.states.chunks == (8, 150)
    assert states.states.dtype == np.float16
    assert states.read(0, ROWS).dtype == np.float32
    np.testing.assert_array_equal(states.read(0, ROWS), values())
    np.testing.assert_array_equal(states.read(6, 11), values()[6:11])
    np.testing.assert_array_equal(states.read(15, 17), values()[15:17])
    assert states.read(30, 40).shape == states.read(7, 7).shape == (0, UNITS)
    scanned = list(states.scan(7))
    assert [part.dtype for part in scanned] == [np.float16] * 3
    np.testing.assert_array_equal(np.concatenate(scanned), values())
    np.testing.assert_array_equal(states.column(5 + 270), values()[:, 270])
    for name, content in arrays().items():
        if name not in ("document_id", "position"):
            read = getattr(states, name)
            np.testing.assert_array_equal(read, content)
    np.testing.assert_array_equal(states.position, np.arange(ROWS))
    assert (states.rows, states.documents, states.document_ids) == (ROWS, 2, ["één", "b"])
    np.testing.assert_array_equal(states.document_of_row, [0] * 13 + [1] * 7)
    assert [states.document_text(d) for d in range(2)] == [TEXT[:13], TEXT[13:]]
    assert [path.name for path in store.parent.iterdir()] == ["store"]


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
    write_store(LocalStorage(tmp_path / "store"), attributes, plain, values())
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
    Begun(path).write(0)
    with pytest.raises(InputError, match="unfinished: give the same fastlstm dump command again"):
        open_states(path)
    begun = Begun(path)
    assert begun.progress.groups() == {0}
    begun.write(1)
    begun.finish()
    np.testing.assert_array_equal(open_states(path).read(0, ROWS), values())


def test_unfinished_rows_are_not_zeros(tmp_path: Path) -> None:
    Begun(tmp_path / "store").write(0)
    states = zarr.open_group(tmp_path / "store", mode="r")["states"]
    assert isinstance(states, zarr.Array)
    assert np.isnan(np.asarray(states[16:])).all()
    np.testing.assert_array_equal(states[:16], values()[:16])


def test_what_is_marked_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: list[int]) -> None:
    path = tmp_path / "store"
    unsynced_when_marked: list[set[Path]] = []
    write = LocalStorage.write

    def spy(storage: LocalStorage, name: str, data: bytes) -> None:
        if b'"ready": false' not in data:
            unsynced_when_marked.append({p for p in path.rglob("*") if p.stat().st_ino not in synced})
        write(storage, name, data)

    monkeypatch.setattr(LocalStorage, "write", spy)
    begun = Begun(path)
    begun.write(0)
    begun.write(1)
    assert unsynced_when_marked == [set()] * 3  # at the start, and after each of two shards
    begun.finish()
    assert all(p.stat().st_ino in synced for p in path.rglob("*"))


def test_what_a_kill_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "store"
    begun = Begun(path)
    begun.write(0)
    (path / "states" / "c" / "1").mkdir()
    (path / "states" / "c" / "1" / "0.partial").write_bytes(b"half")
    (path / "zarr.json.f00.partial").write_bytes(b"half")
    begun = Begun(path)
    begun.write(1)
    begun.finish()
    assert not list(path.rglob("*.partial"))
    np.testing.assert_array_equal(open_states(path).read(0, ROWS), values())


def test_an_unfinished_store_without_rows_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    begun = Begun(path)
    other = dataclasses.replace(ATTRIBUTES, dtype="float32")
    with begun.progress.claim(0) as claimed:
        assert claimed
        with pytest.raises(InputError, match="unfinished store of other input: dtype is float16, now float32"):
            Begun(path, other)
        with Begun(path).progress.claim(0) as twice:
            assert not twice
    begun = Begun(path, other)
    begun.write(0)
    begun.write(1)
    begun.finish()
    assert open_states(path).attributes.dtype == "float32"


@pytest.mark.parametrize("finished", [False, True])
def test_another_store_is_refused_with_what_differs(tmp_path: Path, finished: bool) -> None:
    path = tmp_path / "store"
    begun = Begun(path)
    begun.write(0)
    if finished:
        begun.write(1)
        begun.finish()
    other = dataclasses.replace(ATTRIBUTES, model=dataclasses.replace(ATTRIBUTES.model, sha256="c" * 64), rows="word")
    with pytest.raises(InputError, match=r"model\.sha256 is aaaaaaaaaaaa…, now cccccccccccc…; rows is all, now word"):
        Begun(path, other)


def test_versions_matter_only_while_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "store"
    newer = dataclasses.replace(ATTRIBUTES, versions={**ATTRIBUTES.versions, "torch": "9"})
    begun = Begun(path)
    begun.write(0)
    with pytest.raises(InputError, match=r"versions\.torch is 0, now 9"):
        Begun(path, newer)
    begun.write(1)
    begun.finish()
    assert find_store(LocalStorage(path), newer) == "finished"


def test_what_is_no_store_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("x")
    zarr.create_group(tmp_path / "group", zarr_format=3)
    for path in (folder, file, tmp_path / "group"):
        with pytest.raises(InputError, match="not a states store"):
            Begun(path)
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
    path, progress = tmp_path / "store", tmp_path / "store.progress"
    Begun(path).write(0)
    (progress / "begun.json").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"store\.progress/begun\.json: damaged"):
        Begun(path)
    (progress / "begun.json").unlink()
    with pytest.raises(InputError, match="beside it is gone"):
        Begun(path)


def test_damaged_mark_of_a_group(tmp_path: Path) -> None:
    begun = Begun(tmp_path / "store")
    begun.progress.mark(3, {"h": torch.ones(1, 1, 2)})
    assert begun.progress.left_by(3)["h"].tolist() == [[[1, 1]]]
    (tmp_path / "store.progress" / "group-00000003").write_bytes(b"damaged")
    for group in (3, 4):
        with pytest.raises(InputError, match=f"group-0000000{group}: damaged .*delete it, and the same command makes"):
            begun.progress.left_by(group)


def test_progress_of_a_deleted_store_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Begun(path).write(0)
    path.rename(tmp_path / "away")
    assert Begun(path, dataclasses.replace(ATTRIBUTES, rows="word")).progress.groups() == set()


def test_full_disk_is_one_line_and_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    begun = Begun(path)
    begun.write(0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for what in ("os.writev", "os.fsync", "pathlib.Path.mkdir"):
        with monkeypatch.context() as context:
            context.setattr(what, full)
            with pytest.raises(
                OSError, match=r"No space left on device .*make room and run the same command again.*store'"
            ):
                begun.write(1)
        assert not list(path.rglob("*.partial"))
    with monkeypatch.context() as context:
        context.setattr("zarr.storage._local._put", full)
        with pytest.raises(OSError, match=r"No space left on device .*another'"):
            Begun(tmp_path / "another")
    begun = Begun(path)
    assert begun.progress.groups() == {0}
    begun.write(1)
    begun.finish()
    np.testing.assert_array_equal(open_states(path).read(0, ROWS), values())


def test_a_shard_is_written_whole_though_the_system_takes_little_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux takes 2 GB at most of a single write."""
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda descriptor, parts: writev(descriptor, [memoryview(parts[0])[:999]]))
    write_store(LocalStorage(tmp_path / "store"), ATTRIBUTES, arrays(), values())
    np.testing.assert_array_equal(open_states(tmp_path / "store").read(0, ROWS), values())


def test_damaged_store_is_refused(store: Path) -> None:
    shard = store / "states" / "c" / "1" / "0"
    whole = shard.read_bytes()
    states = open_states(store)
    for damaged, message in (
        (whole[:-2], "its index is not whole"),
        (whole[2:], "its index does not fit"),
        (whole[-5:], "its index is not whole"),
        (b"", "a chunk is damaged"),
        (whole[:-1] + b"x", "its index is not whole"),
    ):
        shard.write_bytes(damaged)
        np.testing.assert_array_equal(states.read(0, 16), values()[:16])
        with pytest.raises(InputError, match=rf"a chunk is damaged \(states/c/1/0: .*{message}|{message}"):
            states.read(15, 17)
    shard.unlink()
    with pytest.raises(InputError, match="a chunk is missing"):
        states.column(5)
    shard.write_bytes(whole)
    with pytest.raises(InputError, match="unit 4 is not stored"):
        states.column(4)
    (store / "text" / "zarr.json").unlink()
    with pytest.raises(InputError, match="array text is missing"):
        open_states(store)


@pytest.mark.parametrize("place", [0, 8 * 150 * 2, -1])
def test_a_changed_bit_fails_its_checksum(store: Path, place: int) -> None:
    """In a chunk, in a chunk's checksum, in the index's; read by Zarr itself."""
    shard = store / "states" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[place] ^= 4
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(store, mode="r")["states"][:]  # type: ignore[index]


def test_zarr_and_tensorstore_read_the_same(store: Path) -> None:
    states = zarr.open_group(store, mode="r")["states"]
    assert isinstance(states, zarr.Array)
    np.testing.assert_array_equal(states[:], values())
    np.testing.assert_array_equal(states[3:18, 100:200], values()[3:18, 100:200])
    tensorstore = pytest.importorskip("tensorstore", reason="needs tensorstore, another implementation of Zarr")
    for name, expected in (
        ("states", values()),
        ("position", np.arange(ROWS)),
        ("byte", np.frombuffer(TEXT, np.uint8)),
    ):
        opened = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store / name}/"}}, read=True
        ).result()
        np.testing.assert_array_equal(opened.read().result(), expected)


def test_a_store_that_another_program_wrote_anew_is_read(store: Path, tmp_path: Path) -> None:
    """Compressed, in other chunks, without shards: still the same array to Zarr."""
    group = zarr.open_group(store, mode="r+")
    group.create_array("states", data=values(), chunks=(7, 100), fill_value=float("nan"), overwrite=True)
    states = open_states(store)
    np.testing.assert_array_equal(states.read(3, 18), values()[3:18])
    np.testing.assert_array_equal(states.column(5 + 270), values()[:, 270])
    np.testing.assert_array_equal(np.concatenate(list(states.scan(6))), values())
    chunk = next(path for path in (store / "states" / "c").rglob("*") if path.is_file())
    chunk.unlink()
    with pytest.raises(InputError, match="a chunk is missing"):
        states.read(0, ROWS)
    chunk.write_bytes(b"damaged")
    with pytest.raises((InputError, RuntimeError)):
        states.read(0, ROWS)


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
        Begun(store)


def test_damaged_metadata_of_an_unfinished_store_is_named(tmp_path: Path) -> None:
    Begun(tmp_path / "store").write(0)
    (tmp_path / "store" / "states" / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match="unfinished"):
        open_states(tmp_path / "store")
