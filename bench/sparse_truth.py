"""Cells and tags whose truth is sparse: what the benchmark of the probes fits. Made by a generator, chunk by chunk.

A cell is tanh of shared directions and noise, on a scale of its own (log-normal, as those of an LSTM differ); the tag
of a row is drawn from a softmax of a linear rule on 30 cells per tag, whose biases make tags rare in geometric steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_SHARED = 64
_CELLS_OF_A_TAG = 30


@dataclass(frozen=True)
class SparseTruth:
    rows: int
    cells: int
    tags: int
    device: str = "cpu"
    chunk_rows: int = 8192

    def chunks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """First row, cells (n, D) float32, codes of the tags (n,) int64; the same every time on one device."""
        generator = torch.Generator(self.device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.device)

        directions = normal(_SHARED, self.cells) * (0.5 / _SHARED) ** 0.5
        scale = torch.exp(normal(self.cells))
        rule = torch.zeros(self.cells, self.tags, device=self.device)
        for tag in range(self.tags):
            chosen = torch.randperm(self.cells, generator=generator, device=self.device)[:_CELLS_OF_A_TAG]
            rule[chosen, tag] = 0.8 * normal(len(chosen))
        bias = -torch.linspace(0, 6, self.tags, device=self.device)
        for first in range(0, self.rows, self.chunk_rows):
            n = min(self.chunk_rows, self.rows - first)
            inside = normal(n, _SHARED) @ directions + 0.7 * normal(n, self.cells)
            uniform = torch.rand((n, self.tags), generator=generator, device=self.device)
            gumbel = -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))
            yield first, torch.tanh(inside) * scale, (inside @ rule + bias + gumbel).argmax(1)

    def matrix(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """All of it: (N, D), (N,)."""
        X = torch.empty(self.rows, self.cells, dtype=dtype, device=self.device)
        codes = torch.empty(self.rows, dtype=torch.int64, device=self.device)
        for first, cells, tags in self.chunks():
            X[first : first + len(cells)], codes[first : first + len(cells)] = cells, tags
        return X, codes
