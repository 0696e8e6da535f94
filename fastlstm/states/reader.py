"""Reading a finished states store: all that probes need to know about a model."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from fastlstm.errors import InputError
from fastlstm.states.schema import ARRAYS, ATTRIBUTE, BLOCK_ROWS, STORED_DTYPES, WORD_ARRAYS, StoreAttributes
from fastlstm.states.shard_reader import ShardReader, layout_of
from fastlstm.states.storage import LocalStorage, Storage, storage_at

SCAN_THREADS = min(4, os.cpu_count() or 1)

# What Zarr raises for a zarr.json that is not what it expects, down to a list where an object should be.
METADATA_ERRORS = (ValueError, TypeError, KeyError, AttributeError)


def read_attributes(store: Storage) -> StoreAttributes | None:
    """The attributes of a store, finished or not; None if there is no states store."""
    try:
        group = zarr.open_group(store.zarr(read_only=True), mode="r", zarr_format=3)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except METADATA_ERRORS as error:
        raise InputError(f"{store}/zarr.json: not the metadata of a Zarr v3 group ({error})") from error
    values = group.attrs.asdict().get(ATTRIBUTE)
    return None if values is None else StoreAttributes.from_json(values, str(store))


def open_states(path: str | Path) -> States:
    """Open a finished store, a folder or a URL of an object store.

    InputError naming it if it is missing, not a states store, unfinished or damaged.
    """
    store = storage_at(path)
    if store.is_empty() and not (isinstance(store, LocalStorage) and store.path.exists()):
        raise InputError(f"{store}: expected a states store, found nothing")
    if store.is_file():
        raise InputError(f"{store}: expected a states store, found a file")
    attributes = read_attributes(store)
    if attributes is None:
        raise InputError(f"{store}: expected a states store (written by fastlstm dump)")
    if not attributes.complete:
        raise InputError(f"{store}: unfinished: give the same fastlstm dump command again, it goes on")
    if "states" not in attributes.keeps:
        raise InputError(f"{store}: holds statistics alone, which fastlstm.states.open_statistics reads")
    return States(store, attributes)


def open_array(group: zarr.Group, path: Path | str, name: str) -> zarr.Array[Any]:
    """The array ``name`` of the store at ``path``; InputError naming it if it is missing or its metadata damaged."""
    try:
        array = group.get(name)
    except METADATA_ERRORS as error:
        raise InputError(f"{path}/{name}/zarr.json: not the metadata of a Zarr v3 array ({error})") from error
    if not isinstance(array, zarr.Array):
        raise InputError(f"{path}: array {name} is missing: the store is damaged")
    return array


class States:
    """A finished store (arrays and attributes: `schema.py`), read lazily; arrays but ``states`` are kept once read.

    rows, documents: how many. states: the Zarr array itself, (N, U) float16 or float32.
    """

    def __init__(self, store: Storage, attributes: StoreAttributes) -> None:
        path: Path | str = store.path if isinstance(store, LocalStorage) else str(store)
        self.path = path
        self.attributes = attributes
        self._group = zarr.open_group(store.zarr(read_only=True), mode="r", zarr_format=3)
        self.states = self._array("states")
        if len(self.states.shape) != 2 or str(self.states.dtype) not in STORED_DTYPES:
            raise InputError(f"{path}: states: expected (N, U) {' or '.join(STORED_DTYPES)}, got {_kind(self.states)}")
        layout = layout_of(self.states)
        self._shards = ShardReader(store.path, layout) if layout and isinstance(store, LocalStorage) else None
        self.has_words = attributes.text.tagset is not None
        self._check_shapes()
        self.rows: int = self.states.shape[0]
        self.documents: int = self._array("document_label").shape[0]
        for name, total in (("row_offset", self.rows), ("document_offset", self._array("text").shape[0])):
            last = int(np.asarray(self._array(name)[-1:])[0])
            if last != total:
                raise InputError(f"{path}: {name}: ends at {last}, expected {total}: the store is damaged")

    def _array(self, name: str) -> zarr.Array[Any]:
        return open_array(self._group, self.path, name)

    def _check_shapes(self) -> None:
        sizes = dict(zip("NU", self.states.shape, strict=True))
        for name, (dimensions, dtype) in ARRAYS.items():
            if name in WORD_ARRAYS and not self.has_words:
                continue
            array = self._array(name)
            shape = array.shape
            if str(array.dtype) == dtype and len(shape) == len(dimensions):
                found = tuple(size - 1 if d == "D+1" else size for d, size in zip(dimensions, shape, strict=True))
                names = tuple(d.removesuffix("+1") for d in dimensions)
                if all(sizes.setdefault(d, size) == size for d, size in zip(names, found, strict=True)):
                    continue
            known = {**sizes, "D+1": sizes.get("D", 0) + 1}
            expected = ", ".join(str(known.get(d, d)) for d in dimensions)
            raise InputError(
                f"{self.path}: {name}: expected ({expected}) {dtype}, got {_kind(array)}: the store is damaged"
            )

    @property
    def identity(self) -> str:
        """sha256 of the attributes: names the store in results."""
        return self.attributes.identity

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows start:stop (cut at N), float32 (rows, U); InputError if a chunk is damaged or missing."""
        return self._rows(start, stop, np.dtype(np.float32))

    def scan(self, rows: int = BLOCK_ROWS) -> Iterator[npt.NDArray[Any]]:
        """All rows in order, ``rows`` at a time, in the stored dtype (rows, U); errors as of `read`.

        Up to 4 threads read as many blocks ahead.
        """
        pool = ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="scan")
        reading: deque[Future[npt.NDArray[Any]]] = deque()
        try:
            for start in range(0, self.rows, rows):
                reading.append(pool.submit(self._rows, start, start + rows, self.states.dtype))
                if len(reading) > SCAN_THREADS:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def column(self, unit: int) -> npt.NDArray[np.float32]:
        """The cell ``unit`` over all rows, float32 (N,); InputError if the store does not hold that cell."""
        columns = np.flatnonzero(self.units == unit)
        if len(columns) == 0:
            raise InputError(f"{self.path}: unit {unit} is not stored (it holds {len(self.units)} units)")
        dtype = np.dtype(np.float32)
        if self._shards is not None:
            return self._shards.column(int(columns[0]), dtype)
        return self._decoded((slice(None), int(columns[0])), dtype, f"unit {unit}")

    def _rows(self, start: int, stop: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        start, stop, _ = slice(start, stop).indices(self.rows)
        if self._shards is not None:
            return self._shards.read(start, max(start, stop), dtype)
        return self._decoded((slice(start, stop), slice(None)), dtype, f"rows {start}:{stop}")

    def _decoded(self, selection: tuple[slice, slice | int], dtype: np.dtype[Any], what: str) -> npt.NDArray[Any]:
        """Through Zarr: stores that are not local, or that another program wrote anew in its own layout."""
        try:
            values = np.asarray(self.states[selection], dtype=dtype)
        except ValueError as error:
            raise InputError(f"{self.path}: states, {what}: a chunk is damaged ({error})") from error
        # A missing chunk reads as the fill value, NaN; what was written is finite.
        if values.size and np.isnan(values.min()):
            raise InputError(f"{self.path}: states, {what}: a chunk is missing")
        return values

    def _read(self, name: str) -> Any:
        try:
            return np.asarray(self._array(name)[...])
        except ValueError as error:
            raise InputError(f"{self.path}: {name}: a chunk is damaged ({error})") from error

    @cached_property
    def position(self) -> npt.NDArray[np.int64]:
        """(N,): index into `text` of each row's byte."""
        return self._read("position")  # type: ignore[no-any-return]

    @cached_property
    def byte(self) -> npt.NDArray[np.uint8]:
        """(N,): each row's byte."""
        return self._read("byte")  # type: ignore[no-any-return]

    @cached_property
    def units(self) -> npt.NDArray[np.int32]:
        """(U,): which cell each column is."""
        return self._read("units")  # type: ignore[no-any-return]

    @cached_property
    def text(self) -> npt.NDArray[np.uint8]:
        """(M,): all documents, one after another."""
        return self._read("text")  # type: ignore[no-any-return]

    @cached_property
    def document_offset(self) -> npt.NDArray[np.int64]:
        """(D+1,): where each document begins in `text`."""
        return self._read("document_offset")  # type: ignore[no-any-return]

    @cached_property
    def row_offset(self) -> npt.NDArray[np.int64]:
        """(D+1,): where each document's rows begin."""
        return self._read("row_offset")  # type: ignore[no-any-return]

    @cached_property
    def document_label(self) -> npt.NDArray[np.float32]:
        """(D,): NaN where a document has none; their meaning is attributes.text.label_meaning."""
        return self._read("document_label")  # type: ignore[no-any-return]

    @cached_property
    def document_split(self) -> npt.NDArray[np.uint8]:
        """(D,): 0 train, 1 valid, 2 test."""
        return self._read("document_split")  # type: ignore[no-any-return]

    @cached_property
    def document_ids(self) -> list[str]:
        """One per document."""
        return [bytes(row).rstrip(b"\0").decode("utf-8") for row in self._read("document_id")]

    @cached_property
    def document_of_row(self) -> npt.NDArray[np.int64]:
        """(N,): the document of each row."""
        return np.repeat(np.arange(self.documents), np.diff(self.row_offset))

    @cached_property
    def word_start(self) -> npt.NDArray[np.int64] | None:
        """(W,): index into `text`; None without annotated words."""
        return self._read("word_start") if self.has_words else None

    @cached_property
    def word_end(self) -> npt.NDArray[np.int64] | None:
        """(W,): half-open; None without annotated words."""
        return self._read("word_end") if self.has_words else None

    @cached_property
    def word_tag(self) -> npt.NDArray[np.uint8] | None:
        """(W,): index into attributes.text.tagset; None without annotated words."""
        return self._read("word_tag") if self.has_words else None

    def document_text(self, document: int) -> bytes:
        """The bytes of a document."""
        return self.text[self.document_offset[document] : self.document_offset[document + 1]].tobytes()

    def byte_tags(self) -> npt.NDArray[np.int16]:
        """(M,): index into the tag set of the word that covers each byte of the text, -1 where none does."""
        start, end, tag = self.word_start, self.word_end, self.word_tag
        if start is None or end is None or tag is None:
            raise InputError(f"{self.path}: the text has no annotated words")
        tags = np.full(len(self.text), -1, np.int16)
        lengths = end - start
        before = np.cumsum(lengths) - lengths
        tags[np.arange(lengths.sum()) + np.repeat(start - before, lengths)] = np.repeat(tag, lengths)
        return tags


def _kind(array: zarr.Array[Any]) -> str:
    return f"{tuple(array.shape)} {array.dtype}"
