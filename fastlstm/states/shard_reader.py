"""Rows and units of `states` from local shards: mapped files, one copy, no decoding.

Zarr reads the same arrays, through its codecs and an event loop: `bench/states.py` has both (cases `scan` and `unit`).
Checksums of chunks are looked at by Zarr and by ``fastlstm dump --verify``, not here; the index's is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from fastlstm.errors import InputError
from fastlstm.states.layout import CHECKSUM_BYTES, EMPTY, Layout, checksum, shard_name


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
    """The array `states` of the store at ``path``."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout

    def read(self, start: int, stop: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Rows start:stop (within the array), (rows, U) in ``dtype``."""
        layout = self._layout
        values = np.empty((stop - start, layout.units), dtype)
        for shard in range(start // layout.shard_rows, -(-stop // layout.shard_rows)):
            blocks = self._blocks(shard)
            base = shard * layout.shard_rows
            for block in range(layout.blocks(shard)):
                first = base + block * layout.block_rows
                low, high = max(start, first), min(stop, first + layout.block_rows)
                if low >= high:
                    continue
                for column in range(layout.columns):
                    unit = column * layout.block_units
                    last = min(unit + layout.block_units, layout.units)
                    chunk = blocks(block, column)[low - first : high - first, : last - unit]
                    values[low - start : high - start, unit:last] = chunk
        return values

    def column(self, unit: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Column ``unit`` of the array, (N,) in ``dtype``."""
        layout = self._layout
        values = np.empty(layout.rows, dtype)
        column, inside = divmod(unit, layout.block_units)
        for shard in range(layout.shards):
            blocks = self._blocks(shard)
            for block in range(layout.blocks(shard)):
                first = shard * layout.shard_rows + block * layout.block_rows
                last = min(first + layout.block_rows, layout.rows)
                values[first:last] = blocks(block, column)[: last - first, inside]
        return values

    def _blocks(self, shard: int) -> Any:
        """The chunk (block_rows, block_units) of a block and column of ``shard``, mapped, by a function."""
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

        def chunk(block: int, column: int) -> npt.NDArray[Any]:
            begin = int(there[block, column, 0])
            return data[begin : begin + layout.chunk_bytes].view(layout.dtype).reshape(layout.block_rows, -1)

        return chunk
