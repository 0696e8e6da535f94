"""The Triton kernel of `rows.py`."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS, TILE_UNITS = 16, 256


def put_rows_(blocks: Tensor, unfit: Tensor, cells: Tensor, where: Tensor | None, row: Tensor, largest: float) -> None:
    """`rows.put_rows_`."""
    columns, block_rows, block_units = blocks.shape[1:]
    width = columns * block_units
    put_rows_kernel[triton.cdiv(len(row), TILE_ROWS), triton.cdiv(width, TILE_UNITS)](
        *(cells.contiguous(), row if where is None else where, row, blocks, unfit),
        *(len(row), cells.shape[1], columns, block_rows, largest),
        BLOCK_UNITS=block_units,
        EVERY=where is None,
        ROWS=TILE_ROWS,
        UNITS=TILE_UNITS,
        num_warps=4,
    )


# Slices begin anywhere: else a kernel would be compiled for each alignment of where and row.
@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["where", "row"])
def put_rows_kernel(
    cells,
    where,
    row,
    blocks,
    unfit,
    n,
    U,
    columns,
    block_rows,
    largest,
    BLOCK_UNITS: tl.constexpr,
    EVERY: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = i < n
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)
    source = i.to(tl.int64)
    if not EVERY:
        source = tl.load(where + i, mask=live, other=0)
    known = live[:, None] & (unit < U)[None, :]
    x = tl.load(cells + source[:, None] * U + unit[None, :], mask=known, other=float("nan"))
    wide = x.to(tl.float32)
    fits = (wide <= largest) & (wide >= -largest)
    if tl.max((known & ~fits).to(tl.int32)) > 0:
        tl.store(unfit, 1)
    r = tl.load(row + i, mask=live, other=0)
    column, inside = unit // BLOCK_UNITS, unit % BLOCK_UNITS
    block = (r // block_rows)[:, None] * columns + column[None, :]
    target = (block * block_rows + (r % block_rows)[:, None]) * BLOCK_UNITS + inside[None, :]
    tl.store(blocks + target, x, mask=live[:, None] & (unit < columns * BLOCK_UNITS)[None, :])
