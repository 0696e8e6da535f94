"""Shards as (T, B) byte windows: B contiguous streams, each window going on where the last one ended.

A position in the training data is a pure function of the step, so that resuming needs no reader state.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastlstm.corpus.shards import Corpus, Shard, ShardEntry
from fastlstm.errors import InputError

Reset = Literal["shard", "document"]


class Window(NamedTuple):
    """Inputs and targets (T, B) uint8, the target being the next byte; ``resets`` (T, B) bool, or None."""

    inputs: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    resets: NDArray[np.bool_] | None


class TrainWindows:
    """The training windows of one shard, as the reference cuts them (Carvalho 2018, ``byte_LSTM/utils.py``).

    The longest prefix that fills whole windows is split into B contiguous streams; the few bytes after it are left
    out. ``reset="document"`` marks the first byte of every document; "shard" resets nothing inside a shard.
    ``streams``: only these of the B, as one of several processes reads them.
    """

    def __init__(
        self, shard: Shard, *, batch_size: int, window: int, reset: Reset, streams: slice = slice(None)
    ) -> None:
        self.count = train_windows(len(shard.bytes), batch_size, window)
        self._window = window
        used = self.count * batch_size * window
        self._inputs = shard.bytes[:used].reshape(batch_size, -1)[streams]
        self._targets = shard.bytes[1 : used + 1].reshape(batch_size, -1)[streams]
        self._starts: NDArray[np.bool_] | None = None
        if reset == "document":
            starts = np.zeros(used, dtype=np.bool_)
            offsets = shard.offset[:-1]
            starts[offsets[offsets < used]] = True
            self._starts = starts.reshape(batch_size, -1)[streams]

    def fill(self, index: int, ids: NDArray[np.uint8], resets: NDArray[np.bool_] | None) -> None:
        """Write window ``index`` to ``ids`` (T + 1, B), each row the targets of the one before, and ``resets`` (T, B).

        ``resets`` is None with ``reset="shard"``.
        """
        end = (index + 1) * self._window
        part = slice(end - self._window, end)
        ids[:-1] = self._inputs[:, part].T
        ids[-1] = self._targets[:, end - 1]
        if self._starts is not None and resets is not None:
            resets[:] = self._starts[:, part].T


def train_windows(size: int, batch_size: int, window: int) -> int:
    """How many (window, batch_size) windows a shard of ``size`` bytes gives, each byte with its successor."""
    return max(size - 1, 0) // (batch_size * window)


class Position(NamedTuple):
    """Where a training step reads: which shard entry, which epoch over it, which window."""

    entry: int
    epoch: int
    window: int


@dataclass(frozen=True)
class Schedule:
    """The order of all windows of a run: passes over the shards, and several epochs on a shard before the next."""

    windows: tuple[int, ...]  # of each shard entry
    epochs_per_shard: int
    passes: int

    @classmethod
    def of(
        cls,
        entries: Sequence[ShardEntry],
        *,
        batch_size: int,
        window: int,
        epochs_per_shard: int,
        passes: int,
    ) -> Schedule:
        """Schedule over the shards of a split; an ``InputError`` says so when not one window fits."""
        windows = tuple(train_windows(entry.bytes, batch_size, window) for entry in entries)
        if not sum(windows):
            largest = max((entry.bytes for entry in entries), default=0)
            raise InputError(
                f"data: no shard fills one window of batch_size {batch_size} x window {window} = {batch_size * window} "
                f"bytes (largest shard: {largest} bytes); make data.batch_size or data.window smaller"
            )
        return cls(windows, epochs_per_shard, passes)

    @property
    def steps(self) -> int:
        return self.passes * self.epochs_per_shard * sum(self.windows)

    def position(self, step: int) -> Position:
        """Where ``step`` (0-based) reads."""
        rest = step % (self.epochs_per_shard * sum(self.windows))
        for entry, windows in enumerate(self.windows):
            if rest < self.epochs_per_shard * windows:
                return Position(entry, rest // windows, rest % windows)
            rest -= self.epochs_per_shard * windows
        raise AssertionError("unreachable: rest is below the sum of the windows")

    def entry_after(self, entry: int) -> int:
        """The next shard entry that holds a window, the first following the last."""
        later = [*range(entry + 1, len(self.windows)), *range(entry + 1)]
        following: int = next(number for number in later if self.windows[number])
        return following


class TrainReader:
    """Windows by step. A shard is opened, and with that read and verified, in a thread while the last one is used."""

    def __init__(
        self,
        corpus: Corpus,
        schedule: Schedule,
        *,
        batch_size: int,
        window: int,
        reset: Reset,
        streams: slice = slice(None),
    ) -> None:
        self._corpus = corpus
        self._schedule = schedule
        self._batch_size = batch_size
        self._window = window
        self._reset: Reset = reset
        self._streams = streams
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shard")
        self._open: tuple[int, TrainWindows] | None = None
        self._next: tuple[int, Future[TrainWindows]] | None = None

    def fill(self, step: int, ids: NDArray[np.uint8], resets: NDArray[np.bool_] | None) -> bool:
        """Write the window of ``step`` as ``TrainWindows.fill`` does; whether the state starts from zero before it.

        It does at each shard and epoch.
        """
        position = self._schedule.position(step)
        if self._open is None or self._open[0] != position.entry:
            ahead = self._next if self._next is not None and self._next[0] == position.entry else None
            self._open = position.entry, ahead[1].result() if ahead else self._cut(position.entry)
            following = self._schedule.entry_after(position.entry)
            self._next = None
            if following != position.entry:
                self._next = following, self._thread.submit(self._cut, following)
        self._open[1].fill(position.window, ids, resets)
        return position.window == 0

    def _cut(self, entry: int) -> TrainWindows:
        shard = self._corpus.open_shard(self._corpus.shards("train")[entry])
        return TrainWindows(
            shard, batch_size=self._batch_size, window=self._window, reset=self._reset, streams=self._streams
        )


class EvaluationWindows:
    """Every byte of a shard but its first, each predicted once: B contiguous streams, the last windows masked.

    Each stream starts from a zero state; with fewer bytes than streams some stay empty.
    """

    def __init__(self, shard: Shard, *, batch_size: int, window: int, reset: Reset) -> None:
        self._shard = shard
        self._window = window
        self.predicted = len(shard.bytes) - 1
        if self.predicted < 1:
            raise InputError(f"{shard.path}: {len(shard.bytes)} bytes, nothing to predict")
        self._length = -(-self.predicted // batch_size)
        self._first = np.arange(batch_size, dtype=np.int64) * self._length
        self.count = -(-self._length // window)
        self._starts: NDArray[np.bool_] | None = None
        if reset == "document":
            self._starts = np.zeros(len(shard.bytes) + 1, dtype=np.bool_)
            self._starts[shard.offset[:-1]] = True

    def __getitem__(self, index: int) -> tuple[Window, NDArray[np.bool_]]:
        """Window ``index`` and which of its (T, B) targets count."""
        begin = index * self._window
        step = np.arange(begin, min(begin + self._window, self._length), dtype=np.int64)[:, None]
        position = self._first[None, :] + step
        counts = position < self.predicted
        position = np.minimum(position, self.predicted - 1)
        data = self._shard.bytes
        resets = None if self._starts is None else self._starts[position] & counts
        return Window(data[position], data[position + 1], resets), counts
