"""The loop of a dump: claimed groups are read on the device while finished ones are written."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastlstm.errors import InputError
from fastlstm.module import State
from fastlstm.states.extraction import Extraction, Sink
from fastlstm.states.gather import GroupStatistics
from fastlstm.states.jobs import Claims
from fastlstm.states.layout import Layout
from fastlstm.states.means import MeanRows
from fastlstm.states.plan import Group
from fastlstm.states.progress import Progress
from fastlstm.states.shards import BUFFERS, GroupBuffer, ShardWriters, UnfitError
from fastlstm.states.storage import Storage

# Seconds that a writing thread waits for the interpreter at most: 8 threads write 10.1 GB/s to memory, with 5 ms 8.1
# (an H100's host).
SWITCH = 2e-4


@dataclass
class _Reading:
    """A group that is read, or of which something is still being written."""

    group: Group
    buffer: GroupBuffer | None
    statistics: GroupStatistics | None
    sinks: list[Sink]
    event: torch.cuda.Event | None = None
    left: dict[str, Tensor] = field(default_factory=dict)
    futures: list[Future[None]] = field(default_factory=list)


class Reading:
    """Reads groups of ``extraction``: rows into the shards of ``storage``, what else they leave into ``progress``.

    ``layout``: of the states, None if none are kept; ``rows_at_once``: rows of a group, or more. ``threads`` write.
    """

    def __init__(
        self,
        extraction: Extraction,
        storage: Storage,
        progress: Progress,
        layout: Layout | None,
        *,
        units: int,
        rows_at_once: int,
        threads: int,
    ) -> None:
        self._extraction = extraction
        self._progress = progress
        self._layout, self._rows, self._units = layout, rows_at_once, units
        self._writers = ShardWriters(storage, layout, threads, extraction.device)
        self._buffers: list[GroupBuffer] = []
        self._free: list[GroupBuffer] = []
        self._writing: deque[_Reading] = deque()

    def read(self, claims: Claims, advance: Callable[[int], object]) -> None:
        """Read and write every group of ``claims``; ``advance`` is told the bytes read since it was called last."""
        now: _Reading | None = None
        carry: State | None = None
        reached = -1  # the group that ``carry`` comes from
        with self._closing(), closing(self._extraction.batches(claims)) as batches:
            for packed in batches:
                group = packed.group
                if now is None:
                    now = self._begin(group, claims)
                    if group.carried_in and reached != group.index - 1:
                        carry = self._carry_of(group.index - 1)
                carry = self._extraction.run(packed, carry, now.sinks)
                advance(packed.size)
                if packed.last:
                    self._end(now, carry)
                    now, reached = None, group.index
                self._settle(claims, wait_for=0)
            self._settle(claims, wait_for=len(self._writing))

    def _begin(self, group: Group, claims: Claims) -> _Reading:
        while len(self._writing) >= BUFFERS:
            self._settle(claims, wait_for=1)
        device = self._extraction.device
        now = _Reading(group, None, None, [])
        if self._layout is not None:
            if not self._free:
                self._buffers.append(GroupBuffer(self._layout, min(self._rows, self._layout.rows), device))
                self._free.append(self._buffers[-1])
            now.buffer = self._free.pop()
            now.buffer.begin(group.first_row, group.last_row)
            now.sinks.append(MeanRows(now.buffer) if self._extraction.rule.mean else now.buffer)
        if self._extraction.statistics:
            # A lane for each of the batch, and one for each piece that a state is carried into or out of.
            now.statistics = GroupStatistics(
                self._extraction.batch_size + 2, self._units, self._extraction.tags, device
            )
            now.sinks.append(now.statistics)
        return now

    def _end(self, now: _Reading, carry: State | None) -> None:
        group = now.group
        if carry is not None:
            now.left |= {"h": carry[0], "c": carry[1]}
        if now.statistics is not None:
            now.left |= now.statistics.left(group.first_row, group.last_row - group.first_row)
        if self._extraction.device.type == "cuda":
            now.event = torch.cuda.current_stream(self._extraction.device).record_event()
        now.futures.append(self._writers.fetch(now.left, now.event))
        if now.buffer is not None:
            now.buffer.event = now.event
            now.futures += self._writers.write(now.buffer)
        self._writing.append(now)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        try:
            yield
        except UnfitError as unfit:
            raise InputError(self._describe(*unfit.buffer.find_unfit())) from None
        finally:
            sys.setswitchinterval(interval)
            self._writing.clear()

    def close(self, *, cancel: bool) -> None:
        """Wait for the writing threads; with ``cancel`` what is not begun is left out."""
        self._writers.close(cancel=cancel)

    def _settle(self, claims: Claims, *, wait_for: int) -> None:
        """Mark the groups that are written as done, in order; wait for the first ``wait_for`` of them."""
        while self._writing:
            first = self._writing[0]
            if wait_for <= 0 and not all(future.done() for future in first.futures):
                return
            for future in first.futures:
                future.result()
            self._check(first)
            self._progress.mark(first.group.index, first.left)
            claims.done(first.group.index)
            if first.buffer is not None:
                self._free.append(first.buffer)
            self._writing.popleft()
            wait_for -= 1

    def _check(self, done: _Reading) -> None:
        """Of states that are not stored the statistics alone can tell that one does not fit."""
        if done.statistics is None or self._layout is not None:
            return
        extremes = torch.stack([done.left["minimum"], done.left["maximum"], done.left["sum"].float()])
        if len(wrong := (~extremes.isfinite()).nonzero()):
            column = int(wrong[0, 1])
            unit = column if self._extraction.columns is None else int(self._extraction.columns[column])
            text = self._extraction.text
            first, last = (text.ids[i] for i in (done.group.first, done.group.last - 1))
            raise InputError(
                f"documents {first!r} to {last!r}, unit {unit}: a cell state is not finite, or beyond float16 (at most "
                "65504): use --dtype float32"
            )

    def _carry_of(self, group: int) -> State:
        left = self._progress.left_by(group)
        if not left.keys() >= {"h", "c"}:
            raise InputError(f"{self._progress}: group {group} left no state: delete its file, and begin again")
        return left["h"], left["c"]

    def _describe(self, row: int, column: int, value: float) -> str:
        extraction = self._extraction
        text = extraction.text
        position = extraction.position(row)
        document = int(np.searchsorted(text.document_offset, position, side="right")) - 1
        unit = column if extraction.columns is None else int(extraction.columns[column])
        where = (
            f"document {text.ids[document]!r}, byte {position - int(text.document_offset[document])}, "
            f"unit {unit}: cell state {value:g}"
        )
        if extraction.dtype == torch.float16 and not np.isnan(value):
            return f"{where} is beyond float16 (at most 65504): use --dtype float32, in another store"
        return f"{where} is not finite: the model's weights have diverged"
