"""How the array `states` lies in files: one Zarr shard for every 65,536 rows, of uncompressed chunks with checksums.

    states/c/<shard>/0   chunks of 4096 rows x at most 256 units, in the order [block of rows][group of units], each
                         followed by its CRC-32C; then the shard's index: offset and length of each chunk, CRC-32C

This is Zarr's codec "sharding_indexed" around "bytes" and "crc32c"; a missing block of rows (past the end of the array)
is marked as empty in the index, as the codec has it. Since chunks are of one size, a shard can be written as a stream,
and its length is known beforehand.

Blocks of rows serve a scan, chunks of 256 units the reader of one unit (`bench/results/states.csv`: `scan`, `unit`).
Not compressed: of the states of synthetic reviews (H = 128, float16) zstd leaves 0.85 at 260 MB/s a thread, with bytes
shuffled 0.76 at 410 MB/s, too slow for a disk that takes more than 1 GB/s. CRC-32C runs at 14 GB/s a thread, a tenth
of the time of writing at 1.4 GB/s (all on a Xeon).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec

from fastlstm.states.schema import BLOCK_ROWS

MAX_BLOCK_UNITS = 256
SHARD_BLOCKS = 16  # blocks of rows in a shard
CHECKSUM_BYTES = 4
EMPTY = np.iinfo(np.uint64).max  # offset and length of a chunk that is not there


def checksum(data: npt.NDArray[Any] | bytes) -> bytes:
    """The four bytes that Zarr's codec "crc32c" appends to ``data`` (RFC 3720, little endian)."""
    return int(crc32c.crc32c(data)).to_bytes(CHECKSUM_BYTES, "little")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layout:
    """Where the rows and units of an array (rows, units) of ``dtype`` lie.

    A block is ``block_rows`` rows; a chunk is ``block_units`` units of a block; a shard is ``shard_blocks`` blocks.
    """

    rows: int
    units: int
    dtype: np.dtype[Any]
    block_rows: int
    block_units: int
    shard_blocks: int

    @classmethod
    def of(cls, rows: int, units: int, dtype: str) -> Layout:
        """The layout that a new store gets: as few chunks of at most 256 units as hold all units, evenly filled."""
        block_rows = min(BLOCK_ROWS, rows)
        return cls(
            rows=rows,
            units=units,
            dtype=np.dtype(dtype).newbyteorder("<"),
            block_rows=block_rows,
            block_units=-(-units // -(-units // MAX_BLOCK_UNITS)),
            shard_blocks=min(SHARD_BLOCKS, -(-rows // block_rows)),
        )

    @property
    def columns(self) -> int:
        """Chunks side by side in a block."""
        return -(-self.units // self.block_units)

    @property
    def shard_rows(self) -> int:
        return self.shard_blocks * self.block_rows

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """A block as it lies in its file: (columns, block_rows, block_units)."""
        return self.columns, self.block_rows, self.block_units

    @property
    def chunk_bytes(self) -> int:
        """Without its checksum."""
        return self.block_rows * self.block_units * self.dtype.itemsize

    @cached_property
    def index_bytes(self) -> int:
        """With its checksum."""
        return self.shard_blocks * self.columns * 16 + CHECKSUM_BYTES

    def blocks(self, shard: int) -> int:
        """How many blocks of ``shard`` have rows."""
        rows = min(self.rows - shard * self.shard_rows, self.shard_rows)
        return -(-rows // self.block_rows)

    def block(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Rows (n, U), at most a block's, as they lie in a file; NaN where the array has ended."""
        whole = np.full((self.block_rows, self.columns * self.block_units), np.nan, self.dtype)
        whole[: len(values), : self.units] = values
        return np.ascontiguousarray(whole.reshape(self.block_rows, self.columns, -1).swapaxes(0, 1))

    def index(self, blocks: int) -> bytes:
        """The end of a shard of which the first ``blocks`` blocks are there."""
        entries = np.full((self.shard_blocks * self.columns, 2), EMPTY, "<u8")
        length = self.chunk_bytes + CHECKSUM_BYTES
        there = blocks * self.columns
        entries[:there, 0] = np.arange(there) * length
        entries[:there, 1] = length
        data = entries.tobytes()
        return data + checksum(data)

    def create(self, group: zarr.Group) -> None:
        """Make the array's metadata in ``group``; the shards are written as files."""
        group.create_array(
            "states",
            shape=(self.rows, self.units),
            shards=(self.shard_rows, self.columns * self.block_units),
            chunks=(self.block_rows, self.block_units),
            dtype=self.dtype,
            fill_value=float("nan"),
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )


def shard_name(shard: int) -> str:
    """The file of a shard, below the store."""
    return f"states/c/{shard}/0"
