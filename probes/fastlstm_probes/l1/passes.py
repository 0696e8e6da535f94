"""One pass over all rows: the sums at a point of every tag, and rows to take second derivatives from.

A solver sees the rows only through `Passes`, so it is the same for a matrix, a store and several workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fastlstm_probes.l1.chunks import MatrixRows, Rows
from fastlstm_probes.l1.objective import Problem, Sums, add_chunk


@dataclass(frozen=True)
class Sample:
    """Rows X (n, D), and for each tag of the pass their weights (n, k) in the Hessian of its loss: sum of w x x'."""

    X: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Draw:
    """How rows are drawn: about `size`, each with a chance in proportion to its curvature, averaged over the tags.

    curvature: (k,), the sum over all rows, as the last pass had it. size None: all rows of a matrix, not copied.
    """

    size: int | None
    curvature: Tensor
    seed: int


class Passes(Protocol):
    problem: Problem
    count: int
    columns: int

    @property
    def matrix(self) -> Tensor | None:
        """All rows, where they are in one memory."""
        ...

    def evaluate(self, W: Tensor, active: Tensor, draw: Draw | None = None) -> tuple[Sums, Sample | None]:
        """The sums at W (D + 1, k) of the tags `active` (k,)."""
        ...

    def uniform_sample(self, size: int, seed: int) -> LocalPasses:
        """The same problem on about `size` of the rows, in memory, each of which stands for count / size."""
        ...


class LocalPasses:
    """Passes over rows that this process reads. `first`: the number of its first row among those of all workers."""

    def __init__(self, rows: Rows, problem: Problem, first: int = 0) -> None:
        self.rows, self.problem = rows, problem
        self.count, self.columns = rows.count, rows.columns
        self._first = first

    @property
    def matrix(self) -> Tensor | None:
        return self.rows.X if isinstance(self.rows, MatrixRows) else None

    def evaluate(self, W: Tensor, active: Tensor, draw: Draw | None = None) -> tuple[Sums, Sample | None]:
        device = self.rows.device
        sums = Sums.zeros(self.columns, len(active), device)
        drawn: list[tuple[Tensor, Tensor]] = []
        for first, X in self.rows.chunks():
            targets = self.problem.targets(slice(first, first + len(X)), active)
            curvature = add_chunk(sums, X, targets, self.problem, W, active)
            if draw is None:
                continue
            if draw.size is None:
                drawn.append((X, curvature.float()))
                continue
            share = (curvature / draw.curvature.clamp_min(1e-300)).sum(1) / len(active)
            chance = (draw.size * share).clamp(max=1)
            # The chunk's own generator: the rows drawn do not depend on which worker draws them.
            generator = np.random.default_rng((draw.seed, self._first + first))
            chosen = torch.from_numpy(generator.random(len(X))).to(device) < chance
            drawn.append((X[chosen], (curvature[chosen] / chance[chosen, None]).float()))
        if draw is None:
            return sums, None
        weights = torch.cat([weights for _, weights in drawn])
        whole = self.matrix if draw.size is None else torch.cat([X for X, _ in drawn])
        assert whole is not None
        return sums, Sample(whole, weights)

    def uniform_sample(self, size: int, seed: int) -> LocalPasses:
        X, y = self.draw_uniformly(size / self.count, seed)
        return LocalPasses(MatrixRows(X), self.problem.on(y, self.count / len(X)))

    def draw_uniformly(self, chance: float, seed: int) -> tuple[Tensor, Tensor]:
        """Features and labels of rows that each had this chance."""
        drawn: list[tuple[Tensor, Tensor]] = []
        for first, X in self.rows.chunks():
            generator = np.random.default_rng((seed, self._first + first))
            chosen = torch.from_numpy(generator.random(len(X)) < chance).to(self.rows.device)
            drawn.append((X[chosen], self.problem.y[first : first + len(X)][chosen]))
        return torch.cat([X for X, _ in drawn]), torch.cat([y for _, y in drawn])


def strongest_penalty(passes: Passes) -> Tensor:
    """alpha_max of each tag, (K,): the least penalty at which every weight is zero, at the problem's costs.

    Where the intercept is free it is at its best without weights.
    """
    problem = passes.problem
    tags = torch.arange(problem.tags, device=problem.device)
    W = torch.zeros(passes.columns + 1, problem.tags, dtype=torch.float64, device=problem.device)
    free = problem.intercept and not problem.penalise_intercept
    sums, _ = passes.evaluate(W, tags)
    if free:
        # At 0 every t is 1/2: the sums over the classes say where the intercept balances them.
        ours, others = 2 * sums.positive, 2 * (sums.positive + sums.gradient[-1])
        W[-1] = torch.log(ours / others).nan_to_num(posinf=0, neginf=0)
        sums, _ = passes.evaluate(W, tags)
    counted = sums.gradient if problem.intercept and problem.penalise_intercept else sums.gradient[:-1]
    return counted.abs().amax(0)
