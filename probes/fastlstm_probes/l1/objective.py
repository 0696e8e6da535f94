"""What is minimised, over all tags at once, and how far from the minimum a point is at most.

For each tag k, over w (D,) and b, with y_i = -1 or 1 and costs c_i = C * (weight of the class of row i):

    P(w, b) = |w|_1 + |b| + sum_i c_i log(1 + exp(-y_i (x_i . w + b)))

The intercept is penalised as liblinear does (Fan et al. 2008) or left free as saga does. The dual (Yu, Huang and Lin
2011, section 2) maximises, over 0 <= t_i <= 1,

    D(t) = sum_i c_i h(t_i),   h(t) = -t log t - (1 - t) log(1 - t),   |sum_i c_i t_i y_i x_ij| <= 1 for every j

(the column of ones counts where the intercept is penalised; where it is free its sum must be 0). A point (w, b) gives
t_i = sigma(-y_i (x_i . w + b)), which scaled by s <= 1 is feasible, and P - D bounds what is left to gain. All sums of
products here are float64: the bound is exact whatever the steps that led to the point were computed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

# D is concave in the scale s, so a chord between two of these lies below it; the chord's error is of second order.
SCALES = (1.0, 1 - 1e-4, 1 - 1e-2)


@dataclass(frozen=True)
class Problem:
    """K binary problems on the same N rows. y: codes (N,) int64 with `codes` (K,) the tags', or bool (N, K).

    cost_positive, cost_negative: (K,) float64, C times the weight of the class.
    """

    y: Tensor
    codes: Tensor | None
    cost_positive: Tensor
    cost_negative: Tensor
    intercept: bool = True
    penalise_intercept: bool = True

    @property
    def tags(self) -> int:
        return len(self.cost_positive)

    @property
    def device(self) -> torch.device:
        return self.y.device

    def targets(self, rows: slice | Tensor, active: Tensor) -> Tensor:
        """Which of the rows belong to the `active` tags (k,): bool (n, k)."""
        if self.codes is None:
            return self.y[rows][:, active]
        return self.y[rows, None] == self.codes[active]

    def penalty(self, columns: int) -> Tensor:
        """(D + 1,) float64: 1, and the intercept's 0 or 1 at the end."""
        weights = torch.ones(columns + 1, dtype=torch.float64, device=self.device)
        weights[-1] = float(self.penalise_intercept or not self.intercept)
        return weights

    def scaled(self, factor: Tensor) -> Problem:
        """With every cost of a tag times its factor, (K,)."""
        return replace(self, cost_positive=self.cost_positive * factor, cost_negative=self.cost_negative * factor)

    def on(self, y: Tensor, factor: float) -> Problem:
        """The same problems on some rows, whose labels are `y` and each of which stands for `factor` rows."""
        return replace(self, y=y, cost_positive=self.cost_positive * factor, cost_negative=self.cost_negative * factor)


@dataclass
class Sums:
    """Sums over rows at one point of each of k tags; sums of parts are the sums of the whole.

    loss, curvature (sum of c_i t_i (1 - t_i)): (k,). gradient: (D + 1, k), of the loss; the intercept last.
    entropy: (scales, 2, k), sum of c_i h(s t_i) over positives and negatives. Where the intercept is free, else 0:
    positive: (k,), sum of c_i t_i over the positives; largest: (D,), largest |x_ij|. All float64.
    """

    loss: Tensor
    curvature: Tensor
    gradient: Tensor
    entropy: Tensor
    positive: Tensor
    largest: Tensor

    @classmethod
    def zeros(cls, columns: int, tags: int, device: torch.device) -> Sums:
        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        per_class = zero(len(SCALES), 2, tags)
        return cls(zero(tags), zero(tags), zero(columns + 1, tags), per_class, zero(tags), zero(columns))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.loss, self.curvature, self.gradient, self.entropy, self.positive, self.largest

    def add(self, other: Sums) -> None:
        for mine, theirs in zip(self.tensors()[:-1], other.tensors()[:-1], strict=True):
            mine += theirs
        torch.maximum(self.largest, other.largest, out=self.largest)


def add_chunk(sums: Sums, X: Tensor, targets: Tensor, problem: Problem, W: Tensor, active: Tensor) -> Tensor:
    """Add one chunk X (n, D) with targets (n, k) at the points W (D + 1, k); its curvatures (n, k) come back."""
    X64 = X.double()
    slope, curvature = add_losses(sums, X64 @ W[:-1] + W[-1], targets, problem, active)
    sums.gradient[:-1] += X64.T @ slope
    if problem.intercept:
        sums.gradient[-1] += slope.sum(0)
    if problem.intercept and not problem.penalise_intercept:
        torch.maximum(sums.largest, torch.maximum(X.amax(0), -X.amin(0)).double(), out=sums.largest)
    return curvature


def add_losses(
    sums: Sums, margin: Tensor, targets: Tensor, problem: Problem, active: Tensor, certified: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add what rows with these margins (n, k) and targets (n, k) have besides the gradient.

    certified: numbers of the tags that get entropies, None: all. Without them `dual` is 0, which is a bound too, and
    the sums take half the time. Slopes and curvatures (n, k) come back: derivatives of the loss by the margin.
    """
    against = torch.where(targets, -margin, margin)
    cost = torch.where(targets, problem.cost_positive[active], problem.cost_negative[active])
    t = torch.sigmoid(against)
    loss = softplus(against)
    sums.loss += (cost * loss).sum(0)
    if problem.intercept and not problem.penalise_intercept:
        sums.positive += torch.where(targets, cost * t, 0.0).sum(0)
    slope, curvature = cost * torch.where(targets, -t, t), cost * t * (1 - t)
    sums.curvature += curvature.sum(0)
    if certified is None:
        _add_entropies(sums, slice(None), against, targets, cost, t, loss)
    elif len(certified):
        parts = (one[:, certified] for one in (against, targets, cost, t, loss))
        _add_entropies(sums, certified, *parts)
    return slope, curvature


def _add_entropies(
    sums: Sums, tags: slice | Tensor, against: Tensor, targets: Tensor, cost: Tensor, t: Tensor, loss: Tensor
) -> None:
    log_t = -softplus(-against)
    for place, scale in enumerate(SCALES):
        scaled = scale * t
        # At scale 1, log(1 - t) is minus the loss, exactly, also where 1 - t rounds to 0.
        log_rest = -loss if scale == 1 else torch.log1p(-scaled)
        entropy = -cost * (scaled * (math.log(scale) + log_t) + (1 - scaled) * log_rest)
        sums.entropy[place, 0, tags] += torch.where(targets, entropy, 0.0).sum(0)
        sums.entropy[place, 1, tags] += torch.where(targets, 0.0, entropy).sum(0)


def primal(sums: Sums, W: Tensor, problem: Problem) -> Tensor:
    """P of each tag, (k,), at the points W (D + 1, k) that the sums were taken at."""
    penalty: Tensor = problem.penalty(len(W) - 1) @ W.abs()
    return sums.loss + penalty


def dual(sums: Sums, problem: Problem) -> Tensor:
    """A lower bound on the minimum of P of each tag, (k,): D of the scaled point of the sums."""
    slopes = sums.gradient.abs()
    if problem.intercept and not problem.penalise_intercept:
        # The class with the larger sum is scaled down to the other's, so that the ones are orthogonal. What that
        # takes from a column's sum is at most |difference| * max_i |x_ij|.
        difference = sums.gradient[-1]
        negative = sums.positive + difference
        positive_scale = (negative / sums.positive.clamp_min(1e-300)).clamp(max=1)
        negative_scale = (sums.positive / negative.clamp_min(1e-300)).clamp(max=1)
        slopes = slopes[:-1] + sums.largest[:, None] * difference.abs()
    else:
        positive_scale = negative_scale = torch.ones_like(sums.loss)
    scale = (1 / slopes.amax(0)).clamp(max=1)
    return _below(sums.entropy[:, 0], scale * positive_scale) + _below(sums.entropy[:, 1], scale * negative_scale)


def _below(entropy: Tensor, scale: Tensor) -> Tensor:
    """The chord of the concave s -> D(s) at `scale` (k,); D(0) = 0."""
    points = (*SCALES, 0.0)
    values = [*entropy, torch.zeros_like(scale)]
    below: Tensor = values[-1]
    for (high, at_high), (low, at_low) in zip(
        zip(points, values, strict=True), zip(points[1:], values[1:], strict=True), strict=False
    ):
        part = (scale - low) / (high - low)
        below = torch.where((scale >= low) & (scale <= high), at_low + part * (at_high - at_low), below)
    return below
