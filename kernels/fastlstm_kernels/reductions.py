"""Reductions of cell states over the bytes of lanes, in one pass over the states: moments, histograms, document maxima.

On a GPU by the kernels of `reduction_kernels.py`, on a CPU in plain PyTorch, which is the truth. Sums are float64,
for each lane, and the caller adds them up.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    from fastlstm_kernels.reduction_kernels import accumulate_ as fused

    fused(moments, best, cells, row, piece, label, tag)


def add_segments_(sums: Tensor, cells: Tensor, segment: Tensor) -> None:
    """Add ``cells`` (T, B, U) to ``sums`` (S, U) float32 by ``segment`` (T, B) int32, negative = none.

    A segment is a run of bytes of one lane.
    """
    if not cells.is_cuda and not _interpreted():
        inside = segment >= 0
        sums.index_add_(0, segment[inside].long(), cells[inside].float())
        return
    from fastlstm_kernels.reduction_kernels import add_segments_ as fused

    fused(sums, cells, segment)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


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
