"""In which groups and batches a text is read: fixed by text, row rule, units, batch size and kind of device alone.

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

PLAN = "2"  # another one whenever groups or batches are cut otherwise: an unfinished store goes on by its own

# Text of a batch for each of its lanes. Where that is little more than the longest document, a few lanes go on to the
# batch's end by themselves: with 2^13 bytes they took a third of a GPU's time.
LANE_BYTES = {"cpu": 1 << 14, "cuda": 1 << 15}
GROUP_VALUES = {"cpu": 1 << 26, "cuda": 1 << 31}  # that a group stores at most
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


def group_rows(text_bytes: int, rows: int, units: int, *, limit: int, values: int, shard_rows: int) -> int:
    """Rows of a group of a text with ``rows`` rows: about ``limit`` bytes of text and at most ``values`` values.

    Whole shards, at least one; ``units`` are stored of each row, maybe none.
    """
    wanted = min(limit * rows // text_bytes, values // max(1, units))
    return max(1, wanted // shard_rows) * shard_rows


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


def plan_batches(group: Group, document_offset: Integers, limit: int) -> Iterator[Batch]:
    """A group's text in order, at most ``limit`` bytes at a time; a document beyond that is cut."""
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
