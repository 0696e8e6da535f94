"""The loop of a dump: claimed groups are read on the device while finished ones are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastlstm.errors import InputError
from fastlstm.module import State
from fastlstm.states.extraction import Extraction, Sink
from fastlstm.states.jobs import Claims
from fastlstm.states.layout import Layout
from fastlstm.states.plan import Group
from fastlstm.states.progress import Progress
from fastlstm.states.shards import BUFFERS, GroupBuffer, ShardWriters, UnfitError
from fastlstm.states.storage import Storage


@dataclass(frozen=True)
class _Written:
    """A group that was read, and what is still being written of it."""

    group: Group
    buffer: GroupBuffer
    futures: list[Future[None]]
    left: Mapping[str, Tensor]


class Reading:
    """Reads groups of ``extraction`` into the shards of ``storage``, ``rows_at_once`` rows or fewer a group."""

    def __init__(
        self,
        extraction: Extraction,
        storage: Storage,
        progress: Progress,
        layout: Layout,
        *,
        rows_at_once: int,
        threads: int,
    ) -> None:
        self._extraction = extraction
        self._progress = progress
        self._writers = ShardWriters(storage, layout, threads)
        self._layout, self._rows = layout, min(rows_at_once, layout.rows)
        self._buffers: list[GroupBuffer] = []
        self._free: list[GroupBuffer] = []
        self._writing: deque[_Written] = deque()

    def read(self, claims: Claims, advance: Callable[[int], object]) -> None:
        """Read and write every group of ``claims``; ``advance`` is told the bytes read since it was called last."""
        buffer: GroupBuffer | None = None
        carry: State | None = None
        reached = -1  # the group that ``carry`` comes from
        with self._closing(), closing(self._extraction.batches(claims)) as batches:
            for packed in batches:
                group = packed.group
                if buffer is None:
                    buffer = self._buffer(claims)
                    buffer.begin(group.first_row, group.last_row)
                    if group.carried_in and reached != group.index - 1:
                        carry = self._carry_of(group.index - 1)
                sinks: list[Sink] = [buffer]
                carry = self._extraction.run(packed, carry, sinks)
                advance(packed.size)
                if packed.last:
                    buffer.end()
                    left = {} if carry is None else {"h": carry[0], "c": carry[1]}
                    self._writing.append(_Written(group, buffer, self._writers.write(buffer), left))
                    buffer, reached = None, group.index
                self._settle(claims, wait_for=0)
            self._settle(claims, wait_for=len(self._writing))

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except UnfitError as unfit:
            raise InputError(self._describe(*unfit.buffer.find_unfit())) from None
        finally:
            self._writing.clear()

    def close(self, *, cancel: bool) -> None:
        """Wait for the writing threads; with ``cancel`` what is not begun is left out."""
        self._writers.close(cancel=cancel)

    def _buffer(self, claims: Claims) -> GroupBuffer:
        if not self._free and len(self._buffers) < BUFFERS:
            self._buffers.append(GroupBuffer(self._layout, self._rows, self._extraction.device))
            return self._buffers[-1]
        self._settle(claims, wait_for=0 if self._free else 1)
        return self._free.pop()

    def _settle(self, claims: Claims, *, wait_for: int) -> None:
        """Mark the groups that are written as done, in order; wait for the first ``wait_for`` of them."""
        while self._writing:
            first = self._writing[0]
            if wait_for <= 0 and not all(future.done() for future in first.futures):
                return
            for future in first.futures:
                future.result()
            self._progress.mark(first.group.index, first.left)
            claims.done(first.group.index)
            self._free.append(first.buffer)
            self._writing.popleft()
            wait_for -= 1

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
