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
from fastlstm_kernels.forward import add_recurrent_product
from fastlstm_kernels.launch import Tile, capability_of, dot_precision, forward_tile


@triton.jit(do_not_specialize=["B"])
def lstm_gates_kernel(
    inputs,  # (T, B, 4H), or a table (V, 4H) with HAS_IDS
    ids,  # (T, B) uint8
    resets,  # (T, B) bool
    weight,  # (4H, H)
    h0,  # (B, H)
    h,  # (T, B, H)
    gates,  # (T, B, 4H), activated
    B,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_RESETS: tl.constexpr,
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
    mask = live[:, None] & (gate_unit < H)[None, :]
    step_row = (tl.zeros((), tl.int64) + t) * B
    keep = live
    if HAS_RESETS:
        keep = live & (tl.load(resets + step_row + b, mask=live, other=1) == 0)
    x_row = step_row + b
    if HAS_IDS:
        x_row = tl.load(ids + x_row, mask=live, other=0).to(tl.int64)
    x = tl.load(inputs + x_row[:, None] * (4 * H) + gate_row[None, :], mask=mask, other=0.0)
    h_prev = tl.where(t == 0, h0, h + (step_row - B) * H)
    z = add_recurrent_product(
        x.to(tl.float32),
        h_prev,
        weight,
        t,
        b,
        keep,
        gate_row,
        gate_unit,
        H,
        BLOCK_H,
        BLOCK_K,
        STAGES,
        PRECISION,
        SERPENTINE,
    )
    activated = sigmoid_or_tanh(z, (gate == 2)[None, :])
    tl.store(
        gates + (step_row + b)[:, None] * (4 * H) + gate_row[None, :], activated.to(gates.dtype.element_ty), mask=mask
    )


def recompute_gates(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    h: Tensor,
    *,
    ids: Tensor | None = None,
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
    lstm_gates_kernel[(programs,)](
        inputs.contiguous(),
        None if ids is None else ids.contiguous(),
        None if resets is None else resets.contiguous(),
        weight_hh.contiguous(),
        h0.contiguous(),
        h.contiguous(),
        gates,
        B,
        H=H,
        BLOCK_B=tile.block_b,
        BLOCK_H=tile.block_h,
        BLOCK_K=tile.block_k,
        STAGES=tile.stages,
        PRECISION=dot_precision(weight_hh.dtype),
        HAS_IDS=ids is not None,
        HAS_RESETS=resets is not None,
        SERPENTINE=tile.serpentine,
        num_warps=tile.warps,
    )
    return gates
