"""Reductions of cell states over the bytes of lanes, in one pass over the states: moments, histograms, document maxima.

A program reads one lane and a block of units, step after step, so that every sum but the histogram's counts has one
owner and a fixed order: float64 sums for each lane, which the caller adds up. On a CPU plain PyTorch does the same.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_UNITS = 128
CACHED_VALUES = 1 << 17  # of a pass on a CPU: 0.07 s for 4 million values, 0.36 s in one pass (128 units, one thread)
LEAST = torch.iinfo(torch.int64).min  # a key of no state


@dataclass(frozen=True)
class Moments:
    """Running reductions of U units in B lanes; `zero` makes one.

    sums (2, B, U) float64: of x and x^2. extremes (2, B, U) float32: min and max. histogram (bins + 2, U) int32: how
    many x are below ``low``, in each of ``bins`` bins of ``width`` from there on, and above them. labelled (3, B, U)
    float64: of x, x^2 and x y over bytes with a label y. tagged (K, B, U) float64: of x over bytes with each of K tags.
    """

    sums: Tensor
    extremes: Tensor
    histogram: Tensor
    labelled: Tensor
    tagged: Tensor
    low: float
    width: float

    @classmethod
    def zero(
        cls, lanes: int, units: int, *, tags: int, low: float, width: float, bins: int, device: torch.device
    ) -> Moments:
        def zeros(count: int) -> Tensor:
            return torch.zeros(count, lanes, units, dtype=torch.float64, device=device)

        extremes = torch.full((2, lanes, units), float("inf"), device=device)
        extremes[1].neg_()
        histogram = torch.zeros(bins + 2, units, dtype=torch.int32, device=device)
        return cls(zeros(2), extremes, histogram, zeros(3), zeros(tags), low, width)


def keys_of(values: Tensor, row: Tensor) -> Tensor:
    """int64 keys that order float32 ``values`` (n, U), of equal ones the smaller ``row`` (n,) (below 2^32) greater."""
    bits = values.contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - row).unsqueeze(1)


def values_of(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The float32 values and int64 rows of ``keys_of``."""
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32), 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def accumulate_(
    moments: Moments, best: Tensor, cells: Tensor, row: Tensor, piece: Tensor, label: Tensor, tag: Tensor | None
) -> None:
    """Add the states of a window to ``moments``, and raise ``best`` to the largest state of each piece.

    ``cells`` (T, B, U) float32, float16 or bfloat16, B of the moments' lanes or fewer, the first ones; ``row`` (T, B)
    int32: negative where a byte does not count; ``piece`` (T, B) int32: which of P pieces of documents it belongs to,
    each in one lane. ``best`` (P, U) int64: ``keys_of`` the states and their rows. ``label`` (P,) float32, NaN = none;
    ``tag`` (T, B) uint8, K or more = none.
    """
    if not cells.is_cuda and not _interpreted():
        steps = max(1, CACHED_VALUES // cells[0].numel())
        for begin in range(0, len(cells), steps):
            part = slice(begin, begin + steps)
            of_tag = None if tag is None else tag[part]
            _accumulate_torch(moments, best, cells[part], row[part], piece[part], label, of_tag)
        return
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
    """Add ``cells`` (T, B, U) to ``sums`` (S, U) float32 by ``segment`` (T, B) int32, negative = none.

    A segment is a run of bytes of one lane.
    """
    if not cells.is_cuda and not _interpreted():
        inside = segment >= 0
        sums.index_add_(0, segment[inside].long(), cells[inside].float())
        return
    T, A, U = cells.shape
    segments_kernel[A, triton.cdiv(U, BLOCK_UNITS)](
        *(cells.contiguous(), segment.contiguous(), sums, T, A, U), BLOCK=BLOCK_UNITS, num_warps=4
    )


def _interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)


def _accumulate_torch(
    moments: Moments, best: Tensor, cells: Tensor, row: Tensor, piece: Tensor, label: Tensor, tag: Tensor | None
) -> None:
    A, U = cells.shape[1:]
    counts = row >= 0
    x = cells.float()
    x64 = torch.where(counts.unsqueeze(2), x.double(), 0.0)
    moments.sums[0, :A] += x64.sum(0)
    moments.sums[1, :A] += (x64 * x64).sum(0)
    y = label[piece.clamp_min(0).long()].double()
    y = torch.where(counts, y, torch.nan).unsqueeze(2)
    known = ~y.isnan()
    weight = known.double()
    moments.labelled[0, :A] += (x64 * weight).sum(0)
    moments.labelled[1, :A] += (x64 * x64 * weight).sum(0)
    moments.labelled[2, :A] += (x64 * torch.where(known, y, 0.0)).sum(0)
    if tag is not None:
        for k in range(moments.tagged.shape[0]):
            moments.tagged[k, :A] += (x64 * (counts & (tag == k)).unsqueeze(2)).sum(0)
    infinity = torch.tensor(float("inf"))
    low = torch.where(counts.unsqueeze(2), x, infinity).amin(0)
    high = torch.where(counts.unsqueeze(2), x, -infinity).amax(0)
    moments.extremes[0, :A] = torch.minimum(moments.extremes[0, :A], low)
    moments.extremes[1, :A] = torch.maximum(moments.extremes[1, :A], high)
    flat, rows = x[counts], row[counts].long()
    bins = moments.histogram.shape[0] - 2
    place = ((flat - moments.low) * (1 / moments.width)).floor().nan_to_num(-1.0).clamp(-1, bins).long() + 1
    flat_place = (place * U + torch.arange(U)).flatten()
    moments.histogram.add_(torch.bincount(flat_place, minlength=(bins + 2) * U).view(bins + 2, U))
    pieces, order = piece[counts].sort(stable=True)
    if len(order):
        first = torch.cat((pieces.new_ones(1), pieces.diff())).nonzero().flatten()
        largest = np.maximum.reduceat(keys_of(flat, rows)[order].numpy(), first.numpy(), axis=0)
        which = pieces[first].long()
        best[which] = torch.maximum(best[which], torch.from_numpy(largest))


@triton.jit
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


@triton.jit
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
