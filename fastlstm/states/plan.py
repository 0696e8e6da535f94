"""In which batches a text is read: fixed by the text, the row rule and the batch size, never by where a job resumed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastlstm.states.text import Integers

LANE_BYTES = 1 << 14  # text of a unit for each of its lanes
LANE_VALUES = 1 << 21  # cell values of a unit's rows for each of its lanes
MAX_LANE_ROWS, MIN_LANE_ROWS = 1 << 13, 1 << 10


@dataclass(frozen=True)
class Unit:
    """Documents first:last, read together: the bytes start:stop of the text, the rows first_row:last_row."""

    first: int
    last: int
    start: int
    stop: int
    first_row: int
    last_row: int


def plan_units(document_offset: Integers, row_offset: Integers, batch_size: int, hidden_size: int) -> Iterator[Unit]:
    """Cut a text into units.

    A unit has at most batch_size * 16 KiB of text and batch_size * min(8192, max(1024, 2^21 / H)) rows; a document
    beyond either is a unit of its own.
    """
    lane_rows = min(MAX_LANE_ROWS, max(MIN_LANE_ROWS, LANE_VALUES // hidden_size))
    documents = len(document_offset) - 1
    first = 0
    while first < documents:
        within_bytes = np.searchsorted(document_offset, document_offset[first] + batch_size * LANE_BYTES, side="right")
        within_rows = np.searchsorted(row_offset, row_offset[first] + batch_size * lane_rows, side="right")
        last = max(first + 1, int(min(within_bytes, within_rows)) - 1)
        yield Unit(
            first,
            last,
            int(document_offset[first]),
            int(document_offset[last]),
            int(row_offset[first]),
            int(row_offset[last]),
        )
        first = last


def pack(lengths: Integers, lanes: int) -> list[list[int]]:
    """Which documents each lane reads, one after another: longest first, always into the shortest lane.

    ``lengths`` (documents,) in bytes; documents of length 0 are left out. Lanes come longest first.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    packed: list[list[int]] = [[] for _ in range(min(lanes, len(order)))]
    filled = [(0, lane) for lane in range(len(packed))]
    for document in order.tolist():
        size, lane = heapq.heappop(filled)
        packed[lane].append(document)
        heapq.heappush(filled, (size + int(lengths[document]), lane))
    return [packed[lane] for _, lane in sorted(filled, key=lambda entry: (-entry[0], entry[1]))]
