"""The LSTM forward recurrence in one Triton kernel: h_{t-1} W_hh^T, gates and cell update of a step, for all T steps.

A tile is BLOCK_B sequences by BLOCK_H units, with the four gates of its units side by side, so that the cell update
needs nothing from another program; only h crosses programs. On a GPU one cooperative launch runs all steps with a
barrier between them; elsewhere, each step is a launch of its own with the same body.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.activations import sigmoid_or_tanh, tanh
from fastlstm_kernels.grid import COUNTER_STRIDE, arrive, wait, zero_counters
from fastlstm_kernels.launch import (
    SmallTile,
    Tile,
    dot_precision,
    input_block,
    resident_programs,
    tile_of_call,
)
from fastlstm_kernels.launcher import launch
from fastlstm_kernels.shapes import check_shapes
from fastlstm_kernels.small_batch import run_small_batch


@triton.jit
def add_product(acc, a, b, PRECISION: tl.constexpr):
    """acc + a b in float32. Full float32 products are summed by themselves first, then added: two levels of rounding.

    With one running sum, h was four times as wrong at H = 1024 as with cuBLAS. Tensor cores want the running sum.
    """
    if a.dtype == tl.float32 and PRECISION == "ieee":
        # With max_num_imprecise_acc at 0 Triton folds the addition into the dot; on float32 it has no other effect.
        acc += tl.dot(a, b, input_precision=PRECISION, max_num_imprecise_acc=1)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def add_recurrent_product(
    acc,  # (BLOCK_B, 4 * BLOCK_H) float32
    h_prev,  # (B, H)
    weight,
    t,
    b,
    keep,
    gate_row,
    gate_unit,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    SERPENTINE: tl.constexpr,
):
    """acc + h_{t-1} W_hh^T for sequences ``b`` (h is zero unless ``keep``) and rows ``gate_row`` of W_hh."""
    # Every other step goes through the weights backwards, so that it begins with those still in the L2 cache.
    k_first, k_step = 0, BLOCK_K
    if SERPENTINE:
        k_first = tl.where(t % 2 == 0, 0, (H - 1) // BLOCK_K * BLOCK_K)
        k_step = tl.where(t % 2 == 0, BLOCK_K, -BLOCK_K)
    k = k_first + tl.arange(0, BLOCK_K)
    h_pointers = h_prev + b[:, None] * H + k[None, :]
    w_pointers = weight + gate_row.to(tl.int64)[:, None] * H + k[None, :]
    for _ in tl.range(0, H, BLOCK_K, num_stages=STAGES):
        h_mask = keep[:, None]
        if H % BLOCK_K != 0:
            h_mask = h_mask & (k < H)[None, :]
        # .cg: past the L1 cache, which does not see what other programs write.
        h_tile = tl.load(h_pointers, mask=h_mask, other=0.0, cache_modifier=".cg")
        if H % BLOCK_K != 0 or H % BLOCK_H != 0:
            w_tile = tl.load(w_pointers, mask=(gate_unit < H)[:, None] & (k < H)[None, :], other=0.0)
        else:
            w_tile = tl.load(w_pointers)
        acc = add_product(acc, h_tile, tl.trans(w_tile), PRECISION)
        k += k_step
        h_pointers += k_step
        w_pointers += k_step
    return acc


@triton.jit
def input_sum(
    inputs,
    ids,
    weight_ih,
    bias_ih,
    bias_hh,
    row,  # (BLOCK_B,) int64: rows of ``ids``, or of ``inputs``
    live,
    gate_row,
    gate_unit,
    H: tl.constexpr,
    I: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_I: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What the sums of the gates start from, (BLOCK_B, 4 * BLOCK_H) float32, of any kind of input."""
    if weight_ih is None:
        if ids is not None:
            row = tl.load(ids + row, mask=live, other=0).to(tl.int64)
        mask = live[:, None] & (gate_unit < H)[None, :]
        acc = tl.load(inputs + row[:, None] * (4 * H) + gate_row[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        acc = tl.zeros((BLOCK_B, 4 * BLOCK_H), tl.float32)
        if bias_ih is not None:
            bias = tl.load(bias_ih + gate_row, mask=gate_unit < H, other=0.0).to(tl.float32)
            bias += tl.load(bias_hh + gate_row, mask=gate_unit < H, other=0.0).to(tl.float32)
            acc += bias[None, :]
        k = tl.arange(0, BLOCK_I)
        x_pointers = inputs + row[:, None] * I + k[None, :]
        w_pointers = weight_ih + gate_row.to(tl.int64)[:, None] * I + k[None, :]
        for _ in tl.range(0, I, BLOCK_I, num_stages=STAGES):
            x_mask = live[:, None]
            if I % BLOCK_I != 0:
                x_mask = x_mask & (k < I)[None, :]
            x_tile = tl.load(x_pointers, mask=x_mask, other=0.0)
            if I % BLOCK_I != 0 or H % BLOCK_H != 0:
                w_tile = tl.load(w_pointers, mask=(gate_unit < H)[:, None] & (k < I)[None, :], other=0.0)
            else:
                w_tile = tl.load(w_pointers)
            acc = add_product(acc, x_tile, tl.trans(w_tile), PRECISION)
            k += BLOCK_I
            x_pointers += BLOCK_I
            w_pointers += BLOCK_I
    return acc


@triton.jit
def _step(
    inputs,
    ids,
    resets,
    weight_ih,
    bias_ih,
    bias_hh,
    weight,
    h0,
    c0,
    state,
    h,
    h_n,
    gates,
    cells,
    columns,
    counters,
    arrivals,
    t,
    B,
    U,
    tile,
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
    """Step t of one tile: reads h[t-1], writes h[t], and updates ``state`` (B, H) in place."""
    batch_tiles = tl.cdiv(B, BLOCK_B)
    rows = (tile % batch_tiles) * BLOCK_B + tl.arange(0, BLOCK_B)
    first = (tile // batch_tiles) * BLOCK_H
    units = first + tl.arange(0, BLOCK_H)
    # Column n of the product is gate n // BLOCK_H of unit first + n % BLOCK_H.
    n = tl.arange(0, 4 * BLOCK_H)
    gate = n // BLOCK_H
    gate_unit = first + n % BLOCK_H
    gate_row = gate * H + gate_unit

    live = rows < B
    b = tl.where(live, rows, 0).to(tl.int64)
    step_row = (tl.zeros((), tl.int64) + t) * B
    at = b[:, None] * H + units[None, :]
    unit_mask = live[:, None] & (units < H)[None, :]
    h_prev, c_before = h + (step_row - B) * H, state
    if h0 is not None:
        keep = live
        h_prev, c_before = tl.where(t == 0, h0, h_prev), tl.where(t == 0, c0, state)
    else:
        keep = live & (t > 0)
    if resets is not None:
        keep = keep & (tl.load(resets + step_row + b, mask=live, other=1) == 0)

    # What does not depend on the step before is done before waiting for it; the sum starts from the inputs.
    acc = input_sum(
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
    c_prev = tl.load(c_before + at, mask=unit_mask & keep[:, None], other=0.0)
    if counters is not None:
        wait(counters + tile % batch_tiles * COUNTER_STRIDE, arrivals)

    acc = add_recurrent_product(
        acc, h_prev, weight, t, b, keep, gate_row, gate_unit, H, BLOCK_H, BLOCK_K, STAGES, PRECISION, SERPENTINE
    )
    activated = sigmoid_or_tanh(acc, (gate == 2)[None, :])
    # (BLOCK_B, 4 BLOCK_H) -> (BLOCK_B, BLOCK_H, 2, 2) with gate = 2 * first + second: i f / g o.
    by_unit = tl.permute(tl.reshape(activated, (BLOCK_B, 4, BLOCK_H)), (0, 2, 1))
    i_g, f_o = tl.split(tl.reshape(by_unit, (BLOCK_B, BLOCK_H, 2, 2)))
    i, g = tl.split(i_g)
    f, o = tl.split(f_o)
    c = f * c_prev + i * g
    h_t = o * tanh(c)
    tl.store(h + (step_row + b)[:, None] * H + units[None, :], h_t.to(h.dtype.element_ty), mask=unit_mask)
    if counters is not None:
        arrive(counters + tile % batch_tiles * COUNTER_STRIDE)

    # No other program reads these, so they are written while the others already go on.
    tl.store(state + at, c, mask=unit_mask)
    if h_n is not None:
        tl.store(h_n + at, h_t.to(h_n.dtype.element_ty), mask=unit_mask)
    if gates is not None:
        gate_pointers = gates + (step_row + b)[:, None] * (4 * H) + gate_row[None, :]
        tl.store(gate_pointers, activated.to(gates.dtype.element_ty), mask=live[:, None] & (gate_unit < H)[None, :])
    if cells is not None:
        if columns is not None:
            column = tl.load(columns + units, mask=units < H, other=-1)
            cell_pointers = cells + (step_row + b)[:, None] * U + column[None, :]
            tl.store(cell_pointers, c.to(cells.dtype.element_ty), mask=unit_mask & (column >= 0)[None, :])
        else:
            cell_pointers = cells + (step_row + b)[:, None] * H + units[None, :]
            tl.store(cell_pointers, c.to(cells.dtype.element_ty), mask=unit_mask)
    if counters is not None:
        tl.debug_barrier()  # the next step's load of state may be another thread's


# An argument that is None is one that the call does without: the code for it is then not compiled.
@triton.jit(do_not_specialize=["t_begin", "t_end", "B", "U"])
def lstm_forward_kernel(
    inputs,  # (T, B, 4H); with ids a table (V, 4H); with weight_ih (T, B, I)
    ids,  # (T, B) uint8
    resets,  # (T, B) bool
    weight_ih,  # (4H, I)
    bias_ih,  # (4H,)
    bias_hh,  # (4H,)
    weight,  # (4H, H)
    h0,  # (B, H), zeros if None
    c0,  # (B, H) float32, zeros if None
    state,  # (B, H) float32: c_{t_end - 1} on return; c_{t_begin - 1} on entry, unless t_begin is 0
    h,  # (T, B, H)
    h_n,  # (B, H): h of the one step there is
    gates,  # (T, B, 4H), activated
    cells,  # (T, B, H), or with columns (T, B, U)
    columns,  # (H,) int32: column of each unit in cells, or -1
    counters,  # one for each batch tile, zero; None if this launch is for one step
    t_begin,
    t_end,
    B,
    U,
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
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    batch_tiles = tl.cdiv(B, BLOCK_B)
    unit_tiles = tl.cdiv(H, BLOCK_H)
    for t in range(t_begin, t_end):
        for tile in range(pid, batch_tiles * unit_tiles, programs):
            _step(
                inputs,
                ids,
                resets,
                weight_ih,
                bias_ih,
                bias_hh,
                weight,
                h0,
                c0,
                state,
                h,
                h_n,
                gates,
                cells,
                columns,
                counters,
                (t - t_begin) * unit_tiles,
                t,
                B,
                U,
                tile,
                H,
                I,
                BLOCK_B,
                BLOCK_H,
                BLOCK_K,
                BLOCK_I,
                STAGES,
                INPUT_STAGES,
                PRECISION,
                SERPENTINE,
            )


class TritonForward(NamedTuple):
    """h (T, B, H) in the weights' dtype; the last c (B, H) float32; cells and gates if they were asked for.

    ``h_n`` (B, H): the last h as a tensor of its own, where the kernel writes it: one step alone without gates.
    """

    h: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None
    h_n: Tensor | None = None


def lstm_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    resets: Tensor | None = None,
    save_gates: bool = False,
    cells_dtype: torch.dtype | None = None,
    units: Tensor | None = None,
    tile: Tile | SmallTile | None = None,
    persistent: bool | None = None,
) -> TritonForward:
    """Run one layer over T steps; arguments as in ``reference.lstm_forward``, in float32, float16 or bfloat16.

    With ``weight_ih`` (4H, I), and both biases (4H,) or neither, ``inputs`` is x (T, B, I) and the input product is
    made here, step by step. ``h0`` and ``c0`` are both given, or both None and then zero.

    ``save_gates`` keeps the activated gates (T, B, 4H) in the weights' dtype, which the backward needs.
    ``cells_dtype`` asks for every c_t, (T, B, H) in that dtype (the backward wants float32), or (T, B, U) of the
    chosen ``units`` (U,), each at most once. ``tile`` overrides the launch tables; a ``SmallTile`` means the kernel of
    ``small_batch``, whose programs must all run at the same time, in float16 or bfloat16 with H in multiples of 8.
    ``persistent``: all steps in one launch (None: on a GPU yes, in the interpreter no). Raises what ``check_shapes``
    raises.
    """
    T, B, H = check_shapes(inputs, ids, weight_hh, h0, c0, resets, weight_ih, bias_ih, bias_hh)
    dtype, device = weight_hh.dtype, weight_hh.device
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"weight_hh: expected float32, float16 or bfloat16, got {dtype}")
    tile = tile or tile_of_call(T, H, B, dtype, device, fused=weight_ih is not None)
    persistent = T > 1 and (weight_hh.is_cuda if persistent is None else persistent)

    h = torch.empty(T, B, H, dtype=dtype, device=device)
    # A copy afterwards would be a launch of its own, beside the one of a single step.
    h_n = torch.empty(B, H, dtype=dtype, device=device) if T == 1 and not save_gates else None
    state = torch.empty(B, H, dtype=torch.float32, device=device)
    gates = torch.empty(T, B, 4 * H, dtype=dtype, device=device) if save_gates else None
    columns, U = None, H
    if units is not None:
        U = units.numel()
        columns = torch.full((H,), -1, dtype=torch.int32, device=device)
        columns[units.long()] = torch.arange(U, dtype=torch.int32, device=device)
    cells = None if cells_dtype is None else torch.empty(T, B, U, dtype=cells_dtype, device=device)

    if isinstance(tile, SmallTile):
        if weight_ih is not None:
            raise ValueError("weight_ih: expected None for a small-batch tile, which reads the input product")
        state = state.zero_() if c0 is None else state.copy_(c0)
        run_small_batch(
            inputs.contiguous(),
            weight_hh.contiguous(),
            h.new_zeros(B, H) if h0 is None else h0.contiguous(),
            state,
            h,
            ids=None if ids is None else ids.contiguous(),
            resets=None if resets is None else resets.contiguous(),
            gates=gates,
            cells=cells,
            columns=columns,
            tile=tile,
            persistent=persistent,
        )
        return TritonForward(h, state, cells, gates)

    batch_tiles = -(-B // tile.block_b)
    programs, launches = batch_tiles * -(-H // tile.block_h), [(t, t + 1) for t in range(T)]
    counters = None
    if persistent:
        programs, launches = min(programs, resident_programs(device)), [(0, T)]
        counters = zero_counters(batch_tiles, device)
    given = (inputs, ids, resets, weight_ih, bias_ih, bias_hh, weight_hh, h0, c0)
    tensors = [None if tensor is None else tensor.contiguous() for tensor in given]
    tensors += (state, h, h_n, gates, cells, columns, counters)
    I, block_i = input_block(weight_ih, tile)
    blocks = (tile.block_b, tile.block_h, tile.block_k, block_i)
    constants = (H, I, *blocks, tile.stages, tile.input_stages, dot_precision(dtype), tile.serpentine)
    for steps in launches:
        launch(
            *(lstm_forward_kernel, programs, tensors, (*steps, B, U), constants),
            num_warps=tile.warps,
            launch_cooperative_grid=persistent,
        )
    return TritonForward(h, state, cells, gates, h_n)
