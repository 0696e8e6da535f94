"""Batches of text on the device: pieces of documents packed into lanes.

The host plans which piece goes where and sends bytes and positions; what is needed of each byte (which row it is, where
a document begins) is worked out on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fastlstm.states.plan import Batch, Group, pack, plan_batches
from fastlstm.states.rows import RowRule
from fastlstm.states.text import Integers, Text

# T * B * H of the cell states that exist at once: a CPU should have them in its cache, on a GPU a call should be long.
WINDOW_VALUES = {"cpu": 1 << 22, "cuda": 1 << 28}
MIN_STEPS, MAX_STEPS = 16, 1024


@dataclass(frozen=True)
class Window:
    """Steps begin:end of the first ``lanes`` lanes, and the entries first:last of a batch's rows that lie in them."""

    begin: int
    end: int
    lanes: int
    first: int
    last: int


@dataclass(frozen=True)
class Pieces:
    """For statistics: which documents the bytes of a batch belong to.

    row (T, B) int32: negative where a byte is no row; piece (T, B) int32: index into the others; document (P,) int64;
    label (P,) float32, NaN = none; tag (T, B) uint8, 255 = none, or None without words.
    """

    row: Tensor
    piece: Tensor
    document: Tensor
    label: Tensor
    tag: Tensor | None


@dataclass(frozen=True)
class Segments:
    """For means: which bytes each row is the mean of.

    segment (T, B) int32: from 0 on, negative = of none; size (R + 1,) int64: bytes of each. Segment i is the row
    first_row + i of the group; the last one, of size 0 or more, is what goes on in the next batch.
    """

    segment: Tensor
    size: Tensor
    first_row: int


@dataclass(frozen=True)
class Packed:
    """A batch of ``group`` (``last``: its last one) on the device.

    ids (T, B) uint8; resets (T, B) bool; where (n,) int64: the rows' places t * B + b, ascending; row (n,) int64: which
    row of the group each is. carry_lane: the lane that the state carried in begins with; out: step and lane after which
    the state is carried out. size: bytes of text, read or passed over.
    """

    group: Group
    last: bool
    ids: Tensor
    resets: Tensor
    where: Tensor
    row: Tensor
    windows: tuple[Window, ...]
    carry_lane: int | None
    out: tuple[int, int] | None
    size: int
    pieces: Pieces | None
    segments: Segments | None

    def rows(self, window: Window) -> tuple[Tensor | None, Tensor]:
        """The rows in ``window``: places (n,) t * lanes + b among its states, None = all, and which of the group."""
        row = self.row[window.first : window.last]
        if len(row) == (window.end - window.begin) * window.lanes:
            return None, row
        lanes = self.ids.shape[1]
        where = self.where[window.first : window.last] - window.begin * lanes
        if window.lanes < lanes:
            where = where // lanes * window.lanes + where % lanes
        return where, row

    def record(self, stream: torch.cuda.Stream) -> None:
        """Keep the tensors' memory until ``stream`` has used them."""
        held: list[Tensor | None] = [self.ids, self.resets, self.where, self.row]
        if self.pieces is not None:
            held += [self.pieces.row, self.pieces.piece, self.pieces.document, self.pieces.label, self.pieces.tag]
        if self.segments is not None:
            held += [self.segments.segment, self.segments.size]
        for tensor in held:
            if tensor is not None:
                tensor.record_stream(stream)


@dataclass(frozen=True)
class Packer:
    """Packs the text of groups.

    document_offset (D+1,), row_offset (D+1,): of what is read from zero. batch_bytes: text of a batch at most.
    statistics: batches come with `Pieces`, with a rule of means always with `Segments`.
    """

    text: Text
    rule: RowRule
    document_offset: Integers
    row_offset: Integers
    batch_size: int
    batch_bytes: int
    hidden_size: int
    device: torch.device
    statistics: bool

    def batches(self, group: Group) -> Iterator[Packed]:
        """The batches of a group, in order."""
        row = group.first_row if group.carried_in else int(self.row_offset[group.first])
        for batch in plan_batches(group, self.document_offset, self.batch_bytes):
            positions = self.rule.positions(self.text, int(batch.begin[0]), int(batch.end[-1]))
            # A document that is read again has rows that the group before wrote.
            again = min(len(positions), max(0, group.first_row - row))
            begins = None
            if self.rule.mean:
                begins = self.rule.begins(self.text, int(batch.begin[0]), int(batch.end[-1]))[again:]
            yield self._pack(group, batch, positions[again:], begins, row + again - group.first_row)
            row += len(positions)

    def _pack(self, group: Group, batch: Batch, positions: Integers, begins: Integers | None, first_row: int) -> Packed:
        """``positions``: of the batch's rows; ``begins``: `RowRule.begins`; ``first_row``: of the group, the first."""
        start, stop = int(batch.begin[0]), int(batch.end[-1])
        begin, end = batch.begin - start, batch.end - start
        # What follows the last row of a document need not be read, unless its state is wanted.
        last = np.searchsorted(positions, batch.end) - 1
        reached = np.where(last >= 0, positions[last] + 1 - start, 0) if len(positions) else np.zeros_like(end)
        kept = len(end) - 1 if batch.carries_out else len(end)
        end[:kept] = np.maximum(np.minimum(reached, end), begin)[:kept]
        lengths = end - begin

        carrying = ([0] if batch.carried_in and lengths[0] else []) + ([len(end) - 1] if batch.carries_out else [])
        own = sorted(set(carrying))
        others = lengths.copy()
        others[own] = 0
        packed = [[piece] for piece in own] + pack(others, max(1, self.batch_size - len(own)))
        packed.sort(key=lambda lane: -int(lengths[lane].sum()))
        lane_lengths = np.array([int(lengths[lane].sum()) for lane in packed])
        carry_lane = packed.index([0]) if batch.carried_in and lengths[0] else None
        out_lane = packed.index([len(end) - 1]) if batch.carries_out else None
        out = None if out_lane is None else (int(lane_lengths[out_lane]), out_lane)

        order = np.concatenate([np.array(lane) for lane in packed]) if packed else np.empty(0, np.int64)
        lane_of = np.repeat(np.arange(len(packed)), [len(lane) for lane in packed])
        # The step at which each piece begins.
        steps = np.cumsum(lengths[order]) - lengths[order] - (np.cumsum(lane_lengths) - lane_lengths)[lane_of]
        pieces = np.stack([begin[order], lengths[order], steps, lane_of])
        borders = self._borders(lane_lengths, None if out is None else out[0])

        T, B, size, device = borders[-1], len(packed), int(lane_lengths.sum()), self.device
        source_begin, length, step, lane = torch.from_numpy(pieces).to(device)
        piece = torch.repeat_interleave(torch.arange(len(order), device=device), length, output_size=size)
        inside = torch.arange(size, device=device) - (length.cumsum(0) - length)[piece]
        source, place = source_begin[piece] + inside, (step[piece] + inside) * B + lane[piece]
        ids = torch.zeros(T * B, dtype=torch.uint8, device=device)
        ids[place] = torch.from_numpy(self.text.read(start, stop)).to(device)[source]
        resets = torch.zeros(T * B, dtype=torch.bool, device=device)
        resets[step * B + lane] = True
        if carry_lane is not None:
            resets[carry_lane] = False
        row_of = torch.full((stop - start,), -1, device=device)
        row_of[torch.from_numpy(positions - start).to(device)] = torch.arange(len(positions), device=device) + first_row
        row_at = torch.full((T * B,), -1, device=device)
        row_at[place] = row_of[source]
        where = (row_at >= 0).nonzero().flatten()
        entries = torch.searchsorted(where, torch.tensor(borders, device=device) * B).tolist()
        windows = tuple(
            Window(begin, end, int((lane_lengths > begin).sum()), first, last)
            for (begin, end), (first, last) in zip(pairwise(borders), pairwise(entries), strict=True)
        )
        return Packed(
            group=group,
            last=batch.last,
            ids=ids.view(T, B),
            resets=resets.view(T, B),
            where=where,
            row=row_at[where],
            windows=windows,
            carry_lane=carry_lane,
            out=out,
            size=stop - start,
            pieces=self._pieces(order, begin + start, piece, place, source, row_at.view(T, B), start, stop),
            segments=None
            if begins is None
            else self._segments(begins - start, positions - start, place, source, (T, B), first_row, stop - start),
        )

    def _pieces(
        self,
        order: Integers,
        begin: Integers,
        piece: Tensor,
        place: Tensor,
        source: Tensor,
        row_at: Tensor,
        start: int,
        stop: int,
    ) -> Pieces | None:
        if not self.statistics:
            return None
        device = self.device
        piece_at = torch.zeros(row_at.numel(), dtype=torch.int32, device=device)
        piece_at[place] = piece.int()
        document = np.searchsorted(self.text.document_offset, begin[order], side="right") - 1
        tag_at = None
        if self.text.words is not None:
            tag_at = torch.full((row_at.numel(),), 255, dtype=torch.uint8, device=device)
            tag_at[place] = torch.from_numpy(self.text.tags(start, stop)).to(device)[source]
            tag_at = tag_at.view(row_at.shape)
        return Pieces(
            row_at.int(),
            piece_at.view(row_at.shape),
            torch.from_numpy(document).to(device),
            torch.from_numpy(self.text.label[document]).to(device),
            tag_at,
        )

    def _segments(
        self,
        begins: Integers,
        positions: Integers,
        place: Tensor,
        source: Tensor,
        shape: tuple[int, int],
        first_row: int,
        size: int,
    ) -> Segments:
        device = self.device
        begin, last = torch.from_numpy(begins).to(device), torch.from_numpy(positions).to(device)
        of = torch.searchsorted(last, source)
        segment = torch.full((shape[0] * shape[1],), -1, dtype=torch.int32, device=device)
        segment[place] = torch.where(source >= begin[of], of, -1).int()
        sizes = np.append(positions + 1, size) - begins
        return Segments(segment.view(shape), torch.from_numpy(sizes).to(device), first_row)

    def _borders(self, lane_lengths: Integers, also: int | None) -> list[int]:
        """The steps between which the windows lie: 0, ..., the length of the longest lane, and ``also`` among them."""
        values = WINDOW_VALUES[self.device.type] // self.hidden_size
        total = int(lane_lengths[0]) if len(lane_lengths) else 0
        borders = [0]
        while (begin := borders[-1]) < total:
            lanes = int((lane_lengths > begin).sum())
            end = min(total, begin + min(MAX_STEPS, max(MIN_STEPS, values // lanes)))
            borders.append(also if also is not None and begin < also < end else end)
        return borders
