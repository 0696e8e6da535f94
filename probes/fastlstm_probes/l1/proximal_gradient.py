"""Accelerated proximal gradient steps for all tags at once: two matrix products a step, whatever the number of tags.

FISTA (Beck and Teboulle 2009) with adaptive restart (O'Donoghue and Candes 2015), a step length per tag, and columns
scaled to unit mean square, which changes the metric and not the problem. Fast where the Hessian is well conditioned;
`solver.py` leaves it where it is not. Products are float32; a GPU, whose double products take little longer, can finish
in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastlstm_probes.l1.objective import Problem

# Relative duality gap that weights rounded to float32 do not get far below (5e-5 measured on 20,000 x 2048).
FLOAT32_GAP = 2e-4
_CHUNK_ROWS = 8192
_LONGER = 0.95  # what a step's curvature estimate is multiplied by after each step
_SAFETY = 1.05


class ProximalGradient:
    """Steps of k tags from W (D + 1, k) float64, on X (N, D) of any float dtype on the problem's device."""

    def __init__(self, X: Tensor, problem: Problem, W: Tensor, active: Tensor) -> None:
        self.X = X
        self.dtype = torch.float32
        square = torch.zeros(X.shape[1], dtype=torch.float64, device=X.device)
        for _, chunk in self._chunks():
            square += chunk.square().sum(0)
        rms = (square / len(X)).sqrt()
        self.scale = torch.cat([1 / torch.where(rms > 0, rms, 1.0), torch.ones_like(rms[:1])]).to(self.dtype)[:, None]
        self.penalty = problem.penalty(X.shape[1]).to(self.dtype)[:, None] * self.scale
        self.free = torch.ones_like(self.scale)
        self.free[-1] = float(problem.intercept)
        self.targets = problem.targets(slice(None), active)
        costs = (problem.cost_positive[active], problem.cost_negative[active])
        self.cost = torch.where(self.targets, *costs).to(self.dtype)
        self.x = W.to(self.dtype) / self.scale
        self.y, self.t = self.x, torch.ones_like(self.x[0])
        self.L = self.cost.sum(0) / 4  # the largest curvature along one scaled column
        self.margin_x = self.margin_y = self._margins(self.x * self.scale)

    @property
    def point(self) -> Tensor:
        """(D + 1, k) float64."""
        return (self.x * self.scale).double()

    def keep(self, tags: Tensor) -> None:
        """Go on with some of the tags: a mask (k,)."""
        for name in ("targets", "cost", "x", "y", "t", "L", "margin_x", "margin_y"):
            setattr(self, name, getattr(self, name)[..., tags])

    def in_float64(self) -> None:
        """Go on in float64."""
        self.dtype = torch.float64
        for name in ("scale", "penalty", "free", "cost", "x", "y", "t", "L"):
            setattr(self, name, getattr(self, name).double())
        self.margin_x, self.margin_y = self._margins(self.x * self.scale), self._margins(self.y * self.scale)

    def _gradient(self, share: Tensor) -> Tensor:
        slope = self.cost * (share - self.targets.to(self.dtype))
        # Shares of far rows are subnormal numbers, with which a product takes ten times as long.
        slope = torch.where(slope.abs() < 1e-30, 0.0, slope)
        gradient = torch.zeros(self.x.shape, dtype=torch.float64, device=self.x.device)
        for rows, chunk in self._chunks():
            gradient[:-1] += chunk.T @ slope[rows]
        gradient[-1] = slope.double().sum(0)
        return gradient.to(self.dtype) * self.free

    def step(self) -> None:
        share = torch.sigmoid(self.margin_y)
        gradient = self._gradient(share) * self.scale
        moved = self.y - gradient / self.L
        new = torch.sign(moved) * (moved.abs() - self.penalty / self.L).clamp_min(0)
        margin = self._margins(new * self.scale)
        square = (new - self.y).square().sum(0)
        # (grad f(new) - grad f(y)) . (new - y), from the margins; at most L |new - y|^2 makes a step a descent.
        along = (self.cost * (torch.sigmoid(margin) - share) * (margin - self.margin_y)).sum(0)
        tiny = square <= 1e-12 * new.square().sum(0)
        needed = along / square.clamp_min(torch.finfo(square.dtype).tiny)
        fine = (needed <= self.L) | tiny
        restart = ((self.y - new) * (new - self.x)).sum(0) > 0
        t = torch.where(restart, 1.0, (1 + torch.sqrt(1 + 4 * self.t * self.t)) / 2)
        momentum = torch.where(restart, 0.0, (self.t - 1) / t)
        self.y = torch.where(fine, new + momentum * (new - self.x), self.y)
        self.margin_y = torch.where(fine, margin + momentum * (margin - self.margin_x), self.margin_y)
        self.x, self.margin_x = torch.where(fine, new, self.x), torch.where(fine, margin, self.margin_x)
        self.t = torch.where(fine, t, self.t)
        self.L = torch.where(fine, torch.where(tiny, self.L, self.L * _LONGER), needed * _SAFETY)

    def _margins(self, W: Tensor) -> Tensor:
        margins = torch.empty(len(self.X), W.shape[1], dtype=self.dtype, device=W.device)
        for rows, chunk in self._chunks():
            torch.addmm(W[-1], chunk, W[:-1], out=margins[rows])
        return margins

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, len(self.X), _CHUNK_ROWS):
            rows = slice(first, first + _CHUNK_ROWS)
            yield rows, self.X[rows].to(self.dtype)
