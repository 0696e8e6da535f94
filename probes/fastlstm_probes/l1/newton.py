"""One proximal Newton step of one tag: where the quadratic model of its loss, plus the penalty, is least.

The gradient of the model is exact, its Hessian is of the rows that carry most of the curvature: sum of w_i x_i x_i'
over rows drawn with a chance in proportion to w_i. Only columns that can matter are moved: those with a weight and
those that violate the optimality conditions most.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastlstm_probes.l1.interior_point import minimise_quadratic

_ROWS = {"cpu": 2048, "cuda": 8192}  # of a product
_COLUMNS = 512
_SMALLEST_SET = 256
_LARGEST_SHARE = 0.5  # of columns to rows that a step is shortened for
_ENOUGH = 1e-4  # of the promised decrease: less is a step too long


def newton_point(
    X: Tensor,
    weights: Tensor,
    w: Tensor,
    gradient: Tensor,
    penalty: Tensor,
    *,
    rows: int,
    drawn: bool,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The minimiser (D + 1,) of gradient'(z - w) + (z - w)'H(z - w) / 2 + penalty'|z|, float64.

    Args:
        X: (n, D), any float dtype. weights: (n,) float32, of each row in the Hessian.
        w, gradient, penalty: (D + 1,) float64, the intercept last.
        rows: take about so many of the rows into H. drawn: X has not all rows, so that there are no more to take.
        seed: of that choice. dtype: of H's products.
    """
    columns = working_set(w, gradient, penalty)
    taken, weights = _thin(weights, rows, seed)
    H = hessian(X, taken, weights, columns, dtype)
    if drawn:
        effective = weights.double().sum() ** 2 / weights.double().square().sum()  # as many rows of equal weights
        H *= sampling_factor(len(columns) / float(effective))
    z = torch.zeros_like(w)
    start = w[columns]
    z[columns] = minimise_quadratic(H, gradient[columns] - H @ start, penalty[columns], start)
    return z


def sampling_factor(share: float) -> float:
    """What a Hessian of few rows is multiplied by, so that steps by it are too long in some directions as they are too
    short in others; share: columns over rows.

    Beside the Hessian of all rows it has eigenvalues from (1 - sqrt(share))^2 to (1 + sqrt(share))^2 (Marchenko and
    Pastur 1967); the factor is the mean of their inverses' ends.
    """
    share = min(share, _LARGEST_SHARE)
    return (1 + share) / (1 - share) ** 2


def is_enough(gained: Tensor, length: Tensor, promised: Tensor, objective: Tensor) -> Tensor:
    """Whether steps of this length gained enough of what the whole ones promised; `objective`: after them."""
    rounding = 1e-13 * objective.abs()
    return gained >= -_ENOUGH * length * promised - rounding


def shortened(length: Tensor, promised: Tensor, gained: Tensor) -> Tensor:
    """Of a step too long: to the minimum of the parabola through what is known, a tenth to a half of it."""
    shorter = promised * length / (2 * (gained / length + promised))
    return torch.minimum(torch.maximum(shorter, 0.1 * length), 0.5 * length)


def working_set(w: Tensor, gradient: Tensor, penalty: Tensor) -> Tensor:
    """Columns with a weight, and those whose slope exceeds the penalty most, up to as many again (at least 256)."""
    excess = torch.where((w != 0) | (penalty == 0), torch.inf, gradient.abs() - penalty)
    size = max(_SMALLEST_SET, 2 * int((w != 0).sum()))
    near = torch.nonzero(excess > -0.05)[:, 0]
    if len(near) > size:
        near = torch.topk(excess, size).indices.sort().values
    return near


def _thin(weights: Tensor, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """About `rows` row numbers and their weights, whose expected sum over any rows is that of all of them."""
    chosen = torch.nonzero(weights)[:, 0]
    weights = weights[chosen]
    if len(chosen) <= rows:
        return chosen, weights
    level = float(weights.double().sum()) / rows
    draw = torch.from_numpy(np.random.default_rng(seed).random(len(chosen), dtype=np.float32)).to(weights.device)
    taken = draw * level < weights
    return chosen[taken], weights[taken].clamp_min(level)


def hessian(X: Tensor, rows: Tensor, weights: Tensor, columns: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sum of w_i x_i x_i' over `rows` (n,) of X for some columns (S,), of which D is the ones: float64 (S, S).

    Products are of `dtype`, sums over blocks of rows float64. Columns are taken from a centre m, whose part is added in
    float64: a mean that is large beside a column's variation would lose that to rounding. With d = x - m, s = sum w d:
    sum w x x' = sum w d d' + m s' + s m' + (sum w) m m'.
    """
    S = len(columns)
    H = torch.zeros(S, S, dtype=torch.float64, device=X.device)
    s, total = torch.zeros_like(H[0]), weights.double().sum()
    real = columns[columns < X.shape[1]]
    centre = torch.zeros(S, dtype=dtype, device=X.device)
    weights = weights.to(dtype)
    size = _ROWS[X.device.type]
    for first in range(0, len(rows), size):
        block = X[rows[first : first + size]][:, real].to(dtype)
        if len(real) < S:
            block = (
                torch.cat([block, torch.ones_like(block[:, :1])], dim=1)
                if S > 1
                else torch.ones(len(block), 1, dtype=dtype, device=X.device)
            )
        if first == 0:
            centre = block.mean(0)
        block -= centre
        weight = weights[first : first + size]
        s += (weight @ block).double()
        block *= weight[:, None].sqrt()
        for left in range(0, S, _COLUMNS):  # the upper triangle, in blocks
            H[left : left + _COLUMNS, left:] += block[:, left : left + _COLUMNS].T @ block[:, left:]
    H.triu_()
    H += H.triu(1).T
    m = centre.double()
    H.addr_(m, s + total * m)
    return H.addr_(s, m)
