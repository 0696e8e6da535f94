"""Passes that several workers share: processes of torch.distributed, or a Dask cluster given by its address.

The sums of a pass are sums over rows, so each worker adds up its own and they are added in a fixed order. The rows that
a pass draws for second derivatives are gathered; the steps themselves are computed where `solve` runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fastlstm.states import open_states
from fastlstm_probes.l1.chunks import MEMORY_LIMIT, MatrixRows, StoreRows
from fastlstm_probes.l1.objective import Problem, Sums
from fastlstm_probes.l1.passes import Draw, LocalPasses, Sample


class ProcessGroupPasses:
    """Passes of all processes of a group, each over its own rows; every process gets the same answer.

    local: this process's rows, whose `first` is the number of its first row among those of all.
    """

    matrix: Tensor | None = None

    def __init__(self, local: LocalPasses, group: dist.ProcessGroup | None = None) -> None:
        self.local, self.problem, self.columns = local, local.problem, local.columns
        self.group = group
        self.count = int(self._sum(torch.tensor(local.count, device=local.problem.device)))

    def evaluate(self, W: Tensor, active: Tensor, draw: Draw | None = None) -> tuple[Sums, Sample | None]:
        sums, sample = self.local.evaluate(W, active, draw)
        for tensor in sums.tensors()[:-1]:
            self._sum(tensor)
        dist.all_reduce(sums.largest, dist.ReduceOp.MAX, group=self.group)
        return sums, None if sample is None else Sample(self._gather(sample.X), self._gather(sample.weights))

    def uniform_sample(self, size: int, seed: int) -> LocalPasses:
        X, y = (self._gather(part) for part in self.local.draw_uniformly(size / self.count, seed))
        return LocalPasses(MatrixRows(X), self.problem.on(y, self.count / len(X)))

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place, the same bits in each."""
        dist.all_reduce(tensor, group=self.group)
        dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def _gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one after another."""
        size = torch.tensor([len(rows)], device=rows.device)
        sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(sizes, size, group=self.group)
        counts = [int(one) for one in sizes]
        whole = rows.new_zeros((max(counts), *rows.shape[1:]))
        whole[: len(rows)] = rows
        parts = [torch.empty_like(whole) for _ in counts]
        # Gloo has no bool.
        as_bytes = rows.dtype == torch.bool
        if as_bytes:
            whole, parts = whole.view(torch.uint8), [part.view(torch.uint8) for part in parts]
        dist.all_gather(parts, whole, group=self.group)
        gathered = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        return gathered.view(torch.bool) if as_bytes else gathered


@dataclass(frozen=True, eq=False)
class _Part:
    """A worker's share: rows of a store that it can read under the same path."""

    store: Path
    index: NDArray[np.int64]
    first: int
    problem: Problem
    memory_limit: int
    key: str

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Part) and other.key == self.key


class DaskPasses:
    """Passes over rows of a store on the workers of a Dask cluster, which all see the store under its path.

    Args:
        address: of the scheduler ("tcp://host:8786"), or a `distributed.Client`.
        store, index: whose rows; index sorted, int64.
        problem: on the CPU; its y are those rows'.
        parts: how many; each is kept in a worker's memory between passes if it takes at most half of `memory_limit`.
    """

    matrix: Tensor | None = None

    def __init__(
        self,
        address: Any,
        store: Path,
        index: NDArray[np.int64],
        problem: Problem,
        *,
        parts: int,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        from distributed import Client

        self._client = address if isinstance(address, Client) else Client(address)  # type: ignore[no-untyped-call]
        self.problem, self.count = problem, len(index)
        states = open_states(store)
        self.columns = len(states.units)
        cuts = np.linspace(0, len(index), parts + 1).astype(int).tolist()
        shares = [
            _Part(
                store.resolve(),
                index[a:b],
                a,
                replace(problem, y=problem.y[a:b]),
                memory_limit,
                f"{states.identity}-{a}-{b}-{id(self)}",
            )
            for a, b in pairwise(cuts)
        ]
        self._parts = self._client.scatter(shares, hash=False)  # type: ignore[no-untyped-call]

    def evaluate(self, W: Tensor, active: Tensor, draw: Draw | None = None) -> tuple[Sums, Sample | None]:
        found = self._map(_evaluate, W, active, draw)
        sums = Sums.zeros(self.columns, len(active), W.device)
        for part, _ in found:
            sums.add(part)
        if draw is None:
            return sums, None
        samples = [sample for _, sample in found]
        return sums, Sample(torch.cat([s.X for s in samples]), torch.cat([s.weights for s in samples]))

    def uniform_sample(self, size: int, seed: int) -> LocalPasses:
        found = self._map(_draw, size / self.count, seed)
        X, y = (torch.cat(parts) for parts in zip(*found, strict=True))
        return LocalPasses(MatrixRows(X), self.problem.on(y, self.count / len(X)))

    def _map(self, function: Any, *arguments: Any) -> Sequence[Any]:
        futures = [self._client.submit(function, part, *arguments, pure=False) for part in self._parts]
        return self._client.gather(futures)  # type: ignore[no-any-return, no-untyped-call]


@lru_cache(maxsize=8)
def _local(part: _Part) -> LocalPasses:
    rows = StoreRows(open_states(part.store), part.index)
    if rows.bytes <= part.memory_limit // 2:
        return LocalPasses(rows.in_memory(), part.problem, part.first)
    return LocalPasses(rows, part.problem, part.first)


def _evaluate(part: _Part, W: Tensor, active: Tensor, draw: Draw | None) -> tuple[Sums, Sample | None]:
    return _local(part).evaluate(W, active, draw)


def _draw(part: _Part, chance: float, seed: int) -> tuple[Tensor, Tensor]:
    return _local(part).draw_uniformly(chance, seed)
