"""Statistics of cell states (`statistics.py`) from what the groups of a dump add to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from fastlstm.states.packing import Packed, Window
from fastlstm.states.schema import STATISTICS
from fastlstm.states.statistics import BINS, CONTEXT, LOW, STORED, TOP, WIDTH, Arrays
from fastlstm.states.storage import Storage
from fastlstm.states.text import Text
from fastlstm.states.writer import write_array
from fastlstm_kernels.reductions import LEAST, Moments, accumulate_, values_of

ADDED = (
    *("count", "sum", "sum_squares", "histogram", "label_sums"),
    *("labelled_sum", "labelled_sum_squares", "labelled_cross", "tag_count", "tag_sum"),
)


class GroupStatistics:
    """What a group adds to the statistics, gathered on the model's device."""

    def __init__(self, lanes: int, units: int, tags: int, device: torch.device) -> None:
        self._moments = Moments.zero(lanes, units, tags=tags, low=LOW, width=WIDTH, bins=BINS, device=device)
        self._labels = torch.zeros(3, dtype=torch.float64, device=device)
        self._tags = torch.zeros(tags, dtype=torch.int64, device=device)
        self._best: Tensor | None = None
        self._top: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, cells: Tensor, packed: Packed, window: Window) -> None:
        """Add the rows among the states of a window."""
        pieces = packed.pieces
        assert pieces is not None
        steps = slice(window.begin, window.end), slice(window.lanes)
        row, piece = pieces.row[steps], pieces.piece[steps]
        tag = None if pieces.tag is None else pieces.tag[steps]
        if self._best is None:
            self._best = torch.full((len(pieces.document), cells.shape[2]), LEAST, device=cells.device)
        accumulate_(self._moments, self._best, cells, row, piece, pieces.label, tag)
        counts = row >= 0
        y = pieces.label[piece.long()].double()
        known = counts & ~y.isnan()
        y = torch.where(known, y, 0.0)
        self._labels += torch.stack([known.sum().double(), y.sum(), (y * y).sum()])
        if tag is not None and len(self._tags):
            tagged = torch.where(counts, tag.long(), 255).flatten()
            self._tags += torch.zeros(256, dtype=torch.int64, device=y.device).index_add_(
                0, tagged, torch.ones_like(tagged)
            )[: len(self._tags)]
        if window is packed.windows[-1]:
            keys, at = self._best.topk(min(TOP, len(self._best)), dim=0)
            value, of_row = values_of(keys)
            document = torch.where(keys == LEAST, -1, pieces.document[at])
            self._top.append((torch.where(keys == LEAST, -torch.inf, value), of_row, document))
            self._best = None

    def left(self, first_row: int, rows: int) -> dict[str, Tensor]:
        """The tensors of the group (statistics as above; rows of the store in place of positions), on the device."""
        moments = self._moments
        total = moments.sums.sum(1)
        labelled = moments.labelled.sum(1)
        if self._top:
            value, row, document = (torch.cat(parts) for parts in zip(*self._top, strict=True))
        else:
            value, row, document = (moments.sums.new_empty(0, moments.sums.shape[2]) for _ in range(3))
        return {
            "count": torch.tensor(rows),
            "sum": total[0],
            "sum_squares": total[1],
            "minimum": moments.extremes[0].amin(0),
            "maximum": moments.extremes[1].amax(0),
            "histogram": moments.histogram.T.long(),
            "label_sums": self._labels,
            "labelled_sum": labelled[0],
            "labelled_sum_squares": labelled[1],
            "labelled_cross": labelled[2],
            "tag_count": self._tags,
            "tag_sum": moments.tagged.sum(1),
            "top_value": value.float(),
            "top_row": row.long() + first_row,
            "top_document": document.long(),
        }


def joined(groups: Iterable[Mapping[str, Tensor]]) -> Arrays:
    """The statistics of groups in their order."""
    whole: Arrays = {}
    for group in groups:
        part = {name: tensor.numpy() for name, tensor in group.items() if name not in ("h", "c")}
        if not whole:
            whole = part
        else:
            for name in ADDED:
                whole[name] = whole[name] + part[name]
            whole["minimum"] = np.minimum(whole["minimum"], part["minimum"])
            whole["maximum"] = np.maximum(whole["maximum"], part["maximum"])
            for name in ("top_value", "top_row", "top_document"):
                whole[name] = np.concatenate([whole[name], part[name]])
        top = largest(whole["top_value"], whole["top_row"], whole["top_document"])
        whole["top_value"], whole["top_row"], whole["top_document"] = top
    return whole


def largest(value: Any, row: Any, document: Any) -> tuple[Any, Any, Any]:
    """Of states (n, U) the `TOP` largest of each unit, of different documents, falling, of equal ones the first.

    Document -1: none.
    """
    while True:
        order = np.lexsort((row, -value, document < 0), axis=0)
        value, row, document = (np.take_along_axis(part, order, 0) for part in (value, row, document))
        again = np.zeros(document.shape, bool)
        for i in range(1, len(document)):
            again[i] = ((document[:i] == document[i]) & (document[i] >= 0)).any(0)
        if not again.any():
            return value[:TOP], row[:TOP], document[:TOP]
        document = np.where(again, -1, document)
        value = np.where(again, -np.inf, value)


def write_statistics(store: Storage, found: Arrays, text: Text, position_of: Callable[[int], int]) -> None:
    """Write the joined statistics of a whole dump into ``store``; ``position_of`` gives the byte of a row."""
    value, row, document = found["top_value"], found["top_row"], found["top_document"]
    missing = TOP - len(value)
    value = np.pad(np.where(document < 0, np.nan, value), ((0, missing), (0, 0)), constant_values=np.nan)
    document = np.pad(document, ((0, missing), (0, 0)), constant_values=-1)
    row = np.pad(row, ((0, missing), (0, 0)))
    there = document >= 0
    rows, inverse = np.unique(row[there], return_inverse=True)
    position = np.full(row.shape, -1)
    position[there] = np.array([position_of(int(i)) for i in rows], np.int64)[inverse]
    context = np.zeros((*row.shape, CONTEXT), np.uint8)
    for at in zip(*there.nonzero(), strict=True):
        end = int(position[at]) + 1
        begin = max(end - CONTEXT, int(text.document_offset[document[at]]))
        context[at][CONTEXT - (end - begin) :] = text.read(begin, end)
    arrays = {name: array for name, array in found.items() if name in STORED}
    arrays |= {"edges": LOW + WIDTH * np.arange(BINS + 1), "top_value": value, "top_position": position}
    arrays |= {"top_document": document, "top_context": context}
    with store.naming():
        group = zarr.open_group(store.zarr(read_only=False), mode="r+", zarr_format=3)
        statistics = group.create_group(STATISTICS, overwrite=True, attributes={"count": int(found["count"])})
        for name, dtype in STORED.items():
            if len(arrays[name]):
                write_array(statistics, name, arrays[name], dtype)
