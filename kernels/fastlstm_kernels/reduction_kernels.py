"""Triton kernels of `reductions.py`.

A program reads one lane and a block of units, step after step, so that every sum but the histogram's counts has one
owner and a fixed order.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.reductions import Moments

BLOCK_UNITS = 128


def accumulate_(
    moments: Moments, best: Tensor, cells: Tensor, row: Tensor, piece: Tensor, label: Tensor, tag: Tensor | None
) -> None:
    """`reductions.accumulate_`."""
    T, A, U = cells.shape
    K, B = moments.tagged.shape[0], moments.sums.shape[1]
    cells, row, piece = cells.contiguous(), row.contiguous(), piece.contiguous()
    tag = row if tag is None else tag.contiguous()  # not looked at
    accumulate_kernel[A, triton.cdiv(U, BLOCK_UNITS)](
        *(cells, row, piece, label, tag, moments.sums, moments.extremes, moments.histogram, moments.labelled),
        *(moments.tagged, best, T, A, B, U, K, moments.low, 1 / moments.width),
        BINS=moments.histogram.shape[0] - 2,
        TAGS=K > 0,
        BLOCK=BLOCK_UNITS,
        num_warps=4,
    )


def add_segments_(sums: Tensor, cells: Tensor, segment: Tensor) -> None:
    """`reductions.add_segments_`."""
    T, A, U = cells.shape
    segments_kernel[A, triton.cdiv(U, BLOCK_UNITS)](
        *(cells.contiguous(), segment.contiguous(), sums, T, A, U), BLOCK=BLOCK_UNITS, num_warps=4
    )


@triton.jit(
    do_not_specialize=["T", "A", "B", "K"],
    do_not_specialize_on_alignment=["cells", "row", "piece", "label", "tag", "best"],
)
def accumulate_kernel(
    cells,
    row,
    piece,
    label,
    tag,
    sums,
    extremes,
    histogram,
    labelled,
    tagged,
    best,
    T,
    A,
    B,
    U,
    K,
    low,
    scale,
    BINS: tl.constexpr,
    TAGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = unit < U
    own = lane * U + unit
    part = tl.cast(B, tl.int64) * U  # from one sum to the next
    sum_x = tl.load(sums + own, mask=live)
    sum_xx = tl.load(sums + part + own, mask=live)
    smallest = tl.load(extremes + own, mask=live)
    largest = tl.load(extremes + part + own, mask=live)
    with_label = tl.load(labelled + own, mask=live)
    with_label_xx = tl.load(labelled + part + own, mask=live)
    with_label_xy = tl.load(labelled + 2 * part + own, mask=live)

    current = -1
    y = 0.0
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    top_row = tl.zeros((BLOCK,), tl.int32)
    for t in range(T):
        at = tl.cast(t, tl.int64) * A + lane
        x = tl.load(cells + at * U + unit, mask=live, other=0.0).to(tl.float32)
        r = tl.load(row + at)
        p = tl.load(piece + at)
        if r >= 0:
            if p != current:
                if current >= 0:
                    _raise(best, current, U, unit, live, top, top_row)
                current = p
                y = tl.load(label + p)
                top = tl.full((BLOCK,), float("-inf"), tl.float32)
                top_row = tl.zeros((BLOCK,), tl.int32)
            x64 = x.to(tl.float64)
            sum_x += x64
            sum_xx += x64 * x64
            smallest = tl.minimum(smallest, x)
            largest = tl.maximum(largest, x)
            if y == y:  # not NaN
                with_label += x64
                with_label_xx += x64 * x64
                with_label_xy += x64 * y
            bin = tl.where(x == x, tl.floor((x - low) * scale), -1.0)  # NaN has no integer, and must be somewhere
            place = tl.minimum(tl.maximum(bin, -1.0), BINS * 1.0).to(tl.int32) + 1
            one = tl.full((BLOCK,), 1, tl.int32)
            tl.atomic_add(histogram + tl.cast(place, tl.int64) * U + unit, one, mask=live, sem="relaxed")
            if TAGS:
                k = tl.load(tag + at).to(tl.int32)
                if k < K:
                    mine = tagged + k * part + own
                    tl.store(mine, tl.load(mine, mask=live) + x64, mask=live)
            better = x > top
            top = tl.where(better, x, top)
            top_row = tl.where(better, r, top_row)
    if current >= 0:
        _raise(best, current, U, unit, live, top, top_row)

    tl.store(sums + own, sum_x, mask=live)
    tl.store(sums + part + own, sum_xx, mask=live)
    tl.store(extremes + own, smallest, mask=live)
    tl.store(extremes + part + own, largest, mask=live)
    tl.store(labelled + own, with_label, mask=live)
    tl.store(labelled + part + own, with_label_xx, mask=live)
    tl.store(labelled + 2 * part + own, with_label_xy, mask=live)


@triton.jit
def _raise(best, piece, U, unit, live, top, top_row):
    """The larger of what ``best`` has for a piece, and ``keys_of`` this; no other program has the piece."""
    bits = top.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - top_row.to(tl.int64))
    mine = best + tl.cast(piece, tl.int64) * U + unit
    tl.store(mine, tl.maximum(tl.load(mine, mask=live), key), mask=live)


@triton.jit(do_not_specialize=["T", "A"], do_not_specialize_on_alignment=["cells", "segment"])
def segments_kernel(cells, segment, sums, T, A, U, BLOCK: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = unit < U
    current = -1
    total = tl.zeros((BLOCK,), tl.float32)
    for t in range(T):
        at = tl.cast(t, tl.int64) * A + lane
        x = tl.load(cells + at * U + unit, mask=live, other=0.0).to(tl.float32)
        s = tl.load(segment + at)
        if s != current:
            if current >= 0:
                mine = sums + tl.cast(current, tl.int64) * U + unit
                tl.store(mine, tl.load(mine, mask=live) + total, mask=live)
            current = s
            total = tl.zeros((BLOCK,), tl.float32)
        total += x
    if current >= 0:
        mine = sums + tl.cast(current, tl.int64) * U + unit
        tl.store(mine, tl.load(mine, mask=live) + total, mask=live)
