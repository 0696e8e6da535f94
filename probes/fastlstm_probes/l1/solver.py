"""The minimum of every tag's objective, with a certificate: the steps are cheap, the stopping rule is exact.

1. On a GPU, of many rows: the minimum on a sample of them is the start.
2. Rows in a GPU's memory: proximal gradient steps for all tags at once, as long as what is left by them costs less
   than 3. On a CPU, where products of few columns run at half speed, 1 to 3 took 524 s and 3 alone 323 (122,000 x 2048,
   45 tags, 2 cores).
3. Proximal Newton steps, tag by tag, each followed by one exact pass for all tags that are left. A step that does not
   bring the decrease that its model promised is shortened, and the next Hessian is of more rows, at last in float64.

A tag is done, and leaves the passes, once its duality gap is at most `tol` times its objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from fastlstm_probes.l1.newton import is_enough, newton_point, shortened
from fastlstm_probes.l1.objective import Sums, dual, primal
from fastlstm_probes.l1.passes import Draw, Passes, Sample
from fastlstm_probes.l1.proximal_gradient import FLOAT32_GAP, ProximalGradient

START_ROWS = 16_384
_START_TOL = 1e-2
_STEPS = 50  # proximal gradient steps between two certificates
_FIRST_TURNS = 3  # certificates before the rate at which the gap falls is believed
_NEWTON_STEPS = 6  # what a Newton finish is taken to need, of as many products per row as columns squared
_ROWS_PER_COLUMN = 16  # of a Newton step's Hessian, at first
_MORE_ROWS = 4
_SHORTEST = 0.05  # steps that must be shorter are of a wrong Hessian
_POOR = 0.35  # less of it is a poor Hessian; a perfect one brings half at the end

Report = Callable[[int, Tensor], None]  # the passes so far, the gap of every tag


@dataclass(frozen=True)
class Solution:
    """W (D + 1, K), objective (K,), relative duality gap (K,), float64; passes (K,) over the rows until it was done."""

    W: Tensor
    objective: Tensor
    gap: Tensor
    passes: Tensor


def solve(
    passes: Passes,
    *,
    tol: float,
    max_passes: int,
    start: Tensor | None = None,
    sample_rows: int = START_ROWS,
    seed: int = 0,
    report: Report | None = None,
) -> Solution:
    """Minimise from `start` (D + 1, K), else from 0. `gap` says of each tag whether `max_passes` were enough."""
    return _Solver(passes, tol, max_passes, start, sample_rows, seed, report).solve()


class _Solver:
    def __init__(
        self,
        passes: Passes,
        tol: float,
        max_passes: int,
        start: Tensor | None,
        sample_rows: int,
        seed: int,
        report: Report | None,
    ) -> None:
        self.passes, self.tol, self.max_passes, self.seed = passes, tol, max_passes, seed
        self.sample_rows, self.report = sample_rows, report
        problem = passes.problem
        device, K = problem.device, problem.tags
        self.penalty = problem.penalty(passes.columns)
        self.cold = start is None
        self.W = torch.zeros(passes.columns + 1, K, dtype=torch.float64, device=device)
        if start is not None:
            self.W = start.to(self.W).clone()
        self.objective = torch.full((K,), torch.inf, dtype=torch.float64, device=device)
        self.bound = torch.full_like(self.objective, -torch.inf)
        costs = torch.maximum(problem.cost_positive, problem.cost_negative)
        self.curvature = costs * passes.count / 4  # at most; at W = 0 about so much
        self.gradient = torch.zeros_like(self.W)
        self.active = torch.arange(K, device=device)
        self.done = 0
        self.passes_of = torch.zeros(K, dtype=torch.int64, device=device)

    def solve(self) -> Solution:
        on_gpu = self.W.is_cuda
        if self.cold and on_gpu and self.passes.count >= 4 * self.sample_rows:
            self._start_on_sample()
        elif not self.cold and self.passes.matrix is None:
            self._evaluate(self.W, draw=False)  # rows are drawn by the curvature at the start
        if self.passes.matrix is not None and on_gpu:
            self._proximal_gradient(self.passes.matrix)
        self._newton()
        return Solution(self.W, self.objective, self.gap(), self.passes_of)

    def gap(self) -> Tensor:
        return (self.objective - self.bound).clamp_min(0) / self.objective.clamp_min(torch.finfo(torch.float64).tiny)

    def _left(self) -> bool:
        return len(self.active) > 0 and self.done < self.max_passes

    def _evaluate(self, W: Tensor, draw: bool) -> tuple[Sums, Tensor, Sample | None]:
        """Sums and objective of the active tags at W (D + 1, k); better bounds are kept."""
        active = self.active
        size = None if self.passes.matrix is not None else self.sample_rows
        drawing = Draw(size, self.curvature[active], self.seed + self.done) if draw else None
        sums, sample = self.passes.evaluate(W, active, drawing)
        self.done += 1
        self.passes_of[active] = self.done
        self.bound[active] = torch.maximum(self.bound[active], dual(sums, self.passes.problem))
        self.curvature[active] = sums.curvature
        return sums, primal(sums, W, self.passes.problem), sample

    def _accept(self, tags: Tensor, W: Tensor, objective: Tensor, gradient: Tensor) -> None:
        self.W[:, tags], self.objective[tags], self.gradient[:, tags] = W, objective, gradient

    def _drop_done(self) -> Tensor:
        """Take the tags that are done from the active ones; which stayed, as a mask of those before."""
        stays = self.gap()[self.active] > self.tol
        self.active = self.active[stays]
        if self.report is not None:
            self.report(self.done, self.gap())
        return stays

    def _start_on_sample(self) -> None:
        """The minimum on a uniform sample of the rows."""
        sample = self.passes.uniform_sample(self.sample_rows, self.seed)
        on_sample = _Solver(sample, _START_TOL, self.max_passes, None, self.sample_rows, self.seed, None)
        self.W = on_sample.solve().W
        self.curvature = on_sample.curvature

    def _proximal_gradient(self, X: Tensor) -> None:
        if not self._left():
            return
        D = self.passes.columns
        walk = ProximalGradient(X, self.passes.problem, self.W[:, self.active], self.active)
        before = torch.ones_like(self.objective)
        settled: list[Tensor] = []  # tags that the Newton steps take over
        for turn in count(1):
            for _ in range(_STEPS):
                walk.step()
            sums, objective, _ = self._evaluate(walk.point, draw=False)
            self._accept(self.active, walk.point, objective, sums.gradient)
            walk.keep(self._drop_done())
            active = self.active
            gap = self.gap()[active].clamp(max=1)
            rate = torch.log(before[active] / gap).clamp_min(1e-3)
            before[active] = gap
            columns = (self.W[:, active] != 0).sum(0)
            left = torch.log(gap / self.tol) / rate * (_STEPS * 4 * D)
            share = (_ROWS_PER_COLUMN * columns / len(X)).clamp(max=1)
            newton = _NEWTON_STEPS * columns * columns * share
            stays = (left < newton) | (turn < _FIRST_TURNS)
            if bool((gap < FLOAT32_GAP).any()):
                walk.in_float64()
            settled.append(active[~stays])
            walk.keep(stays)
            self.active = active[stays]
            if not self._left():
                break
        self.active = torch.cat([*settled, self.active]).sort().values

    def _newton(self) -> None:
        K = self.passes.problem.tags
        rows = torch.full((K,), float(_ROWS_PER_COLUMN), device=self.W.device)
        exact = torch.zeros(K, dtype=torch.bool, device=self.W.device)  # Hessians in float64
        target = self.W.clone()
        length = torch.ones(K, dtype=torch.float64, device=self.W.device)
        promised = torch.zeros(K, dtype=torch.float64, device=self.W.device)
        while self._left():
            active = self.active
            candidate = self.W[:, active] + length[active] * (target[:, active] - self.W[:, active])
            sums, objective, sample = self._evaluate(candidate, draw=True)
            assert sample is not None
            gained = self.objective[active] - objective
            accepted = is_enough(gained, length[active], promised[active], objective)
            ok, bad = active[accepted], active[~accepted]
            poor = active[~accepted | (gained < -_POOR * promised[active])]
            rows[poor] = (rows[poor] * _MORE_ROWS).clamp(max=self.passes.count)
            length[bad] = shortened(length[bad], promised[bad], gained[~accepted])
            # Not a descent at any length: cells so alike that float32 products do not tell them apart.
            failed = ~accepted & (length[active] < _SHORTEST)
            exact[active[failed]] = True
            self._accept(ok, candidate[:, accepted], objective[accepted], sums.gradient[:, accepted])
            before = self.active
            stays = self._drop_done()
            for place, tag in enumerate(before.tolist()):
                if not (bool(accepted[place] | failed[place]) and bool(stays[place])):
                    continue
                w, gradient = self.W[:, tag], self.gradient[:, tag]
                columns = max(int((w != 0).sum()), 256)
                z = newton_point(
                    sample.X,
                    sample.weights[:, place],
                    w,
                    gradient,
                    self.penalty,
                    rows=int(rows[tag] * columns),
                    drawn=len(sample.X) < self.passes.count,
                    seed=self.seed + self.done,
                    dtype=torch.float64 if exact[tag] else torch.float32,
                )
                target[:, tag], length[tag] = z, 1.0
                promised[tag] = gradient @ (z - w) + self.penalty @ (z.abs() - w.abs())
            del sample  # before the next pass draws another
