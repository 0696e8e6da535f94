"""Rows that are means over documents or words, from sums of their bytes' states on the model's device."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm.states.packing import Packed, Window
from fastlstm.states.shards import GroupBuffer
from fastlstm_kernels.reductions import add_segments_

PUT_ROWS = 1 << 16  # at once: no second array of all of them


class MeanRows:
    """Puts a group's means into its ``buffer``. Sums are float32, (rows of a batch, U) at once."""

    def __init__(self, buffer: GroupBuffer) -> None:
        self._buffer = buffer
        self._sums: Tensor | None = None
        self._cut: tuple[Tensor, Tensor] | None = None  # sum (U,) and size of what the batch before did not finish

    def take(self, cells: Tensor, packed: Packed, window: Window) -> None:
        """Add the states of a window, and put the rows of a batch that ends with it."""
        segments = packed.segments
        assert segments is not None
        if self._sums is None:
            self._sums = torch.zeros(len(segments.size), cells.shape[2], device=cells.device)
            if self._cut is not None:
                self._sums[0] += self._cut[0]
        add_segments_(self._sums, cells, segments.segment[window.begin : window.end, : window.lanes])
        if window is not packed.windows[-1]:
            return
        size = segments.size.float()
        if self._cut is not None:
            size[0] += self._cut[1]
        rows = len(size) - 1
        for first in range(0, rows, PUT_ROWS):
            last = min(first + PUT_ROWS, rows)
            means = (self._sums[first:last] / size[first:last, None]).to(cells.dtype)
            row = torch.arange(segments.first_row + first, segments.first_row + last, device=size.device)
            self._buffer.put(means, None, row)
        self._cut = (self._sums[-1], size[-1]) if packed.out is not None else None
        self._sums = None
