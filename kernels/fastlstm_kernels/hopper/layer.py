"""A layer on the Hopper kernels, which want a unit's four gates side by side, from tensors with gates stacked.

Weights of the input product are brought into that order before it is made, gradients back after their products are:
both are small beside what they are for.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastlstm_kernels.hopper import backward, forward
from fastlstm_kernels.hopper.order import columns_by_unit, columns_stacked, rows_by_unit
from fastlstm_kernels.shapes import check_shapes


class LayerForward(NamedTuple):
    """h (T, B, H), c_n (B, H); if they were asked for every c_t, and the activated gates (T, B, 4H), by unit."""

    h: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None


class LayerBackward(NamedTuple):
    """d_gates (T, B, 4H) by unit; dh0 (empty if it was not wanted) and dc0 (B, H)."""

    d_gates: Tensor
    dh0: Tensor
    dc0: Tensor


def aligned(weight: Tensor) -> Tensor:
    """``weight``, contiguous and at an address that loads of 16 bytes can have; a copy where it was not."""
    weight = weight.contiguous()
    return weight if weight.data_ptr() % 16 == 0 else weight.clone()


def lstm_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    *,
    ids: Tensor | None = None,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    resets: Tensor | None = None,
    save_gates: bool = False,
    cells_dtype: torch.dtype | None = None,
    units: Tensor | None = None,
) -> LayerForward:
    """Run one layer over T steps; arguments and errors as of ``fastlstm_kernels.forward.lstm_forward``."""
    check_shapes(inputs, ids, weight_hh, h0, c0, resets, weight_ih, bias_ih, bias_hh)
    weight_hh = aligned(weight_hh)
    product: Tensor | forward.Table
    if weight_ih is None:
        product = columns_by_unit(inputs)
    elif inputs.dtype == torch.uint8:
        ids, product = inputs, forward.Table(weight_ih, bias_ih, bias_hh)
    else:
        bias = None if bias_ih is None or bias_hh is None else rows_by_unit(bias_ih + bias_hh)
        product = F.linear(inputs, rows_by_unit(weight_ih), bias)
    direct = cells_dtype if cells_dtype in forward.CELLS_KIND else torch.float32
    out = forward.lstm_forward(
        product, weight_hh, h0, c0, ids=ids, resets=resets, save_gates=save_gates, cells_dtype=direct
    )
    cells = out.cells
    if cells is not None:
        cells = (cells if units is None else cells.index_select(2, units)).to(cells_dtype)
    return LayerForward(out.h[1:], out.c_n, cells, None if out.gates is None else out.gates.flatten(2))


def lstm_backward(
    dh: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    *,
    dc_n: Tensor | None = None,
    resets: Tensor | None = None,
    h0_wanted: bool = True,
) -> LayerBackward:
    """Gradients of the recurrence; arguments as in ``fastlstm_kernels.backward.lstm_backward``, ``gates`` by unit."""
    d_gates, dc0 = backward.lstm_backward(dh, dc, dc_n, gates, cells, c0, aligned(weight_hh), resets=resets)
    d_gates = d_gates.flatten(2)
    if not h0_wanted:
        return LayerBackward(d_gates, weight_hh.new_empty(0), dc0)
    dh0 = columns_stacked(d_gates[0]) @ weight_hh
    if resets is not None:
        dh0 = dh0.masked_fill(resets[0].unsqueeze(1), 0)
    return LayerBackward(d_gates, dh0, dc0)
