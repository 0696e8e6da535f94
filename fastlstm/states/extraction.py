"""A model reads a text: documents packed into lanes, or one stream, and the wanted states of its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastlstm.errors import InputError
from fastlstm.model import ByteLM
from fastlstm.module import State
from fastlstm.states.plan import Unit, pack
from fastlstm.states.rows import RowRule
from fastlstm.states.schema import STORED_DTYPES, StoredDtype
from fastlstm.states.text import Integers, Text

WINDOW_VALUES = 1 << 22  # T * B * H of the cell states that exist at once
MIN_STEPS, MAX_STEPS = 16, 1024
LARGEST: dict[StoredDtype, float] = {name: torch.finfo(getattr(torch, name)).max for name in STORED_DTYPES}


@dataclass(frozen=True)
class Window:
    """Rows (n, U) of the text up to ``stop``, read one byte after another from ``start`` with ``state`` before it."""

    start: int
    stop: int
    state: State | None
    values: npt.NDArray[Any]


@dataclass(frozen=True)
class Extraction:
    """A model and a text, and which states of it are wanted in which dtype (columns None = all cells)."""

    model: ByteLM
    text: Text
    rule: RowRule
    columns: Tensor | None
    dtype: StoredDtype

    def packed(self, unit: Unit, lanes: int, advance: Callable[[int], object]) -> npt.NDArray[Any]:
        """The rows (n, U) of a unit, its documents read in ``lanes`` lanes, each starting at zero.

        ``advance`` is told how many bytes have been read since it was called last.
        """
        text = self.text.read(unit.start, unit.stop)
        positions = self.rule.positions(self.text, unit.start, unit.stop)
        offset = self.text.document_offset[unit.first : unit.last + 1] - unit.start
        # What follows a document's last row need not be read.
        last_row = np.searchsorted(positions, offset[1:] + unit.start) - 1
        ends = positions[last_row] + 1 - unit.start  # of an earlier document where this one has no row
        packed = pack(np.maximum(ends - offset[:-1], 0) * (last_row >= 0), lanes)

        row_of = np.full(len(text), -1)
        row_of[positions - unit.start] = np.arange(len(positions))
        order = [np.concatenate([np.arange(offset[document], ends[document]) for document in lane]) for lane in packed]
        is_start = np.zeros(len(text), bool)
        is_start[offset[:-1]] = True
        lengths = np.array([len(lane) for lane in order])
        lane_begin = np.cumsum(lengths) - lengths
        source = np.concatenate(order)

        width = len(self.columns) if self.columns is not None else self.model.hidden_size
        values = np.empty((len(positions), width), self.dtype)
        steps = _window_steps(len(packed), self.model.hidden_size)
        state: State | None = None
        for begin in range(0, int(lengths[0]), steps):
            active = int((lengths > begin).sum())  # lanes come longest first
            time_index = np.arange(begin, min(begin + steps, int(lengths[0])))[:, None]
            inside = time_index < lengths[:active]
            # A lane that has ended reads its first byte again, and nobody looks.
            read = source[lane_begin[:active] + np.where(inside, time_index, 0)]
            if state is not None:
                state = state[0][..., :active, :].contiguous(), state[1][..., :active, :].contiguous()
            cells, state = self._cells(text[read], state, is_start[read] & inside)
            step, lane = np.nonzero(inside & (row_of[read] >= 0))
            row = row_of[read[step, lane]]
            values[row] = self._stored(cells, step, lane, positions[row])
            advance(int(inside.sum()))
        advance(len(text) - len(source))
        return values

    def stream(self, start: int, stop: int, state: State | None = None) -> Iterator[Window]:
        """The rows of start:stop in order, in windows of one lane; the state before ``start`` is zero if None."""
        steps = _window_steps(1, self.model.hidden_size)
        for begin in range(start, stop, steps):
            end = min(begin + steps, stop)
            before = state
            cells, state = self._cells(self.text.read(begin, end)[:, None], before, None)
            positions = self.rule.positions(self.text, begin, end)
            step = positions - begin
            yield Window(begin, end, before, self._stored(cells, step, np.zeros_like(step), positions))

    def _cells(
        self, ids: npt.NDArray[np.uint8], state: State | None, resets: npt.NDArray[np.bool_] | None
    ) -> tuple[Tensor, State]:
        device = self.model.head.weight.device
        return self.model.cells(
            torch.from_numpy(ids).to(device),
            None if state is None else (state[0].to(device), state[1].to(device)),
            None if resets is None else torch.from_numpy(resets).to(device),
            units=self.columns,
        )

    def _stored(self, cells: Tensor, step: Integers, lane: Integers, positions: Integers) -> npt.NDArray[Any]:
        """The cells (T, B, U) at (step, lane), in the stored dtype, checked to fit it."""
        values = cells[torch.from_numpy(step).to(cells.device), torch.from_numpy(lane).to(cells.device)]
        largest = LARGEST[self.dtype]
        # NaN is the maximum of whatever holds one, and not <= anything.
        if values.numel() and not float(values.abs().max()) <= largest:
            self._refuse(~(values.abs() <= largest), values, positions)
        stored: npt.NDArray[Any] = values.to(getattr(torch, self.dtype)).cpu().numpy()
        return stored

    def _refuse(self, wrong: Tensor, values: Tensor, positions: Integers) -> None:
        row, column = (int(index) for index in wrong.nonzero()[0])
        position, value = int(positions[row]), float(values[row, column])
        document = int(np.searchsorted(self.text.document_offset, position, side="right")) - 1
        unit = column if self.columns is None else int(self.columns[column])
        where = (
            f"document {self.text.ids[document]!r}, byte {position - self.text.document_offset[document]}, "
            f"unit {unit}: cell state {value:g}"
        )
        if np.isfinite(value):
            raise InputError(f"{where} is beyond float16 (at most 65504): use --dtype float32, in another store")
        raise InputError(f"{where} is not finite: the model's weights have diverged")


def _window_steps(lanes: int, hidden_size: int) -> int:
    return min(MAX_STEPS, max(MIN_STEPS, WINDOW_VALUES // (lanes * hidden_size)))
