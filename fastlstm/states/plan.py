"""In which groups and batches a text is read: fixed by the text, the row rule and the batch size alone.

A group is a range of rows: the unit of resuming and of work that a process claims; its shards are whole. A batch is
text of a group that is read side by side in lanes. A document that reaches over the border of two groups is read again
from its start by the second, unless that is far: then the second waits for the state that the first carries out.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fastlstm.states.text import Integers

LANE_BYTES = 1 << 14  # text of a batch for each of its lanes
LANE_VALUES = 1 << 24  # cell values of a group's rows for each of its lanes
MAX_LANE_ROWS, MIN_LANE_ROWS = 1 << 13, 1 << 10
MAX_GROUPS = 1 << 12  # of a dump that stores nothing but statistics, a few MB a group
READ_AGAIN = 1 << 14  # bytes of a document that the next group reads again


@dataclass(frozen=True)
class Group:
    """Rows first_row:last_row, of the documents first:last; the bytes start:stop of the text are read for them.

    carried_in: ``start`` is within a document, and the state before it comes from the group before. carries_out: the
    next group wants the state after ``stop``.
    """

    index: int
    first: int
    last: int
    start: int
    stop: int
    first_row: int
    last_row: int
    carried_in: bool
    carries_out: bool


@dataclass(frozen=True)
class Batch:
    """Pieces of documents read together: piece i is the bytes begin[i]:end[i] of the text (int64; none may be empty).

    carried_in: the first piece goes on from the last piece of the batch before. carries_out: the next batch (or group)
    goes on from the last piece. last: of its group.
    """

    begin: Integers
    end: Integers
    carried_in: bool
    carries_out: bool
    last: bool


def group_rows(batch_size: int, hidden_size: int, shard_rows: int) -> int:
    """Rows of a group: whole shards, about batch_size * min(8192, max(1024, 2^24 / H)) rows."""
    lane_rows = min(MAX_LANE_ROWS, max(MIN_LANE_ROWS, LANE_VALUES // hidden_size))
    return max(1, batch_size * lane_rows // shard_rows) * shard_rows


def plan_groups(
    document_offset: Integers, row_offset: Integers, position_of: Callable[[int], int], rows: int
) -> list[Group]:
    """All groups, of ``rows`` rows each; ``position_of`` gives the byte of a row."""
    total = int(row_offset[-1])
    groups: list[Group] = []
    for index, first_row in enumerate(range(0, total, rows)):
        last_row = min(first_row + rows, total)
        first = int(np.searchsorted(row_offset, first_row, side="right")) - 1
        last = int(np.searchsorted(row_offset, last_row - 1, side="right"))
        start, carried = int(document_offset[first]), False
        if first_row > row_offset[first]:
            reached = position_of(first_row - 1) + 1
            carried = reached - start > READ_AGAIN
            start = reached if carried else start
        if carried:
            groups[-1] = dataclasses.replace(groups[-1], carries_out=True)
        stop = position_of(last_row - 1) + 1
        groups.append(Group(index, first, last, start, stop, first_row, last_row, carried, carries_out=False))
    return groups


def plan_jobs(groups: list[Group]) -> list[range]:
    """The groups as runs of which each group but the first needs the state of the one before."""
    begins = [group.index for group in groups if not group.carried_in]
    return [range(begin, end) for begin, end in zip(begins, [*begins[1:], len(groups)], strict=True)]


def plan_batches(group: Group, document_offset: Integers, batch_size: int) -> Iterator[Batch]:
    """A group's text in order, at most batch_size * 16 KiB at a time; a document beyond that is cut."""
    limit = batch_size * LANE_BYTES
    document, position = group.first, group.start
    carried = group.carried_in
    while document < group.last:
        ends = np.minimum(document_offset[document + 1 : group.last + 1], group.stop)
        last = document + int(np.searchsorted(ends, position + limit, side="right"))
        cut = last == document
        if cut:
            last, end = document + 1, np.array([position + limit])
        else:
            end = ends[: last - document]
        begin = document_offset[document:last].copy()
        begin[0] = position
        at_end = last == group.last and not cut
        yield Batch(begin, end, carried, cut or (group.carries_out and at_end), at_end)
        carried = cut
        document, position = (document, position + limit) if cut else (last, int(document_offset[last]))


def pack(lengths: Integers, lanes: int) -> list[list[int]]:
    """Which pieces each lane reads, one after another: longest first, always into the shortest lane.

    ``lengths`` (pieces,) in bytes; pieces of length 0 are left out. Lanes come longest first.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    packed: list[list[int]] = [[] for _ in range(min(lanes, len(order)))]
    filled = [(0, lane) for lane in range(len(packed))]
    for piece in order.tolist():
        size, lane = heapq.heappop(filled)
        packed[lane].append(piece)
        heapq.heappush(filled, (size + int(lengths[piece]), lane))
    return [packed[lane] for _, lane in sorted(filled, key=lambda entry: (-entry[0], entry[1]))]
