"""The LSTM forward recurrence for few sequences, where a step is bound by latency and h is its own flag.

A program keeps the recurrent weights of BLOCK_H units in registers for all T steps, K split over its warps, and c of
its units for BLOCK_B sequences too. Programs wait for nothing but data: h is filled with SENTINEL before the launch,
and whoever needs h_{t-1} loads it until no element is SENTINEL. So a step costs one way through the L2 cache: no
counter, no fence, and one barrier, where the sums of the warps meet in shared memory.

h has to go from memory straight into the tensor cores' registers, which Triton does by way of shared memory and
barriers; so this is written in Gluon (see ``layouts``).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.launch import SMALL_MULTIPLE, SmallTile, small_batch_programs
from fastlstm_kernels.launcher import launch
from fastlstm_kernels.layouts import (
    arange,
    convert,
    exchange_layout,
    jit,
    load_published,
    operand_layout,
    product,
    sum_layout,
)

# All bits set: a NaN that no conversion from float32 makes. NVIDIA's makes NAN of every NaN.
SENTINEL = tl.constexpr(-1)
NAN = tl.constexpr(0x7FFF)
REGISTERS = 65536  # of a multiprocessor


@jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@jit
def _tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x >= 0, 1.0 - e, e - 1.0) / (1.0 + e)


@jit
def _by_gate(z, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    """(4 BLOCK_H, BLOCK_B) as four (BLOCK_H, BLOCK_B), one for each gate."""
    # gate = 2 * first + second: i f / g o.
    by_unit = tl.permute(tl.reshape(z, (4, BLOCK_H, BLOCK_B)), (1, 2, 0))
    i_g, f_o = tl.split(tl.reshape(by_unit, (BLOCK_H, BLOCK_B, 2, 2)))
    i, g = tl.split(i_g)
    f, o = tl.split(f_o)
    return i, f, g, o


@jit
def _gate_i(z, BLOCK_H: tl.constexpr, BLOCK_B: tl.constexpr):
    i, _, _, _ = _by_gate(z, BLOCK_H, BLOCK_B)
    return i


@jit
def _k_order(n):
    """Which k the n-th of an operand is: the 8 that a thread has of 32 are neighbours in memory.

    Of every 16, a thread of the tensor cores has 2q, 2q + 1, 2q + 8 and 2q + 9, q its rank among four.
    """
    return n // 32 * 32 + n % 8 // 2 * 8 + n % 32 // 16 * 4 + n % 16 // 8 * 2 + n % 2


@jit(do_not_specialize=["T", "B", "U"])
def lstm_small_batch_kernel(
    inputs,  # (T, B, 2H), or a table (V, 2H) with HAS_IDS: two neighbours in an int32
    ids,  # (T, B) uint8
    resets,  # (T, B) uint8
    weight,  # (4H, H)
    h0,  # (B, H)
    state,  # (B, H) float32: c before the first step on entry, c after the last on return
    h,  # (T, B, H); SENTINEL on entry if PERSISTENT
    gates,  # (T, B, 4H), activated
    cells,  # (T, B, H), or (T, B, U) with CHOSEN
    columns,  # (H,) int32: column of each unit in cells, or -1
    T,
    B,
    U,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WARPS: tl.constexpr,
    SHARE: tl.constexpr,  # K of a warp
    PEEK: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    CHOSEN: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    element: tl.constexpr = h.dtype.element_ty
    batch_tiles = tl.cdiv(B, BLOCK_B)
    first_row = tl.program_id(0) % batch_tiles * BLOCK_B
    first = tl.program_id(0) // batch_tiles * BLOCK_H

    # The weights, (WARPS, 4 BLOCK_H, SHARE). Row n is gate n // BLOCK_H of unit first + n % BLOCK_H.
    LEFT: tl.constexpr = operand_layout(0, WARPS)
    w_k = arange(WARPS, 0, LEFT)[:, None, None] * SHARE + _k_order(arange(SHARE, 2, LEFT))[None, None, :]
    w_n = arange(4 * BLOCK_H, 1, LEFT)[None, :, None]
    w_unit = first + w_n % BLOCK_H
    w_row = (w_n // BLOCK_H * H + w_unit).to(tl.int64)
    w = tl.load(weight + w_row * H + w_k, mask=(w_unit < H) & (w_k < H), other=0.0)

    # Where h_{t-1} is, (WARPS, SHARE, BLOCK_B). Beyond B and H something is read that is written for sure.
    RIGHT: tl.constexpr = operand_layout(1, WARPS)
    h_k = arange(WARPS, 0, RIGHT)[:, None, None] * SHARE + _k_order(arange(SHARE, 1, RIGHT))[None, :, None]
    h_row = first_row + arange(BLOCK_B, 2, RIGHT)[None, None, :]
    h_at = tl.where(h_row < B, h_row, first_row) * H + tl.where(h_k < H, h_k, h_k % 8)

    # z, (4 BLOCK_H, BLOCK_B), and a gate of it, (BLOCK_H, BLOCK_B).
    PARTS: tl.constexpr = exchange_layout(WARPS, BLOCK_H, BLOCK_B)
    Z: tl.constexpr = sum_layout(PARTS)
    z_n = arange(4 * BLOCK_H, 0, Z)[:, None]
    z_row = first_row + arange(BLOCK_B, 1, Z)[None, :]
    unit = first + z_n % BLOCK_H
    live = z_row < B
    b = tl.where(live, z_row, 0)
    z_mask = (unit < H) & live
    z_column = z_n // BLOCK_H * H + unit
    z_at = b * (4 * H) + z_column
    at = _gate_i(b * H + unit, BLOCK_H, BLOCK_B)
    mask = _gate_i(z_mask, BLOCK_H, BLOCK_B)
    c = tl.load(state + at, mask=mask, other=0.0)
    if CHOSEN:
        column = tl.load(columns + unit, mask=unit < H, other=-1)
        cell_at = _gate_i(b * U + column, BLOCK_H, BLOCK_B)
        cell_mask = _gate_i(z_mask & (column >= 0), BLOCK_H, BLOCK_B)
    else:
        cell_at, cell_mask = at, mask

    # Inputs and resets are fetched a step ahead, ids two: they come from far away.
    x_at = z_at
    if HAS_IDS:
        x_at = tl.load(ids + b).to(tl.int32) * (4 * H) + z_column
        ids += B
        row = tl.load(ids + b, mask=live & (T > 1), other=0).to(tl.int32)
    # As they came, two in a word: unpacked a step ahead, they would have to have come.
    x = tl.load(inputs + x_at // 2, mask=z_mask, other=0)
    if HAS_RESETS:
        reset = tl.load(resets + b).to(tl.int32)

    h_prev = h0
    for t in range(T):
        h_tile = load_published(h_prev + h_at, t > 0, PEEK) if PERSISTENT else tl.load(h_prev + h_at)
        if H < WARPS * SHARE:
            h_tile = tl.where(h_k < H, h_tile, 0.0)
        z = tl.sum(convert(product(w, h_tile), PARTS), 0)
        if HAS_RESETS:
            z = tl.where(reset != 0, 0.0, z)
            cell_reset = _gate_i(z_mask & (reset != 0), BLOCK_H, BLOCK_B)
            c = tl.where(cell_reset, 0.0, c)
        z += (x >> unit % 2 * 16).to(tl.int16).to(element, bitcast=True).to(tl.float32)
        z_i, z_f, z_g, z_o = _by_gate(z, BLOCK_H, BLOCK_B)
        i, f, g, o = _sigmoid(z_i), _sigmoid(z_f), _tanh(z_g), _sigmoid(z_o)
        c = f * c + i * g
        bits = (o * _tanh(c)).to(element).to(tl.int16, bitcast=True)
        h_t = tl.where(bits == SENTINEL, NAN, bits).to(tl.int16).to(element, bitcast=True)
        tl.store(h + at, h_t, mask=mask)

        # The rest while the others already go on.
        more = t + 1 < T
        if HAS_IDS:
            x_at = row * (4 * H) + z_column
            ids += B
            row = tl.load(ids + b, mask=live & (t + 2 < T), other=0).to(tl.int32)
        else:
            inputs += B * (2 * H)
        x = tl.load(inputs + x_at // 2, mask=z_mask & more, other=0)
        if HAS_RESETS:
            resets += B
            reset = tl.load(resets + b, mask=live & more, other=0).to(tl.int32)
        if SAVE_GATES:
            gate_at = _gate_i(z_at, BLOCK_H, BLOCK_B)
            tl.store(gates + gate_at, i.to(element), mask=mask)
            tl.store(gates + gate_at + H, f.to(element), mask=mask)
            tl.store(gates + gate_at + 2 * H, g.to(element), mask=mask)
            tl.store(gates + gate_at + 3 * H, o.to(element), mask=mask)
            gates += B * (4 * H)
        if SAVE_CELLS:
            tl.store(cells + cell_at, c.to(cells.dtype.element_ty), mask=cell_mask)
            cells += B * U
        h_prev = h
        h += B * H
    tl.store(state + at, c, mask=mask)


def run_small_batch(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    state: Tensor,
    h: Tensor,
    *,
    ids: Tensor | None,
    resets: Tensor | None,
    gates: Tensor | None,
    cells: Tensor | None,
    columns: Tensor | None,
    tile: SmallTile,
    persistent: bool,
) -> None:
    """Fill ``h``, ``state`` and what else is given; arguments as the kernel's, in float16 or bfloat16, contiguous."""
    T, B, H = h.shape
    if h.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"weight_hh: expected float16 or bfloat16 for a small-batch tile, got {h.dtype}")
    if H % SMALL_MULTIPLE:
        raise ValueError(f"weight_hh: expected H in multiples of {SMALL_MULTIPLE} for a small-batch tile, got {H}")
    share = max(32, triton.next_power_of_2(triton.cdiv(H, tile.warps)))
    # Loads of more than one element want their alignment.
    inputs, h0 = (tensor if tensor.data_ptr() % 16 == 0 else tensor.clone() for tensor in (inputs, h0))
    words = inputs.view(torch.int32)
    resets = None if resets is None else resets.view(torch.uint8)
    if persistent:
        h.view(torch.int16).fill_(SENTINEL.value)  # part of a captured graph, so that a replay waits too
    given = [tensor is not None for tensor in (ids, resets, gates, cells, columns)]
    constants = (H, tile.block_b, tile.block_h, tile.warps, share, tile.peek, *given, persistent)
    U = H if cells is None else cells.shape[2]
    for t, steps in [(0, T)] if persistent else [(t, 1) for t in range(T)]:
        inputs_t = words if ids is not None else words[t:]
        ids_t, resets_t, h_t, gates_t, cells_t = (
            None if tensor is None else tensor[t:] for tensor in (ids, resets, h, gates, cells)
        )
        before = h0 if t == 0 else h[t - 1]
        tensors = (inputs_t, ids_t, resets_t, weight_hh, before, state, h_t, gates_t, cells_t, columns)
        launch(
            *(lstm_small_batch_kernel, small_batch_programs(H, B, tile), tensors, (steps, B, U), constants),
            num_warps=tile.warps,
            maxnreg=min(255, REGISTERS // (32 * tile.warps)),  # ptxas leaves room for other programs, and spills
            launch_cooperative_grid=persistent,
        )
