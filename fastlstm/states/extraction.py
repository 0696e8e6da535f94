"""A model reads batches of a text, each prepared while the one before is read; sinks take the states of its cells."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fastlstm.ahead import ahead
from fastlstm.model import ByteLM
from fastlstm.module import State
from fastlstm.states.packing import Packed, Packer, Window
from fastlstm.states.plan import LANE_BYTES, Group
from fastlstm.states.rows import RowRule
from fastlstm.states.text import Integers, Text


class Sink(Protocol):
    """Takes the states of a window, on the model's device."""

    def take(self, cells: Tensor, packed: Packed, window: Window) -> None:
        """``cells`` (T, B, U): the states of ``window``, also of bytes that are no rows."""


@dataclass(frozen=True)
class Extraction:
    """A model and a text, and which states of it are wanted in which dtype (columns None = all cells).

    row_offset (D+1,): of the text's documents. running: the state is carried through all of them. statistics: batches
    come with `Pieces`, with a rule of means always with `Segments`. tags: of the text's words, 0 without words.
    """

    model: ByteLM
    text: Text
    rule: RowRule
    row_offset: Integers
    running: bool
    columns: Tensor | None
    dtype: torch.dtype
    batch_size: int
    statistics: bool = False
    tags: int = 0

    @cached_property
    def document_offset(self) -> Integers:
        """Of what is read from zero: the text's documents, or with a running state the whole text as one."""
        return self.text.document_offset[[0, -1]] if self.running else self.text.document_offset

    @cached_property
    def read_row_offset(self) -> Integers:
        """The rows of what is read from zero."""
        return self.row_offset[[0, -1]] if self.running else self.row_offset

    def position(self, row: int) -> int:
        """Which byte of the text a row of the store is."""
        return self.rule.position(self.text, self.row_offset, row)

    @property
    def device(self) -> torch.device:
        return self.model.head.weight.device

    @property
    def batch_bytes(self) -> int:
        """Text of a batch at most."""
        return self.batch_size * LANE_BYTES[self.device.type]

    def run(self, packed: Packed, carry: State | None, sinks: Sequence[Sink]) -> State | None:
        """Read a batch from the state ``carry`` (h and c (1, 1, H)) on, and return the state that it carries out."""
        out: State | None = None
        state = self._begin(packed, carry)
        for window in packed.windows:
            if state is not None and state[0].shape[1] > window.lanes:
                state = state[0][:, : window.lanes].contiguous(), state[1][:, : window.lanes].contiguous()
            steps = slice(window.begin, window.end), slice(window.lanes)
            cells, state = self.model.cells(
                packed.ids[steps], state, packed.resets[steps], units=self.columns, dtype=self.dtype
            )
            for sink in sinks:
                sink.take(cells, packed, window)
            if packed.out is not None and packed.out[0] == window.end:
                lane = slice(packed.out[1], packed.out[1] + 1)
                out = state[0][:, lane].contiguous(), state[1][:, lane].contiguous()
        return out

    def _begin(self, packed: Packed, carry: State | None) -> State | None:
        if packed.carry_lane is None:
            return None
        assert carry is not None
        lanes = packed.ids.shape[1]
        state = tuple(part.new_zeros(1, lanes, part.shape[2], device=self.device) for part in carry)
        for whole, part in zip(state, carry, strict=True):
            whole[:, packed.carry_lane] = part[:, 0].to(self.device)
        return state[0], state[1]

    @cached_property
    def _packer(self) -> Packer:
        return Packer(
            text=self.text,
            rule=self.rule,
            document_offset=self.document_offset,
            row_offset=self.read_row_offset,
            batch_size=self.batch_size,
            batch_bytes=self.batch_bytes,
            hidden_size=self.model.hidden_size,
            device=self.device,
            statistics=self.statistics,
        )

    def batches(self, groups: Iterable[Group]) -> Generator[Packed]:
        """The batches of ``groups``, on a GPU each prepared while the one before is read."""
        if self.device.type != "cuda":
            for group in groups:
                yield from self._packer.batches(group)
            return
        with closing(ahead(self._on_another_stream(groups), 1, "fastlstm-batches")) as prepared:
            for packed, event in prepared:
                current = torch.cuda.current_stream(self.device)
                current.wait_event(event)
                packed.record(current)
                yield packed

    def _on_another_stream(self, groups: Iterable[Group]) -> Generator[tuple[Packed, torch.cuda.Event]]:
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device), torch.cuda.stream(stream), torch.no_grad():
            for group in groups:
                for packed in self._packer.batches(group):
                    yield packed, stream.record_event()
