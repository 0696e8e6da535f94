"""The two orders of 4H gates: stacked as in torch.nn.LSTM, i of all units first; by unit, its i, f, g, o together."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.launcher import launch

BLOCK = 512  # units


def rows_by_unit(rows: Tensor) -> Tensor:
    """(4H, ...) stacked -> (4H, ...) by unit."""
    return rows.reshape(4, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def rows_stacked(rows: Tensor) -> Tensor:
    """(4H, ...) by unit -> (4H, ...) stacked."""
    return rows.reshape(-1, 4, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


def columns_by_unit(columns: Tensor) -> Tensor:
    """(..., 4H) stacked -> (..., 4H) by unit, contiguous."""
    return _reordered(columns, stack=False)


def columns_stacked(columns: Tensor) -> Tensor:
    """(..., 4H) by unit -> (..., 4H) stacked, contiguous."""
    return _reordered(columns, stack=True)


@triton.jit(do_not_specialize=["rows"])
def reorder_kernel(source, target, rows, H: tl.constexpr, STACK: tl.constexpr, BLOCK: tl.constexpr):
    blocks: tl.constexpr = (H + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    row = (pid // blocks).to(tl.int64) * (4 * H)
    unit = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    gate = tl.arange(0, 4)
    stacked = row + gate[:, None] * H + unit[None, :]
    by_unit = row + unit[:, None] * 4 + gate[None, :]
    if STACK:
        values = tl.load(source + by_unit, mask=(unit < H)[:, None])
        tl.store(target + stacked, tl.trans(values), mask=(unit < H)[None, :])
    else:
        values = tl.load(source + stacked, mask=(unit < H)[None, :])
        tl.store(target + by_unit, tl.trans(values), mask=(unit < H)[:, None])


def _reordered(source: Tensor, *, stack: bool) -> Tensor:
    # torch's copy of a table of 256 rows took 18 us, of numbers of two bytes four at a time.
    source = source.contiguous()
    target = torch.empty_like(source)
    H, rows = source.shape[-1] // 4, source.shape[:-1].numel()
    programs = rows * triton.cdiv(H, BLOCK)
    if programs:
        launch(reorder_kernel, programs, (source, target), (rows,), (H, stack, BLOCK), num_warps=4)
    return target
