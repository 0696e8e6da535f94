"""Classifiers of one tag against the rest, as the protocols use them: what a fit is, and fits for a choice of C.

The problem is liblinear's, which the published protocols used: features as they are, the intercept penalised. It is
solved for all tags at once (`solver.py`), or, to repeat published runs to the digit, by scikit-learn's liblinear.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from tqdm import tqdm

from fastlstm.errors import InputError
from fastlstm_probes.l1.chunks import StoreRows
from fastlstm_probes.l1.estimator import L1LogisticOvR, Solver
from fastlstm_probes.l1.few import solve_few
from fastlstm_probes.metrics import accuracy

TOL = 1e-6  # relative duality gap; of liblinear its own measure, with the default of the published runs below
LIBLINEAR_TOL = 1e-4
MAX_ITER = 200
_MARGIN_ROWS = 4096  # in float64 at a time


@dataclass(frozen=True)
class L1Fit:
    """One classifier: yes where `margin` > 0."""

    weights: NDArray[np.float64]  # (U,)
    intercept: float
    C: float
    nonzero: int
    converged: bool
    iterations: int
    gap: float  # relative duality gap, from an exact pass: the objective is at most 1 / (1 - gap) times the least

    def margin(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """x . w + b of every row of X (n, U), float64 (n,)."""
        return margins([self], X)[:, 0]

    def top(self, k: int) -> NDArray[np.intp]:
        """Columns of the k largest |w|, the largest first (ties: the lower column); zero weights never."""
        order = np.argsort(-np.abs(self.weights), kind="stable")[: min(k, self.nonzero)]
        return np.asarray(order, dtype=np.intp)


def margins(fits: Sequence[L1Fit], X: NDArray[np.float32], *, normalised: bool = False) -> NDArray[np.float64]:
    """x . w + b of every row of X (n, U) and of each of K > 0 fits, float64 (n, K).

    Only columns that some fit has a weight for are read.
    normalised: over ||w||_2 (Carvalho 2018). Without any weight that is the limit w -> 0: +inf where b > 0, else -inf,
    the same for every row.
    """
    W, b = np.stack([fit.weights for fit in fits], axis=1), np.array([fit.intercept for fit in fits])
    used = np.flatnonzero(W.any(axis=1))
    W = W[used]
    found = np.empty((len(X), len(fits)))
    for first in range(0, len(X), _MARGIN_ROWS):
        rows = slice(first, first + _MARGIN_ROWS)
        found[rows] = X[rows][:, used].astype(np.float64) @ W + b
    if normalised:
        norm = np.linalg.norm(W, axis=0)
        limit = np.where(b > 0, np.inf, -np.inf)
        found = np.where(norm > 0, found / np.where(norm > 0, norm, 1.0), limit)
    return found


@dataclass(frozen=True)
class L1Sweep:
    """Fits on train for each C, their accuracy on the validation rows, and the chosen C fitted once more."""

    fits: tuple[L1Fit, ...]
    valid_accuracy: tuple[float, ...]
    best: L1Fit


def fit_tags(
    X: NDArray[np.float32] | StoreRows,
    targets: NDArray[np.bool_],
    *,
    C: float | Sequence[float],
    seed: int,
    tol: float | None = None,
    max_iter: int = MAX_ITER,
    solver: Solver = "joint",
    device: str | None = None,
    start: Sequence[L1Fit] | None = None,
    progress: bool = False,
) -> list[L1Fit]:
    """Fit every column of targets (n, K) to X (n, U), with one C or one each; `start`: fits to begin from.

    A fit that ran out of `max_iter` comes back with `converged=False`; see `warn_unconverged`.

    Raises:
        InputError: a tag that all rows have, or none.
    """
    _check_classes(targets)
    if tol is None:
        tol = LIBLINEAR_TOL if solver == "liblinear" else TOL
    model = L1LogisticOvR(
        C=np.asarray(C, dtype=np.float64) if isinstance(C, Sequence) else C,
        tol=tol,
        max_iter=max_iter,
        solver=solver,
        device=device,
        random_state=seed,
        verbose=progress,
    )
    begin = None if start is None else np.array([[*fit.weights, fit.intercept] for fit in start])
    with warnings.catch_warnings():
        # Recorded in `converged`; `warn_unconverged` says it once for all fits of a protocol.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, targets, start=begin)
    return [
        L1Fit(
            weights=model.coef_[k].copy(),
            intercept=float(model.intercept_[k]),
            C=float(model.C_[k]),
            nonzero=int(np.count_nonzero(model.coef_[k])),
            converged=bool(model.converged_[k]),
            iterations=int(model.n_iter_[k]),
            gap=float(model.gap_[k]),
        )
        for k in range(targets.shape[1])
    ]


def fit_few(
    X: NDArray[np.float32],
    targets: NDArray[np.bool_],
    columns: Sequence[NDArray[np.intp]],
    *,
    C: Sequence[float],
    tol: float = TOL,
    max_iter: int = MAX_ITER,
    device: str | None = None,
    start: Sequence[NDArray[np.float64]] | None = None,
) -> list[L1Fit]:
    """Fit each of K tags to columns of X of its own, all of them at once; the problems are those of `fit_tags`.

    Args:
        X: (n, U) float32. targets: (n, K) bool, the rows of each tag.
        columns: of each tag (k,), at least one, any k. The weights of its fit are in this order.
        C: of each tag. tol: relative duality gap that they end at. device: where to compute; None: on the CPU.
        start: of each tag (k + 1,) float64, weights and intercept to begin from.

    Raises:
        InputError: a tag that all rows have, or none; NaN or infinity in a column; C not above 0; a tag without
            columns, or with one that X has not; targets, columns, C and start of different numbers of tags.
    """
    _check_classes(targets)
    tags = targets.shape[1]
    for name, given in (("columns", columns), ("C", C), ("start", start)):
        if given is not None and len(given) != tags:
            raise InputError(f"{name}: expected one for each of {tags} tags, got {len(given)}")
    if len(targets) != len(X):
        raise InputError(f"targets: expected {len(X)} rows, as X has, got {len(targets)}")
    if not all(0 < one < np.inf for one in C):
        raise InputError(f"C: expected numbers above 0, got {list(C)}")
    if not tags:
        return []
    # The columns that are used, gathered once: a GPU gets no others.
    used, place = np.unique(np.concatenate(columns), return_inverse=True)
    if not all(one.size for one in columns) or used[0] < 0 or used[-1] >= X.shape[1]:
        raise InputError(f"columns: expected at least one of 0 to {X.shape[1] - 1} for each tag, got {list(columns)}")
    own = np.split(place, np.cumsum([one.size for one in columns])[:-1])
    rows, labels = torch.from_numpy(X[:, used]), torch.from_numpy(np.ascontiguousarray(targets))
    if not bool(rows.isfinite().all()):
        raise InputError("X: expected cells without NaN or infinity")
    if device is not None:
        rows, labels = rows.to(device), labels.to(device)
    solved = solve_few(rows, labels, own, C, tol=tol, max_passes=max_iter, start=start)
    found = []
    for strength, solution in zip(C, solved, strict=True):
        weights, gap = solution.W[:-1, 0].cpu().numpy(), float(solution.gap)
        found.append(
            L1Fit(
                weights=weights,
                intercept=float(solution.W[-1, 0]),
                C=strength,
                nonzero=int(np.count_nonzero(weights)),
                converged=gap <= tol,
                iterations=int(solution.passes),
                gap=gap,
            )
        )
    return found


def _check_classes(targets: NDArray[np.bool_]) -> None:
    for column in range(targets.shape[1]):
        if targets[:, column].all() or not targets[:, column].any():
            classes = np.unique(targets[:, column]).astype(int).tolist()
            raise InputError(f"y: expected both classes 0 and 1 in every column, got {classes} in column {column}")


def fit_l1(X: NDArray[np.float32], y: NDArray[Any], *, C: float, seed: int, **settings: Any) -> L1Fit:
    """Fit one classifier to X (n, U) and y (n,), 0/1 or bool; settings: those of `fit_tags`.

    Raises:
        InputError: y has one class only, or values other than 0 and 1.
    """
    classes = np.unique(y).tolist()
    if classes != [0, 1]:
        raise InputError(f"y: expected both classes 0 and 1, got {classes}")
    return fit_tags(X, np.asarray(y, dtype=bool)[:, None], C=C, seed=seed, **settings)[0]


def sweep_l1(
    X: NDArray[np.float32],
    y: NDArray[Any],
    X_valid: NDArray[np.float32],
    y_valid: NDArray[Any],
    *,
    Cs: Sequence[float],
    seed: int,
    max_iter: int = MAX_ITER,
    solver: Solver = "joint",
    progress: bool = False,
    name: str = "L1",
) -> L1Sweep:
    """Fit every C on (X, y) and take the C of the best accuracy on (X_valid, y_valid); ties: the smallest C.

    The validation rows are never trained on. liblinear's fits are as in Radford et al. 2017 (`train_with_reg_cv`):
    fit i has seed `seed + i`, and the best C is fitted again with seed `seed + len(Cs)`. The joint solver's fits are
    exact, so that a seed changes nothing in them, and each begins from that of the next smaller C.
    """
    fits: dict[int, L1Fit] = {}
    before: list[L1Fit] | None = None
    order = range(len(Cs)) if solver == "liblinear" else sorted(range(len(Cs)), key=lambda i: Cs[i])
    settings: dict[str, Any] = {"max_iter": max_iter, "solver": solver}
    with tqdm(total=len(Cs), desc=name, unit="fit", disable=not progress) as bar:
        for i in order:
            bar.set_postfix_str(f"C={Cs[i]:g}")
            fits[i] = fit_l1(X, y, C=Cs[i], seed=seed + i, start=before, **settings)
            before = [fits[i]] if solver == "joint" else None
            bar.update()
        valid_accuracy = [accuracy(y_valid, fits[i].margin(X_valid) > 0) for i in range(len(Cs))]
        C = best_strength(Cs, valid_accuracy)
        best = fits[list(Cs).index(C)]
        if solver == "liblinear":
            best = fit_l1(X, y, C=C, seed=seed + len(Cs), **settings)
    return L1Sweep(tuple(fits[i] for i in range(len(Cs))), tuple(valid_accuracy), best)


def best_strength(Cs: Sequence[float], valid_accuracy: Sequence[float]) -> float:
    """The C of the best validation accuracy; ties: the smallest C."""
    return min(zip(Cs, valid_accuracy, strict=True), key=lambda point: (-point[1], point[0]))[0]


def warn_unconverged(fits: Iterable[tuple[str, L1Fit]], max_iter: int) -> None:
    """One `ConvergenceWarning` that names every (name, fit) that ran out of iterations; none: silent."""
    names = [f"{name} (C={fit.C:g})" for name, fit in fits if not fit.converged]
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        warnings.warn(
            f"{len(names)} L1 fits did not converge in {max_iter} iterations: {shown}; "
            "their scores hold for the weights reached; raise max_iter, or look for cells that run away",
            ConvergenceWarning,
            stacklevel=2,
        )
