"""Writing a states store in whole chunks, in order, each once, so that a kill at any moment costs seconds at most."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr

from fastlstm.errors import InputError
from fastlstm.files import naming, sync_folder
from fastlstm.states.progress import (
    Carry,
    Progress,
    progress_path,
    read_progress,
    remove_progress,
    write_progress,
)
from fastlstm.states.reader import open_array, read_attributes
from fastlstm.states.schema import (
    ARRAYS,
    ATTRIBUTE,
    BLOCK_ROWS,
    BLOCK_UNITS,
    BLOCK_VALUES,
    StoreAttributes,
    differences,
)

Found = Literal["nothing", "unfinished", "finished"]


@dataclass(frozen=True)
class Stream:
    """A one-dimensional array that need not fit in memory: its length and its pieces in order, of any size."""

    length: int
    pieces: Iterable[npt.NDArray[Any]]


def find_store(path: Path, wanted: StoreAttributes) -> Found:
    """What is at ``path`` already; InputError, naming what differs, if it is anything but the wanted store.

    A finished store may have been written by other versions of the libraries; an unfinished one may not, since
    the rest would have other last bits. An unfinished store of other input without a row counts as nothing.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return "nothing"
    found = read_attributes(path) if path.is_dir() else None
    finished = found is not None and found.complete
    progress = None if finished else read_progress(path)
    if found is None and progress is not None and not progress.ready:
        found = progress.attributes  # killed before the first file was whole
    if found is None:
        raise InputError(f"{path}: exists and is not a states store: choose another place")
    if finished:
        wanted = dataclasses.replace(wanted, versions=found.versions)
    what = "finished" if finished else "unfinished"
    if changed := differences(found, wanted):
        if progress is not None and progress.rows == 0:
            return "nothing"
        raise InputError(
            f"{path}: holds {'a' if finished else 'an'} {what} store of other input: {'; '.join(changed)}: "
            "choose another place, or delete it"
        )
    if not finished and progress is None:
        raise InputError(
            f"{path}: unfinished, and {progress_path(path).name} beside it is gone: delete it to begin anew"
        )
    return "finished" if finished else "unfinished"


class StoreWriter:
    """Writes the store `schema.py` describes: everything but the states at once, the states as they come.

    ``arrays``: all of `schema.ARRAYS` (the word arrays only with words) as NumPy arrays or `Stream`s; streams are
    consumed only by a new store. ``rows``: N. Where a killed writer of the same store stopped, this one goes on:
    ``written`` rows are there, and ``carry`` is what was given with the last of them. ``block_rows``: rows of a chunk
    of a new store.

    Chunks are written beside and renamed (by Zarr); every ``record_seconds`` those that are whole are synced and then
    counted in ``<store>.progress``, and what is not counted is written again after a kill. (Syncing each chunk
    costs up to 20 ms a file.) Memory: two blocks of block_rows * U values. Raises InputError if something else is
    at ``path``, OSError naming the store when the disk is full: the store then stays resumable.
    """

    def __init__(
        self,
        path: str | Path,
        attributes: StoreAttributes,
        *,
        rows: int,
        arrays: Mapping[str, npt.NDArray[Any] | Stream],
        block_rows: int = BLOCK_ROWS,
        record_seconds: float = 2.0,
    ) -> None:
        self.path = Path(path)
        self.rows = rows
        self._attributes = dataclasses.replace(attributes, complete=False)
        found = find_store(self.path, self._attributes)
        if found == "finished":
            raise InputError(f"{self.path}: is finished already")
        progress = read_progress(self.path) if found == "unfinished" else None
        self.written = 0
        self.carry: Carry | None = None
        with naming(self.path):
            if progress is None or not progress.ready:
                self._create(arrays, block_rows)
            else:
                self.written, self.carry = progress.rows, progress.carry
        group = zarr.open_group(self.path.resolve(), mode="r+", zarr_format=3)
        states = open_array(group, self.path, "states")
        self._group, self._states = group, states
        self._remove_partial_files()
        self._block = np.empty((states.chunks[0], states.shape[1]), states.dtype)
        self._held = 0
        self._record_seconds = record_seconds
        self._recorded_at = time.monotonic()
        self._unsynced: list[Path] = []

    def _create(self, arrays: Mapping[str, npt.NDArray[Any] | Stream], block_rows: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # From here on, what is at this path is ours to remove.
        self._record(ready=False)
        if self.path.exists():
            shutil.rmtree(self.path)
        group = zarr.create_group(
            self.path.resolve(), zarr_format=3, attributes={ATTRIBUTE: self._attributes.to_json()}
        )
        for name, content in arrays.items():
            _write_array(group, name, content)
        units = _length(arrays["units"])
        group.create_array(
            "states",
            shape=(self.rows, units),
            chunks=(min(block_rows, self.rows), min(BLOCK_UNITS, units)),
            dtype=self._attributes.dtype,
            fill_value=float("nan"),
            compressors=None,
            config={"write_empty_chunks": True},
        )
        for folder, _, _ in os.walk(self.path):
            _sync_files(Path(folder))
        self._record(ready=True)

    def _record(self, *, ready: bool) -> None:
        write_progress(self.path, Progress(self._attributes, ready, self.written, self.carry))

    def _remove_partial_files(self) -> None:
        """Remove files that a kill left before they were renamed: in the root, and in blocks that do not count."""
        blocks = self.path / "states" / "c"
        first = self.written // self._states.chunks[0]
        folders = [path for path in blocks.iterdir() if int(path.name) >= first] if blocks.is_dir() else []
        for folder in (self.path, *folders):
            for path in folder.glob("*.partial"):
                path.unlink()

    def append(self, values: npt.NDArray[Any], carry: Carry | None = None) -> None:
        """Take the next rows, (n, U) of the store's dtype; ``carry`` is the running state before the first of them."""
        if self.written + self._held + len(values) > self.rows:
            raise ValueError(f"values: {len(values)} rows more than the {self.rows} announced")
        while len(values):
            taken = min(len(values), len(self._block) - self._held)
            self._block[self._held : self._held + taken] = values[:taken]
            self._held += taken
            values = values[taken:]
            if self._held == len(self._block) or self.written + self._held == self.rows:
                self._write_block(carry)

    def _write_block(self, carry: Carry | None) -> None:
        start, stop = self.written, self.written + self._held
        with naming(self.path):
            self._states[start:stop] = self._block[: self._held]
            self._unsynced.append(self.path / "states" / "c" / str(start // len(self._block)))
            self.written, self.carry, self._held = stop, carry, 0
            if time.monotonic() - self._recorded_at >= self._record_seconds:
                self._sync_blocks()
                self._record(ready=True)
                self._recorded_at = time.monotonic()

    def _sync_blocks(self) -> None:
        for folder in self._unsynced:
            _sync_files(folder)
        if self._unsynced:
            sync_folder(self._unsynced[0].parent)
        self._unsynced.clear()

    def finish(self) -> None:
        """Mark the store as complete; ValueError if rows are missing."""
        if self.written != self.rows:
            raise ValueError(f"{self.path}: {self.written} of {self.rows} rows were given")
        complete = dataclasses.replace(self._attributes, complete=True)
        with naming(self.path):
            self._sync_blocks()
            self._group.update_attributes({ATTRIBUTE: complete.to_json()})
            _sync_files(self.path)
        remove_progress(self.path)


def _length(content: npt.NDArray[Any] | Stream) -> int:
    return content.length if isinstance(content, Stream) else len(content)


def _write_array(group: zarr.Group, name: str, content: npt.NDArray[Any] | Stream) -> None:
    shape = (content.length,) if isinstance(content, Stream) else content.shape
    rows_per_chunk = BLOCK_VALUES // int(np.prod(shape[1:], initial=1))
    array = group.create_array(
        name,
        shape=shape,
        chunks=(max(1, min(rows_per_chunk, shape[0])), *shape[1:]),
        dtype=ARRAYS[name][1],
        compressors=None,
        config={"write_empty_chunks": True},
    )
    pieces = content.pieces if isinstance(content, Stream) else [content]
    written = 0
    for piece in _whole_chunks(pieces, array.chunks[0]):
        array[written : written + len(piece)] = piece
        written += len(piece)
    if written != shape[0]:
        raise ValueError(f"{name}: {shape[0]} values announced, {written} came")


def _whole_chunks(pieces: Iterable[npt.NDArray[Any]], size: int) -> Iterator[npt.NDArray[Any]]:
    """The same values in pieces of whole chunks of ``size``, the rest last."""
    held: list[npt.NDArray[Any]] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            joined = np.concatenate(held)
            whole = count // size * size
            yield joined[:whole]
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


def _sync_files(folder: Path) -> None:
    """Make the files of ``folder`` and their names durable."""
    for path in folder.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    sync_folder(folder)
