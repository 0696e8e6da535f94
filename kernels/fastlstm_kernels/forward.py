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
    PROGRAMS,
    SmallTile,
    Tile,
    capability_of,
    dot_precision,
    forward_tile,
    resident_programs,
    small_batch_tile,
)
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
def _step(
    inputs,
    ids,
    resets,
    weight,
    h0,
    state,
    h,
    gates,
    cells,
    columns,
    counter,
    target,
    t,
    B,
    U,
    tile,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    CHOSEN: tl.constexpr,
    PERSISTENT: tl.constexpr,
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
    keep = live
    step_row = (tl.zeros((), tl.int64) + t) * B
    if HAS_RESETS:
        keep = live & (tl.load(resets + step_row + b, mask=live, other=1) == 0)
    z_mask = live[:, None] & (gate_unit < H)[None, :]
    unit_mask = live[:, None] & (units < H)[None, :]
    x_row = step_row + b
    if HAS_IDS:
        x_row = tl.load(ids + x_row, mask=live, other=0).to(tl.int64)
    x_pointers = inputs + x_row[:, None] * (4 * H) + gate_row[None, :]
    state_pointers = state + b[:, None] * H + units[None, :]

    # What does not depend on the step before is fetched before waiting for it; the sum starts from the inputs.
    acc = tl.load(x_pointers, mask=z_mask, other=0.0).to(tl.float32)
    c_prev = tl.load(state_pointers, mask=unit_mask & keep[:, None], other=0.0)
    if PERSISTENT:
        wait(counter, target)

    h_prev = tl.where(t == 0, h0, h + (step_row - B) * H)
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
    if PERSISTENT:
        arrive(counter)

    # No other program reads these, so they are written while the others already go on.
    tl.store(state_pointers, c, mask=unit_mask)
    if SAVE_GATES:
        gate_pointers = gates + (step_row + b)[:, None] * (4 * H) + gate_row[None, :]
        tl.store(gate_pointers, activated.to(gates.dtype.element_ty), mask=z_mask)
    if SAVE_CELLS:
        if CHOSEN:
            column = tl.load(columns + units, mask=units < H, other=-1)
            cell_pointers = cells + (step_row + b)[:, None] * U + column[None, :]
            tl.store(cell_pointers, c.to(cells.dtype.element_ty), mask=unit_mask & (column >= 0)[None, :])
        else:
            cell_pointers = cells + (step_row + b)[:, None] * H + units[None, :]
            tl.store(cell_pointers, c.to(cells.dtype.element_ty), mask=unit_mask)
    if PERSISTENT:
        tl.debug_barrier()  # the next step's load of state may be another thread's


@triton.jit(do_not_specialize=["t_begin", "t_end", "B", "U"])
def lstm_forward_kernel(
    inputs,  # (T, B, 4H), or a table (V, 4H) with HAS_IDS
    ids,  # (T, B) uint8
    resets,  # (T, B) bool
    weight,  # (4H, H)
    h0,  # (B, H)
    state,  # (B, H) float32: c_{t_begin - 1} on entry, c_{t_end - 1} on return
    h,  # (T, B, H)
    gates,  # (T, B, 4H), activated
    cells,  # (T, B, H), or (T, B, U) with CHOSEN
    columns,  # (H,) int32: column of each unit in cells, or -1
    counters,  # one for each batch tile, zero
    t_begin,
    t_end,
    B,
    U,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_RESETS: tl.constexpr,
    SAVE_GATES: tl.constexpr,
    SAVE_CELLS: tl.constexpr,
    CHOSEN: tl.constexpr,
    PERSISTENT: tl.constexpr,
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
                weight,
                h0,
                state,
                h,
                gates,
                cells,
                columns,
                counters + tile % batch_tiles * COUNTER_STRIDE,
                (t - t_begin) * unit_tiles,
                t,
                B,
                U,
                tile,
                H,
                BLOCK_B,
                BLOCK_H,
                BLOCK_K,
                STAGES,
                PRECISION,
                HAS_IDS,
                HAS_RESETS,
                SAVE_GATES,
                SAVE_CELLS,
                CHOSEN,
                PERSISTENT,
                SERPENTINE,
            )


class TritonForward(NamedTuple):
    """h (T, B, H) in the weights' dtype; the last c (B, H) float32; cells and gates if they were asked for."""

    h: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None


def lstm_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    ids: Tensor | None = None,
    resets: Tensor | None = None,
    save_gates: bool = False,
    cells_dtype: torch.dtype | None = None,
    units: Tensor | None = None,
    tile: Tile | SmallTile | None = None,
    persistent: bool | None = None,
) -> TritonForward:
    """Run one layer over T steps; arguments as in ``reference.lstm_forward``, in float32, float16 or bfloat16.

    ``save_gates`` keeps the activated gates (T, B, 4H) in the weights' dtype, which the backward needs.
    ``cells_dtype`` asks for every c_t, (T, B, H) in that dtype (the backward wants float32), or (T, B, U) of the
    chosen ``units`` (U,), each at most once. ``tile`` overrides the launch tables; a ``SmallTile`` means the kernel of
    ``small_batch``, whose programs must all run at the same time, in float16 or bfloat16 with H in multiples of 8.
    ``persistent``: all steps in one launch (None: on a GPU yes, in the interpreter no). Raises what ``check_shapes``
    raises.
    """
    T, B, H = check_shapes(inputs, ids, weight_hh, h0, c0, resets)
    if weight_hh.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"weight_hh: expected float32, float16 or bfloat16, got {weight_hh.dtype}")
    if tile is None:
        size = (H, B, weight_hh.dtype, capability_of(weight_hh.device))
        resident = resident_programs(weight_hh.device) if weight_hh.is_cuda else PROGRAMS
        tile = small_batch_tile(*size, resident) or forward_tile(*size)
    persistent = weight_hh.is_cuda if persistent is None else persistent
    inputs, weight_hh, h0 = inputs.contiguous(), weight_hh.contiguous(), h0.contiguous()
    ids = None if ids is None else ids.contiguous()
    resets = None if resets is None else resets.contiguous()

    h = torch.empty(T, B, H, dtype=weight_hh.dtype, device=weight_hh.device)
    state = c0.clone(memory_format=torch.contiguous_format)
    gates = torch.empty(T, B, 4 * H, dtype=h.dtype, device=h.device) if save_gates else None
    columns, U = None, H
    if units is not None:
        U = units.numel()
        columns = torch.full((H,), -1, dtype=torch.int32, device=h.device)
        columns[units.long()] = torch.arange(U, dtype=torch.int32, device=h.device)
    cells = None if cells_dtype is None else torch.empty(T, B, U, dtype=cells_dtype, device=h.device)

    if isinstance(tile, SmallTile):
        run_small_batch(
            *(inputs, weight_hh, h0, state, h),
            ids=ids,
            resets=resets,
            gates=gates,
            cells=cells,
            columns=columns,
            tile=tile,
            persistent=persistent,
        )
        return TritonForward(h, state, cells, gates)

    batch_tiles = triton.cdiv(B, tile.block_b)
    programs, launches = batch_tiles * triton.cdiv(H, tile.block_h), [(t, t + 1) for t in range(T)]
    if persistent:
        programs, launches = min(programs, resident_programs(h.device)), [(0, T)]
    counters = zero_counters(batch_tiles, h.device)
    cooperative = {"launch_cooperative_grid": True} if persistent else {}
    for t_begin, t_end in launches:
        lstm_forward_kernel[(programs,)](
            inputs,
            ids,
            resets,
            weight_hh,
            h0,
            state,
            h,
            gates,
            cells,
            columns,
            counters,
            t_begin,
            t_end,
            B,
            U,
            H=H,
            BLOCK_B=tile.block_b,
            BLOCK_H=tile.block_h,
            BLOCK_K=tile.block_k,
            STAGES=tile.stages,
            PRECISION=dot_precision(weight_hh.dtype),
            HAS_IDS=ids is not None,
            HAS_RESETS=resets is not None,
            SAVE_GATES=save_gates,
            SAVE_CELLS=cells is not None,
            CHOSEN=units is not None,
            PERSISTENT=persistent,
            SERPENTINE=tile.serpentine,
            num_warps=tile.warps,
            **cooperative,
        )
    return TritonForward(h, state, cells, gates)
