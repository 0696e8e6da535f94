"""The LSTM backward recurrence in one Triton kernel: from saved gates and cells to the gradient of every z_t.

Going from step t + 1 to step t takes a product, d_gates_{t+1} W_hh, and the pointwise gradient of step t. The product
sums over 4H gates, so `split` programs share the sum of one tile: each leaves a float32 partial in global memory, and
after a barrier every program finishes its share of the (B, H) units, adding the partials in a fixed order: two runs
are bit-equal.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.activations import tanh
from fastlstm_kernels.forward import add_product
from fastlstm_kernels.grid import COUNTER_STRIDE, arrive, wait, zero_counters
from fastlstm_kernels.launch import Tile, backward_tile, capability_of, dot_precision, finish_tile, resident_programs
from fastlstm_kernels.launcher import launch
from fastlstm_kernels.reference import Backward


@triton.jit
def _product(
    d_gates,
    weight,
    t,
    terms,
    part,
    B,
    b,
    live,
    units,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    SHARE: tl.constexpr,
    MASK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    SERPENTINE: tl.constexpr,
):
    """The first ``terms`` terms of share ``part`` of d_gates[t] W_hh: (BLOCK_B, BLOCK_H) float32."""
    # Every other step goes through the weights backwards, so that it begins with those still in the L2 cache.
    k_first, k_step = 0, BLOCK_K
    if SERPENTINE:
        k_first = tl.where(t % 2 == 0, 0, SHARE - BLOCK_K)
        k_step = tl.where(t % 2 == 0, BLOCK_K, -BLOCK_K)
    k = part * SHARE + k_first + tl.arange(0, BLOCK_K)
    d_row = (tl.zeros((), tl.int64) + t) * B + b
    d_pointers = d_gates + d_row[:, None] * (4 * H) + k[None, :]
    w_pointers = weight + k.to(tl.int64)[:, None] * H + units[None, :]
    acc = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    for _ in tl.range(0, terms, BLOCK_K, num_stages=STAGES):
        d_mask = live[:, None]
        if MASK_K:
            d_mask = d_mask & (k < 4 * H)[None, :]
        # .cg: past the L1 cache, which does not see what other programs write.
        d_tile = tl.load(d_pointers, mask=d_mask, other=0.0, cache_modifier=".cg")
        if MASK_K or H % BLOCK_H != 0:
            w_tile = tl.load(w_pointers, mask=(k < 4 * H)[:, None] & (units < H)[None, :], other=0.0)
        else:
            w_tile = tl.load(w_pointers)
        acc = add_product(acc, d_tile, w_tile, PRECISION)
        k += k_step
        d_pointers += k_step
        w_pointers += k_step * H
    return acc


@triton.jit
def _kept(resets, t, T, B, b, live):
    """Sequences that go from step t - 1 into step t without a reset."""
    keep = live
    if resets is not None:
        row = (tl.zeros((), tl.int64) + t) * B
        keep = live & (tl.load(resets + row + b, mask=live & (t < T), other=0) == 0)
    return keep


@triton.jit
def _finish(
    dh,
    dc,
    gates,
    cells,
    c0,
    resets,
    d_gates,
    dc_state,
    partials,
    products,
    products_target,
    finished,
    t,
    T,
    B,
    b,
    live,
    units,
    H: tl.constexpr,
    SPLIT: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """Gradient of z_t; ``dc_state`` (B, H) becomes what step t sends back to c_{t-1}, before a reset cuts it."""
    mask = live[:, None] & (units < H)[None, :]
    at = b[:, None] * H + units[None, :]
    row = (tl.zeros((), tl.int64) + t) * B
    gate_at = (row + b)[:, None] * (4 * H) + units[None, :]
    from_before = _kept(resets, t, T, B, b, live)
    to_next = _kept(resets, t + 1, T, B, b, live)

    # What does not depend on the product is asked for before waiting for it: it comes from far away.
    i = tl.load(gates + gate_at, mask=mask, other=0.0).to(tl.float32)
    f = tl.load(gates + gate_at + H, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(gates + gate_at + 2 * H, mask=mask, other=0.0).to(tl.float32)
    o = tl.load(gates + gate_at + 3 * H, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(cells + row * H + at, mask=mask, other=0.0)
    before = tl.where(t == 0, c0, cells + (row - B) * H)
    c_prev = tl.load(before + at, mask=mask & from_before[:, None], other=0.0)
    dc_t = tl.load(dc_state + at, mask=mask & to_next[:, None], other=0.0)
    if dc is not None:
        dc_t += tl.load(dc + row * H + at, mask=mask, other=0.0).to(tl.float32)
    dh_t = tl.zeros_like(dc_t)
    if dh is not None:
        dh_t += tl.load(dh + row * H + at, mask=mask, other=0.0).to(tl.float32)
    if PERSISTENT:
        wait(products, products_target)
    back = tl.zeros_like(dc_t)
    for part in tl.static_range(SPLIT):
        plane = (tl.zeros((), tl.int64) + part) * B * H
        back += tl.load(partials + plane + at, mask=mask & to_next[:, None], other=0.0, cache_modifier=".cg")

    dh_t += back
    tanh_c = tanh(c)
    dc_t += dh_t * o * (1.0 - tanh_c * tanh_c)
    element = d_gates.dtype.element_ty
    tl.store(d_gates + gate_at, (dc_t * g * i * (1.0 - i)).to(element), mask=mask)
    tl.store(d_gates + gate_at + H, (dc_t * c_prev * f * (1.0 - f)).to(element), mask=mask)
    tl.store(d_gates + gate_at + 2 * H, (dc_t * i * (1.0 - g * g)).to(element), mask=mask)
    tl.store(d_gates + gate_at + 3 * H, (dh_t * tanh_c * o * (1.0 - o)).to(element), mask=mask)
    if PERSISTENT:
        arrive(finished)
    tl.store(dc_state + at, dc_t * f, mask=mask)
    if PERSISTENT:
        tl.debug_barrier()  # the next round's load of dc_state may be another thread's


# An argument that is None is one that the call does without, as in forward.py.
@triton.jit(do_not_specialize=["n_begin", "n_end", "T", "B"])
def lstm_backward_kernel(
    dh,  # (T, B, H)
    dc,  # (T, B, H)
    gates,  # (T, B, 4H), activated
    cells,  # (T, B, H) float32
    c0,  # (B, H) float32
    weight,  # (4H, H)
    resets,  # (T, B) bool
    d_gates,  # (T, B, 4H)
    dc_state,  # (B, H) float32, at first the gradient of the last c
    partials,  # (SPLIT, B, H) float32; after round T their sum is the gradient of h_{-1}
    products,  # counters, one for each batch tile, zero: partials written
    finished,  # likewise: tiles of d_gates written
    n_begin,
    n_end,
    T,
    B,
    H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FINISH_B: tl.constexpr,
    FINISH_H: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    PRODUCT: tl.constexpr,
    FINISH: tl.constexpr,
    PERSISTENT: tl.constexpr,
    SERPENTINE: tl.constexpr,
):
    """Rounds n_begin to n_end of T + 1: round n multiplies d_gates of step T - n and finishes step T - 1 - n.

    Round 0 has nothing to multiply (its partials are zeros), round T nothing to finish.
    """
    SHARE: tl.constexpr = ((4 * H + BLOCK_K * SPLIT - 1) // (BLOCK_K * SPLIT)) * BLOCK_K
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    batch_tiles = tl.cdiv(B, BLOCK_B)
    unit_shares = tl.cdiv(H, BLOCK_H) * SPLIT
    finish_batch_tiles = tl.cdiv(B, FINISH_B)
    finish_unit_tiles = tl.cdiv(H, FINISH_H)
    for n in range(n_begin, n_end):
        t = T - 1 - n
        if PRODUCT:
            for share in range(pid, batch_tiles * unit_shares, programs):
                part = share % SPLIT
                tile = share // SPLIT
                group = tile % batch_tiles
                rows = group * BLOCK_B + tl.arange(0, BLOCK_B)
                units = (tile // batch_tiles) * BLOCK_H + tl.arange(0, BLOCK_H)
                live = rows < B
                b = tl.where(live, rows, 0).to(tl.int64)
                if PERSISTENT:
                    group_rows = tl.minimum(B - group * BLOCK_B, BLOCK_B)
                    group_tiles = tl.cdiv(group_rows, FINISH_B) * finish_unit_tiles
                    wait(finished + group * COUNTER_STRIDE, (n - n_begin) * group_tiles)
                acc = _product(
                    d_gates,
                    weight,
                    t + 1,
                    tl.where(n > 0, SHARE, 0),
                    part,
                    B,
                    b,
                    live,
                    units,
                    H,
                    BLOCK_B,
                    BLOCK_H,
                    BLOCK_K,
                    STAGES,
                    SHARE,
                    SHARE * SPLIT != 4 * H,
                    PRECISION,
                    SERPENTINE,
                )
                at = ((tl.zeros((), tl.int64) + part) * B + b)[:, None] * H + units[None, :]
                tl.store(partials + at, acc, mask=live[:, None] & (units < H)[None, :])
                if PERSISTENT:
                    arrive(products + group * COUNTER_STRIDE)
        if FINISH and t >= 0:
            for tile in range(pid, finish_batch_tiles * finish_unit_tiles, programs):
                rows = (tile % finish_batch_tiles) * FINISH_B + tl.arange(0, FINISH_B)
                units = (tile // finish_batch_tiles) * FINISH_H + tl.arange(0, FINISH_H)
                live = rows < B
                group = (tile % finish_batch_tiles) * FINISH_B // BLOCK_B
                _finish(
                    dh,
                    dc,
                    gates,
                    cells,
                    c0,
                    resets,
                    d_gates,
                    dc_state,
                    partials,
                    products + group * COUNTER_STRIDE,
                    (n - n_begin + 1) * unit_shares,
                    finished + group * COUNTER_STRIDE,
                    t,
                    T,
                    B,
                    tl.where(live, rows, 0).to(tl.int64),
                    live,
                    units,
                    H,
                    SPLIT,
                    PERSISTENT,
                )


def lstm_backward(
    dh: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    c: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    *,
    dc_n: Tensor | None = None,
    resets: Tensor | None = None,
    tile: Tile | None = None,
    persistent: bool | None = None,
) -> Backward:
    """Gradients of the recurrence: d_gates (T, B, 4H) in the weights' dtype, dh0 and dc0 (B, H) float32.

    ``dh`` and ``dc`` (T, B, H), either may be None; ``gates`` (T, B, 4H) and ``c`` (T, B, H) float32 as
    ``forward.lstm_forward`` saved them; ``c0`` (B, H) float32; ``weight_hh`` (4H, H); ``dc_n`` (B, H), the gradient of
    the last c as a value of its own, or None; ``resets`` (T, B) bool or None.
    ``tile`` overrides the launch table. ``persistent``: all steps in one launch (None: on a GPU yes, in the interpreter
    no).
    """
    T, B, H = c.shape
    tile = tile or backward_tile(H, B, weight_hh.dtype, capability_of(weight_hh.device))
    persistent = weight_hh.is_cuda if persistent is None else persistent
    dh = None if dh is None else dh.contiguous()
    dc = None if dc is None else dc.contiguous()
    resets = None if resets is None else resets.contiguous()
    gates, c, c0, weight_hh = gates.contiguous(), c.contiguous(), c0.contiguous(), weight_hh.contiguous()

    device = weight_hh.device
    d_gates = torch.empty(T, B, 4 * H, dtype=weight_hh.dtype, device=device)
    dc_state = torch.zeros(B, H, dtype=torch.float32, device=device)
    if dc_n is not None:
        dc_state.copy_(dc_n)
    partials = torch.empty(tile.split, B, H, dtype=torch.float32, device=device)

    batch_tiles = triton.cdiv(B, tile.block_b)
    shares = batch_tiles * triton.cdiv(H, tile.block_h) * tile.split
    finish_b, finish_h = finish_tile(H, B, tile)
    finish_tiles = triton.cdiv(B, finish_b) * triton.cdiv(H, finish_h)
    products, finished = zero_counters(2 * batch_tiles, device).chunk(2)
    if persistent:
        launches = [(0, T + 1, True, True, min(max(shares, finish_tiles), resident_programs(device)))]
    else:
        product_launches = [(n, n + 1, True, False, shares) for n in range(T + 1)]
        finish_launches = [(n, n + 1, False, True, finish_tiles) for n in range(T + 1)]
        launches = [launch for pair in zip(product_launches, finish_launches, strict=True) for launch in pair]
    tensors = (dh, dc, gates, c, c0, weight_hh, resets, d_gates, dc_state, partials, products, finished)
    blocks = (tile.block_b, tile.block_h, tile.block_k, finish_b, finish_h)
    constants = (H, *blocks, tile.stages, tile.split, dot_precision(weight_hh.dtype))
    for n_begin, n_end, product, finish, programs in launches:
        launch(
            *(lstm_backward_kernel, programs, tensors, (n_begin, n_end, T, B)),
            (*constants, product, finish, persistent, tile.serpentine),
            num_warps=tile.warps,
            launch_cooperative_grid=persistent,
        )
    dh0 = partials.sum(0)
    if resets is not None:
        first = resets[0].unsqueeze(1)
        dh0, dc_state = dh0.masked_fill(first, 0), dc_state.masked_fill(first, 0)
    return Backward(d_gates, dh0, dc_state)
