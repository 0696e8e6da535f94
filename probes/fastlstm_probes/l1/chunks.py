"""Rows of features in chunks: a matrix in memory, or rows of a states store that are read ahead of their use."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlstm.ahead import ahead
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

    def __init__(self, X: Tensor) -> None:
        self.X = X
        self.count, self.columns = X.shape

    @property
    def device(self) -> torch.device:
        return self.X.device

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, self.count, CHUNK_ROWS):
            yield start, self.X[start : start + CHUNK_ROWS]


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
        with closing(ahead(self._read(), _AHEAD, "read-ahead")) as read:
            for first, values in read:
                yield first, torch.from_numpy(values).to(self._device)

    def in_memory(self) -> MatrixRows:
        """All rows, in the store's own precision, on the device."""
        dtype = {"float16": torch.float16, "float32": torch.float32}[self.store.attributes.dtype]
        X = torch.empty(self.count, self.columns, dtype=dtype, device=self._device)
        for first, values in self.chunks():
            X[first : first + len(values)] = values
        return MatrixRows(X)

    def _read(self) -> Generator[tuple[int, NDArray[np.float32]]]:
        cuts = np.searchsorted(self.index, np.arange(0, self.store.rows + BLOCK_ROWS, BLOCK_ROWS))
        for block, (first, last) in enumerate(pairwise(cuts.tolist())):
            if first < last:
                start = block * BLOCK_ROWS
                states = self.store.read(start, min(start + BLOCK_ROWS, self.store.rows))
                taken = self.index[first:last] - start
                yield first, states if len(taken) == len(states) else states[taken]
