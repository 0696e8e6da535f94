"""Rows and units of `states` from local shards: mapped files, one copy, no decoding.

Zarr reads the same arrays, through its codecs and an event loop: `bench/states.py` has both (cases `scan` and `unit`).
Checksums of chunks are looked at by Zarr and by ``fastlstm dump --verify``, not here; the index's is.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from fastlstm.errors import InputError
from fastlstm.states.layout import CHECKSUM_BYTES, EMPTY, Layout, checksum, shard_name


class Shard(NamedTuple):
    """A file, its mapping, its bytes, and where in them each block and column begins, (blocks, columns)."""

    path: Path
    mapped: Any
    data: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.int64]


def layout_of(array: zarr.Array[Any]) -> Layout | None:
    """The layout of an array that lies in files as `layout.py` says; None for any other."""
    codecs = array.metadata.codecs if array.metadata.zarr_format == 3 else ()
    if len(codecs) != 1 or not isinstance(codec := codecs[0], ShardingCodec):
        return None
    little = BytesCodec(endian="little")
    if tuple(codec.codecs) != (little, Crc32cCodec()) or tuple(codec.index_codecs) != (little, Crc32cCodec()):
        return None
    if array.shards is None or codec.index_location.value != "end":
        return None
    (rows, units), (block_rows, block_units) = array.shape, array.chunks
    layout = Layout(rows, units, array.dtype, block_rows, block_units, array.shards[0] // block_rows)
    return layout if array.shards[1] == layout.columns * block_units else None


class ShardReader:
    """The array `states` of the store at ``path``; keeps the shard mapped that was read last."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._last: tuple[int, Shard] | None = None

    def read(self, start: int, stop: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Rows start:stop (within the array), (rows, U) in ``dtype``."""
        layout = self._layout
        values = np.empty((stop - start, layout.units), dtype)
        for block in range(start // layout.block_rows, -(-stop // layout.block_rows) if stop > start else 0):
            first = block * layout.block_rows
            low, high = max(start, first), min(stop, first + layout.block_rows)
            shard, inside = divmod(block, layout.shard_blocks)
            self._copy(self._shard(shard), inside, low - first, high - first, values[low - start : high - start])
        return values

    def column(self, unit: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Column ``unit`` of the array, (N,) in ``dtype``."""
        layout = self._layout
        values = np.empty(layout.rows, dtype)
        column, inside = divmod(unit, layout.block_units)
        for block in range(-(-layout.rows // layout.block_rows)):
            first = block * layout.block_rows
            rows = values[first : first + layout.block_rows]
            shard, of_shard = divmod(block, layout.shard_blocks)
            opened = self._shard(shard)
            rows[...] = self._chunk(opened.data, int(opened.offset[of_shard, column]))[: len(rows), inside]
        return values

    def _copy(self, shard: Shard, block: int, first: int, last: int, out: npt.NDArray[Any]) -> None:
        """Rows first:last of a block to ``out``."""
        layout = self._layout
        data, offset = shard.data, shard.offset[block]
        if layout.columns == 1 and out.dtype == layout.dtype:
            # The file has them as ``out`` has: no page of it need be mapped.
            begin = int(offset[0]) + first * layout.units * layout.dtype.itemsize
            with shard.path.open("rb", buffering=0) as file:
                if os.preadv(file.fileno(), [out.data], begin) != out.nbytes:
                    raise InputError(f"{self._path}: a chunk is damaged ({shard.path}: it has become shorter)")
            return
        step = int(offset[1] - offset[0]) if layout.columns > 1 else 0
        if step and layout.units == layout.columns * layout.block_units and (np.diff(offset) == step).all():
            # In the order of ``out``: 8.7 GB/s against 5.4 chunk after chunk (2,048 units, one thread).
            rows = np.lib.stride_tricks.as_strided(
                self._chunk(data, int(offset[0])),
                (layout.block_rows, layout.columns, layout.block_units),
                (layout.block_units * layout.dtype.itemsize, step, layout.dtype.itemsize),
                writeable=False,
            )
            out.reshape(len(out), layout.columns, -1)[...] = rows[first:last]
            if last - first == layout.block_rows:
                self._forget(shard, int(offset[0]), layout.columns * step)
            return
        for column in range(layout.columns):
            units = out[:, column * layout.block_units : (column + 1) * layout.block_units]
            units[...] = self._chunk(data, int(offset[column]))[first:last, : units.shape[1]]
            if last - first == layout.block_rows:
                self._forget(shard, int(offset[column]), layout.chunk_bytes)

    def _forget(self, shard: Shard, begin: int, length: int) -> None:
        """Unmap what was read of a whole block: a scan would hold 16 blocks, which count as its memory."""
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (begin + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if isinstance(shard.mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and last > first:
            shard.mapped.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _chunk(self, data: npt.NDArray[np.uint8], offset: int) -> npt.NDArray[Any]:
        layout = self._layout
        return data[offset : offset + layout.chunk_bytes].view(layout.dtype).reshape(layout.block_rows, -1)

    def _shard(self, shard: int) -> Shard:
        if self._last is None or self._last[0] != shard:
            self._last = (shard, self._open(shard))
        return self._last[1]

    def _open(self, shard: int) -> Shard:
        layout = self._layout
        path = self._path / shard_name(shard)
        try:
            data = np.memmap(path, np.uint8, mode="r")
        except FileNotFoundError:
            raise InputError(f"{self._path}: a chunk is missing ({shard_name(shard)})") from None
        except ValueError as error:  # an empty file
            raise InputError(f"{self._path}: a chunk is damaged ({shard_name(shard)}: {error})") from None
        index = bytes(data[-layout.index_bytes :])
        if len(index) < layout.index_bytes or checksum(index[:-CHECKSUM_BYTES]) != index[-CHECKSUM_BYTES:]:
            raise InputError(f"{self._path}: a chunk is damaged ({shard_name(shard)}: its index is not whole)")
        entries = np.frombuffer(index[:-CHECKSUM_BYTES], "<u8").reshape(-1, layout.columns, 2)
        there = entries[: layout.blocks(shard)]
        length = layout.chunk_bytes + CHECKSUM_BYTES
        last = len(data) - layout.index_bytes - length
        if (there == EMPTY).any() or (there[..., 1] != length).any() or int(there[..., 0].max()) > last:
            raise InputError(f"{self._path}: a chunk is damaged ({shard_name(shard)}: its index does not fit)")
        return Shard(path, data.base, np.asarray(data), there[..., 0].astype(np.int64))
