"""The small dense problem inside a Newton step: a quadratic with an L1 penalty, solved to machine precision.

    minimise over z   z'Hz / 2 + c'z + sum_j l_j |z_j|

H (S, S) is positive definite but, for the cells of an LSTM, close to singular: on its 128 cells, first-order and
coordinate methods did not solve it in thousands of sweeps. An interior-point method takes a dozen factorisations
whatever the condition. The last step solves for the coordinates that it left away from zero, so that zeros are exact.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

_ITERATIONS = 60
_TOLERANCE = 1e-10
_TRIES = 8
_DAMPING = 1e-10  # of a unit diagonal


def minimise_quadratic(H: Tensor, c: Tensor, l1: Tensor, start: Tensor) -> Tensor:
    """The minimiser z (S,) float64 of the problem above.

    Args:
        H: (S, S), c: (S,), float64, on one device.
        l1: (S,) float64, at least 0; a coordinate of 0 is not penalised.
        start: (S,) a guess; where its signs are already those of the solution one factorisation suffices.
    """
    scale = H.diagonal().clamp_min(torch.finfo(H.dtype).tiny).rsqrt()
    H, c, l1 = H * scale * scale[:, None], c * scale, l1 * scale
    # A singular H is made definite around `start`, where the step begins: its minimiser moves by a part of the step.
    H.diagonal().add_(_DAMPING)
    c = c - _DAMPING * start / scale
    found, signs = _from_signs(H, c, l1, torch.sign(start))
    if found is None:
        signs = _interior_point(H, c, l1)
        found, _ = _from_signs(H, c, l1, signs, last=True)
        assert found is not None
    return found * scale


def minimise_quadratics(H: Tensor, c: Tensor, l1: Tensor, start: Tensor) -> Tensor:
    """`minimise_quadratic` of many small problems at once: H (P, S, S), c and start (P, S), l1 (S,); z (P, S).

    Where H has a column of zeros, c must be within l1 there, and z is 0. Signs are corrected for all problems together;
    those that do not settle are solved one by one.
    """
    z, settled = torch.zeros_like(c), torch.zeros(len(c), dtype=torch.bool, device=c.device)
    diagonal = H.diagonal(dim1=1, dim2=2)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = H * scale[:, :, None] * scale[:, None, :]
    eye = torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
    scaled += _DAMPING * eye
    shift = c * scale - _DAMPING * start / scale
    bound, free = l1 * scale, l1 == 0
    signs = torch.sign(start)
    for _ in range(_TRIES):
        on = (signs != 0) | free
        factor, failed = torch.linalg.cholesky_ex(torch.where(on[:, :, None] & on[:, None, :], scaled, eye))
        at = torch.cholesky_solve(torch.where(on, -(shift + bound * signs), 0.0)[:, :, None], factor)[..., 0]
        slope = (scaled @ at[:, :, None])[..., 0] + shift
        wrong = (at * signs < 0) & ~free
        missed = (signs == 0) & ~free & (slope.abs() > bound * (1 + 1e-9))
        fine = ~(wrong | missed).any(1) & (failed == 0) & ~settled
        z[fine] = (at * scale)[fine]
        settled |= fine
        if bool(settled.all()):
            break
        signs = torch.where(wrong, 0.0, torch.where(missed, -torch.sign(slope), torch.sign(signs)))
    for one in torch.nonzero(~settled)[:, 0].tolist():
        there = diagonal[one] > 0
        z[one, there] = minimise_quadratic(H[one][there][:, there], c[one, there], l1[there], start[one, there])
    return z


def _from_signs(H: Tensor, c: Tensor, l1: Tensor, signs: Tensor, *, last: bool = False) -> tuple[Tensor | None, Tensor]:
    """Solve for the coordinates of the given signs and correct the signs by what comes out (a primal-dual active set).

    None if it does not settle in a few tries; `last`: the best that was met.
    """
    free = l1 == 0
    best, least = None, torch.inf
    for _ in range(_TRIES):
        on = torch.nonzero((signs != 0) | free)[:, 0]
        z = torch.zeros_like(c)
        if len(on):
            factor = _factor(H[on][:, on])
            z[on] = torch.cholesky_solve(-(c + l1 * signs)[on, None], factor)[:, 0]
        slope = H @ z + c
        wrong = (z * signs < 0) & ~free
        missed = (signs == 0) & (slope.abs() > l1 * (1 + 1e-9))
        if last:
            z = torch.where(wrong, 0.0, z)
            value = float(z @ (H @ z) / 2 + c @ z + l1 @ z.abs())
            if value < least:
                best, least = z, value
        if not bool(wrong.any() | missed.any()):
            return z, signs
        signs = torch.where(wrong, 0.0, torch.where(missed, -torch.sign(slope), torch.sign(signs)))
    return best, signs


def _interior_point(H: Tensor, c: Tensor, l1: Tensor) -> Tensor:
    """The signs of the minimiser, 0 where the penalty holds it there (Mehrotra's predictor-corrector).

    z = u - v with u, v >= 0, whose multipliers are a = l1 + (Hz + c) and b = l1 - (Hz + c). H and c are scaled to a
    unit diagonal of H.
    """
    free = l1 == 0
    bound = ~free
    count = max(2 * int(bound.sum()), 1)
    u = torch.full_like(c, float(c.abs().mean()) + 1e-3)
    v, a, b = u.clone(), torch.where(free, 1.0, l1), torch.where(free, 1.0, l1)
    z = torch.zeros_like(c)
    for _ in range(_ITERATIONS):
        slope = H @ z + c
        r, s = a - l1 - slope, b - l1 + slope
        mean = float(((u * a + v * b) * bound).sum()) / count
        residual = torch.where(free, slope.abs(), torch.maximum(r.abs(), s.abs())).max()
        if mean < _TOLERANCE and float(residual) < _TOLERANCE * (1 + float(c.abs().max())):
            break
        A, B = a / u, b / v
        E = torch.where(free, 0.0, A * B / (A + B))
        factor = _factor(H + torch.diag(E))

        step = partial(_step, H, factor, (u, v, a, b), (r, s), torch.where(free, -slope, torch.nan), E)
        _, du, dv, da, db = step(-u * a, -v * b)
        primal = min(1.0, _longest(bound, (u, du), (v, dv)))
        dual = min(1.0, _longest(bound, (a, da), (b, db)))
        ahead = (u + primal * du) * (a + dual * da) + (v + primal * dv) * (b + dual * db)
        target = mean * (float((ahead * bound).sum()) / count / mean) ** 3
        dz, du, dv, da, db = step(target - u * a - du * da, target - v * b - dv * db)
        length = min(1.0, 0.995 * _longest(bound, (u, du), (v, dv), (a, da), (b, db)))
        z = z + length * dz
        u, v, a, b = (x + length * d for x, d in ((u, du), (v, dv), (a, da), (b, db)))
    return torch.where(free, torch.sign(z), torch.where(u > a, 1.0, torch.where(v > b, -1.0, 0.0)))


def _step(
    H: Tensor,
    factor: Tensor,
    point: tuple[Tensor, Tensor, Tensor, Tensor],
    residual: tuple[Tensor, Tensor],
    free_side: Tensor,
    E: Tensor,
    ku: Tensor,
    kv: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The Newton step (dz, du, dv, da, db) to a du + u da = ku and b dv + v db = kv; free_side: NaN where not free."""
    u, v, a, b = point
    p, q = residual[0] + ku / u, residual[1] + kv / v
    A, B = a / u, b / v
    side = torch.where(free_side.isnan(), E * (p / A - q / B), free_side)
    dz = torch.cholesky_solve(side[:, None], factor)[:, 0]
    Hdz = H @ dz
    du, dv = (p - Hdz) / A, (q + Hdz) / B
    return dz, du, dv, (ku - a * du) / u, (kv - b * dv) / v


def _longest(bound: Tensor, *pairs: tuple[Tensor, Tensor]) -> float:
    """How far each x >= 0 can go along its d."""
    return min(float(torch.where((d < 0) & bound, -x / d, torch.inf).min()) for x, d in pairs)


def _factor(matrix: Tensor) -> Tensor:
    """Its Cholesky factor, with as much added to the diagonal as it takes."""
    shift = 0.0
    while True:
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            return factor
        if not bool(matrix.isfinite().all()):
            raise ArithmeticError("a Hessian is not finite: expected cells of at most about 1e15")
        more = max(10 * shift, 1e-9 * float(matrix.diagonal().max()))
        matrix.diagonal().add_(more - shift)
        shift = more
