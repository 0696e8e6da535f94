"""LSTM recurrences as PyTorch operators: forward, backward, and the autograd rule that joins them.

This is the only module that knows both the kernels and autograd, and the only one that chooses a kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastlstm_kernels as kernels
from fastlstm_kernels.shapes import cell_dtype


@torch.library.custom_op("fastlstm::lstm_forward", mutates_args=())
def _lstm_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    ids: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    result = kernels.lstm_forward(inputs, weight_hh, h0, c0, ids=ids, resets=resets)
    return result.h, result.c, result.gates


@_lstm_forward.register_fake
def _(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    ids: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    T, B = inputs.shape[:2] if ids is None else ids.shape
    H = weight_hh.shape[1]
    return h0.new_empty(T, B, H), c0.new_empty(T, B, H), c0.new_empty(T, B, 4 * H)


@torch.library.custom_op("fastlstm::lstm_backward", mutates_args=())
def _lstm_backward(
    dh: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    h: Tensor,
    c: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    ids: Tensor | None,
    resets: Tensor | None,
    table_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of inputs, weight_hh, h0 and c0; ``table_rows`` is V when ``ids`` is given."""
    d_gates, dh0, dc0 = kernels.lstm_backward(dh, dc, gates, c, c0, weight_hh, resets=resets)
    d_weight = kernels.weight_gradient(d_gates, h, h0, resets).to(weight_hh.dtype)
    d_inputs = d_gates if ids is None else kernels.table_gradient(d_gates, ids, table_rows)
    return d_inputs.to(weight_hh.dtype), d_weight, dh0.to(h0.dtype), dc0


@_lstm_backward.register_fake
def _(
    dh: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    h: Tensor,
    c: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    ids: Tensor | None,
    resets: Tensor | None,
    table_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_inputs = weight_hh.new_empty(gates.shape if ids is None else (table_rows, gates.shape[2]))
    return d_inputs, torch.empty_like(weight_hh), torch.empty_like(h0), torch.empty_like(c0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    layer_inputs, weight_hh, h0, c0, ids, resets = inputs
    h, c, gates = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates)
    ctx.table_rows = 0 if ids is None else layer_inputs.shape[0]
    ctx.save_for_backward(gates, h, c, weight_hh, h0, c0, ids, resets)


def _backward(ctx: Any, dh: Tensor | None, dc: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gates, h, c, weight_hh, h0, c0, ids, resets = ctx.saved_tensors
    gradients = _lstm_backward(dh, dc, gates, h, c, weight_hh, h0, c0, ids, resets, ctx.table_rows)
    return (*gradients, None, None)


_lstm_forward.register_autograd(_backward, setup_context=_setup_context)


def lstm_layer(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    ids: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM layer over T steps: every h_t (T, B, H) and every c_t (T, B, H).

    ``inputs`` is the input product with both biases, (T, B, 4H); or, with ``ids`` (T, B) uint8, the table (V, 4H) of
    the input product of each id. ``weight_hh`` (4H, H); ``h0``, ``c0`` (B, H); ``resets`` (T, B) bool zeroes the state
    before a step. c is float32 whatever the dtype of the weights (float64 for float64). Gradients reach every
    argument but ``ids`` and ``resets``.
    """
    kernels.check_shapes(inputs, ids, weight_hh, h0, c0, resets)
    h, c, _ = _lstm_forward(inputs, weight_hh, h0, c0, ids, resets)
    return h, c


__all__ = ["cell_dtype", "lstm_layer"]
