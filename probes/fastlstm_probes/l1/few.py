"""Many problems of a few columns each, every one on columns of its own, in one Newton iteration.

A protocol fits each of 45 tags on its best 1, 2, 3, 5, 10 and 20 cells, and again for each control: thousands of fits
whose arithmetic takes less time than the calls that order it. Here a pass is a few batched products for all of them,
its Hessians are of all rows, and the certificate is that of `objective.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlstm_probes.l1.interior_point import minimise_quadratics
from fastlstm_probes.l1.newton import is_enough, shortened
from fastlstm_probes.l1.objective import Problem, Sums, add_losses, dual, primal
from fastlstm_probes.l1.solver import Solution

_GROUP_VALUES = {"cpu": 1 << 26, "cuda": 1 << 30}  # float32, of the problems that are solved at a time
_CHUNK_VALUES = {"cpu": 1 << 18, "cuda": 1 << 27}  # float64, of a product
_NEAR = 10.0  # a step that promises this times the root of tol of the objective, or less, may be the last


def solve_few(
    X: Tensor,
    targets: Tensor,
    columns: Sequence[NDArray[np.intp]],
    C: Sequence[float],
    *,
    tol: float,
    max_passes: int,
    start: Sequence[NDArray[np.float64]] | None = None,
) -> list[Solution]:
    """Minimise each problem; its Solution has W (k + 1, 1), of its own k columns and the intercept.

    Args:
        X: (n, D) float32. targets: (n, P) bool, of each problem, on the device of X.
        columns: of each problem, at least one. C: of each problem.
        start: of each problem, (k + 1,), where to begin unless 0 is better; None: at 0.
    """
    size = max(len(one) for one in columns)
    together = max(1, _GROUP_VALUES[X.device.type] // (len(X) * (size + 1)))
    found: list[Solution] = []
    for first in range(0, len(columns), together):
        group = slice(first, first + together)
        cost = torch.tensor(C[group], dtype=torch.float64, device=X.device)
        begin = None if start is None else _padded(start[group], size).to(X.device)
        designs = _designs(X, columns[group], size)
        solver = _FewSolver(designs, targets[:, group].T.contiguous(), cost, tol, max_passes, begin)
        solution = solver.solve()
        for place, one in enumerate(columns[group]):
            own, problem = [*range(len(one)), size], slice(place, place + 1)
            found.append(
                Solution(
                    solution.W[own, problem],
                    solution.objective[problem],
                    solution.gap[problem],
                    solution.passes[problem],
                )
            )
    return found


def _designs(X: Tensor, columns: Sequence[NDArray[np.intp]], size: int) -> Tensor:
    """(P, n, size + 1): the columns of each problem, zeros where it has fewer, and ones at the end."""
    designs = torch.zeros(len(columns), len(X), size + 1, dtype=X.dtype, device=X.device)
    for place, one in enumerate(columns):
        designs[place, :, : len(one)] = X[:, torch.from_numpy(np.ascontiguousarray(one)).to(X.device)]
    designs[:, :, -1] = 1
    return designs


def _padded(start: Sequence[NDArray[np.float64]], size: int) -> Tensor:
    """(size + 1, P), as the columns of `_designs`."""
    W = torch.zeros(size + 1, len(start), dtype=torch.float64)
    for place, one in enumerate(start):
        W[: len(one) - 1, place], W[-1, place] = torch.from_numpy(one[:-1]), float(one[-1])
    return W


class _FewSolver:
    """Problems of designs (P, n, S) and labels (P, n), with costs (P,), from `start` (S, P)."""

    def __init__(
        self, designs: Tensor, labels: Tensor, cost: Tensor, tol: float, max_passes: int, start: Tensor | None
    ) -> None:
        self.designs, self.labels, self.tol, self.max_passes = designs, labels, tol, max_passes
        P, _, S = designs.shape
        self.problem = Problem(labels.T, None, cost, cost)
        self.l1 = self.problem.penalty(S - 1)
        self.near = torch.full((P,), start is not None, device=designs.device)  # worth a certificate
        self.W = torch.zeros(S, P, dtype=torch.float64, device=designs.device)
        self.start = self.W if start is None else start  # the first step's target: a bad one is a step too long
        self.objective = cost * (designs.shape[1] * math.log(2) * (1 + 1e-9))  # at 0, above all rounding
        self.bound = torch.full_like(self.objective, -torch.inf)
        self.passes = torch.zeros(P, dtype=torch.int64, device=designs.device)

    def solve(self) -> Solution:
        target, length = self.start.clone(), torch.ones_like(self.objective)
        promised = torch.zeros_like(self.objective)
        active = torch.arange(len(length), device=length.device)
        for done in range(1, self.max_passes + 1):
            candidate = self.W[:, active] + length[active] * (target[:, active] - self.W[:, active])
            if done == self.max_passes:
                self.near[:] = True
            sums, hessians = self._pass(candidate, active)
            self.passes[active] = done
            self.bound[active] = torch.maximum(self.bound[active], dual(sums, self.problem))
            objective = primal(sums, candidate, self.problem)
            gained = self.objective[active] - objective
            accepted = is_enough(gained, length[active], promised[active], objective)
            ok, bad = active[accepted], active[~accepted]
            length[bad] = shortened(length[bad], promised[bad], gained[~accepted])
            self.W[:, ok], self.objective[ok] = candidate[:, accepted], objective[accepted]
            stays = self._gap()[active] > self.tol
            if not bool(stays.any()):
                break
            steps = accepted & stays
            moving = active[steps]
            w, gradient = candidate[:, steps].T, sums.gradient[:, steps].T
            H = hessians[steps]
            z = minimise_quadratics(H, gradient - (H @ w[:, :, None])[..., 0], self.l1, w)
            target[:, moving], length[moving] = z.T, 1.0
            promised[moving] = (gradient * (z - w)).sum(1) + (z.abs() - w.abs()) @ self.l1
            self.near = -promised <= _NEAR * self.tol**0.5 * self.objective
            active = active[stays]
        return Solution(self.W, self.objective, self._gap(), self.passes)

    def _gap(self) -> Tensor:
        return (self.objective - self.bound).clamp_min(0) / self.objective.clamp_min(torch.finfo(torch.float64).tiny)

    def _pass(self, W: Tensor, active: Tensor) -> tuple[Sums, Tensor]:
        """The sums of the active problems at W (S, k), and their Hessians (k, S, S)."""
        P, n, S = self.designs.shape
        sums = Sums.zeros(S - 1, len(active), W.device)
        hessians = torch.zeros(len(active), S, S, dtype=torch.float64, device=W.device)
        certified = torch.nonzero(self.near[active])[:, 0]
        step = max(1, _CHUNK_VALUES[W.device.type] // (len(active) * S))
        for first in range(0, n, step):
            rows = slice(first, first + step)
            X, targets = self.designs[:, rows], self.labels[:, rows]
            if len(active) < P:
                X, targets = X[active], targets[active]
            X = X.double()
            margin = (X @ W.T[:, :, None])[..., 0]
            slope, curvature = add_losses(sums, margin.T, targets.T, self.problem, active, certified)
            sums.gradient += (X.mT @ slope.T[:, :, None])[..., 0].T
            hessians += X.mT @ (X * curvature.T[:, :, None])
        return sums, hessians
