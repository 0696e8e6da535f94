"""Rows of cell states into blocks of rows and units, the order in which they are stored, in one pass.

On a GPU by the kernel of `row_kernels.py`, on a CPU in plain PyTorch, which is the truth.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn import functional as F


def put_rows_(blocks: Tensor, unfit: Tensor, cells: Tensor, where: Tensor | None, row: Tensor, largest: float) -> None:
    """Put row ``where[i]`` of ``cells`` at row ``row[i]`` of ``blocks``.

    ``blocks`` (blocks, columns, block_rows, block_units): row r, unit u is [r // block_rows, u // block_units,
    r % block_rows, u % block_units]; units from U on become NaN. ``cells`` (n, U), of the dtype of ``blocks``;
    ``where`` (m,) int64, None = all of them in order; ``row`` (m,) int64, each once. ``unfit`` (1,) int32 becomes 1 if
    a state among them is NaN or beyond ``largest``.
    """
    if not len(row):
        return
    if cells.is_cuda or os.environ.get("TRITON_INTERPRET") == "1":
        from fastlstm_kernels.row_kernels import put_rows_ as fused

        fused(blocks, unfit, cells, where, row, largest)
        return
    values = cells if where is None else cells.index_select(0, where)
    low, high = torch.aminmax(values)  # NaN if any is
    if not (low >= -largest and high <= largest):
        unfit.fill_(1)
    columns, block_rows, units = blocks.shape[1:]
    if padding := columns * units - values.shape[1]:
        values = F.pad(values, (0, padding), value=float("nan"))
    values = values.view(-1, columns, units)
    if units * values.element_size() % 8 == 0:
        blocks, values = blocks.view(torch.int64), values.view(torch.int64)  # a quarter of the indices
    blocks[row // block_rows, :, row % block_rows] = values
