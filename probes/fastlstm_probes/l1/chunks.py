"""Rows of features in chunks: a matrix in memory, or rows of a states store that are read ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlstm.states import States
from fastlstm.states.schema import BLOCK_ROWS

CHUNK_ROWS = BLOCK_ROWS
MEMORY_LIMIT = 2 << 30
_AHEAD = 2


class Rows(Protocol):
    """Features (N, D), any float dtype, without NaN or infinity."""

    count: int
    columns: int

    @property
    def device(self) -> torch.device: ...

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, (n, D)) one after another; the same cuts every time."""
        ...


class MatrixRows:
    """A matrix in memory, on any device."""

    def __init__(self, X: Tensor, chunk_rows: int = CHUNK_ROWS) -> None:
        self.X = X
        self.count, self.columns = X.shape
        self._chunk_rows = chunk_rows

    @property
    def device(self) -> torch.device:
        return self.X.device

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, self.count, self._chunk_rows):
            yield start, self.X[start : start + self._chunk_rows]


class StoreRows:
    """Rows `index` (sorted, int64) of a states store, read from disk on every pass, two chunks ahead of their use."""

    def __init__(self, store: States, index: NDArray[np.int64], device: torch.device | str = "cpu") -> None:
        self.store = store
        self.index = index
        self.count, self.columns = len(index), len(store.units)
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def bytes(self) -> int:
        """What all of the rows take in memory, in the store's own precision."""
        return self.count * self.columns * np.dtype(self.store.attributes.dtype).itemsize

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for first, values in _ahead(self._read()):
            yield first, torch.from_numpy(values).to(self._device)

    def in_memory(self) -> MatrixRows:
        """All rows, in the store's own precision, on the device."""
        dtype = {"float16": torch.float16, "float32": torch.float32}[self.store.attributes.dtype]
        X = torch.empty(self.count, self.columns, dtype=dtype, device=self._device)
        for first, values in self.chunks():
            X[first : first + len(values)] = values
        return MatrixRows(X)

    def _read(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        cuts = np.searchsorted(self.index, np.arange(0, self.store.rows + BLOCK_ROWS, BLOCK_ROWS))
        for block, (first, last) in enumerate(pairwise(cuts.tolist())):
            if first < last:
                start = block * BLOCK_ROWS
                states = self.store.read(start, min(start + BLOCK_ROWS, self.store.rows))
                taken = self.index[first:last] - start
                yield first, states if len(taken) == len(states) else states[taken]


def _ahead(source: Iterator[tuple[int, NDArray[np.float32]]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The items of `source`, made by a thread that stays a few ahead; its errors are raised here."""
    items: queue.Queue[tuple[int, NDArray[np.float32]] | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: tuple[int, NDArray[np.float32]] | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in source:
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # handed to the reader, whatever it is
            put(error)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
