"""The gates of a forward that did not save them, from its h: what the backward then needs, bit for bit.

With every h_t known the steps no longer wait for each other, so all of them run at once. This costs about one forward
without its waiting, and spares 4H numbers a step and sequence between forward and backward.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.activations import sigmoid_or_tanh
from fastlstm_kernels.forward import add_recurrent_product, input_sum
from fastlstm_kernels.launch import Tile, capability_of, dot_precision, forward_tile, input_block
from fastlstm_kernels.launcher import launch


# An argument that is None is one that the call does without, as in forward.py.
@triton.jit(do_not_specialize=["B"])
def lstm_gates_kernel(
    inputs,  # (T, B, 4H); with ids a table (V, 4H); with weight_ih (T, B, I)
    ids,  # (T, B) uint8
    resets,  # (T, B) bool
    weight_ih,  # (4H, I)
    bias_ih,  # (4H,)
    bias_hh,  # (4H,)
    weight,  # (4H, H)
    h0,  # (B, H)
    h,  # (T, B, H)
    gates,  # (T, B, 4H), activated
    B,
    H: tl.constexpr,
    I: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_I: tl.constexpr,
    STAGES: tl.constexpr,
    INPUT_STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    SERPENTINE: tl.constexpr,
):
    unit_tiles = tl.cdiv(H, BLOCK_H)
    tiles = tl.cdiv(B, BLOCK_B) * unit_tiles
    t = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    rows = (tile // unit_tiles) * BLOCK_B + tl.arange(0, BLOCK_B)
    # Column n of the product is gate n // BLOCK_H of unit n % BLOCK_H of the tile.
    n = tl.arange(0, 4 * BLOCK_H)
    gate = n // BLOCK_H
    gate_unit = (tile % unit_tiles) * BLOCK_H + n % BLOCK_H
    gate_row = gate * H + gate_unit
    live = rows < B
    b = tl.where(live, rows, 0).to(tl.int64)
    step_row = (tl.zeros((), tl.int64) + t) * B
    keep = live
    if resets is not None:
        keep = live & (tl.load(resets + step_row + b, mask=live, other=1) == 0)
    z = input_sum(
        inputs,
        ids,
        weight_ih,
        bias_ih,
        bias_hh,
        step_row + b,
        live,
        gate_row,
        gate_unit,
        H,
        I,
        BLOCK_B,
        BLOCK_H,
        BLOCK_I,
        INPUT_STAGES,
        PRECISION,
    )
    h_prev = tl.where(t == 0, h0, h + (step_row - B) * H)
    z = add_recurrent_product(
        z, h_prev, weight, t, b, keep, gate_row, gate_unit, H, BLOCK_H, BLOCK_K, STAGES, PRECISION, SERPENTINE
    )
    activated = sigmoid_or_tanh(z, (gate == 2)[None, :])
    gate_pointers = gates + (step_row + b)[:, None] * (4 * H) + gate_row[None, :]
    tl.store(gate_pointers, activated.to(gates.dtype.element_ty), mask=live[:, None] & (gate_unit < H)[None, :])


def recompute_gates(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    h: Tensor,
    *,
    ids: Tensor | None = None,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    resets: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The activated gates (T, B, 4H), as ``forward.lstm_forward`` saves them, from the ``h`` (T, B, H) it returned.

    The other arguments are those that the forward was given; ``tile`` must be the forward's for the same bits.
    """
    T, B, H = h.shape
    tile = tile or forward_tile(H, B, weight_hh.dtype, capability_of(weight_hh.device))
    gates = torch.empty(T, B, 4 * H, dtype=h.dtype, device=h.device)
    programs = T * triton.cdiv(B, tile.block_b) * triton.cdiv(H, tile.block_h)
    given = (inputs, ids, resets, weight_ih, bias_ih, bias_hh, weight_hh, h0, h)
    tensors = [None if tensor is None else tensor.contiguous() for tensor in given]
    I, block_i = input_block(weight_ih, tile)
    blocks = (tile.block_b, tile.block_h, tile.block_k, block_i)
    constants = (H, I, *blocks, tile.stages, tile.input_stages, dot_precision(weight_hh.dtype), tile.serpentine)
    launch(lstm_gates_kernel, programs, (*tensors, gates), (B,), constants, num_warps=tile.warps)
    return gates
