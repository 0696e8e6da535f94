"""L1-penalised logistic regression: the one door to it, whatever solver is behind.

The problem is liblinear's, which the published protocols used: minimise over w and b

    |w|_1 + |b| + C * sum_i log(1 + exp(-y_i (x_i . w + b))),   y_i = -1 or 1

The intercept is penalised, the features are not scaled. Solved by scikit-learn's liblinear, which needs about
32 bytes of memory per element of X on top of X itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from fastlstm.errors import InputError
from fastlstm_probes.metrics import accuracy

TOL = 1e-4  # scikit-learn's default, with which the published numbers were made
MAX_ITER = 100  # likewise


@dataclass(frozen=True)
class L1Fit:
    """One classifier: yes where `margin` > 0."""

    weights: NDArray[np.float64]  # (U,)
    intercept: float
    C: float
    nonzero: int
    converged: bool
    iterations: int

    def margin(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """x . w + b of every row of X (n, U), float64 (n,). Only columns with a weight are read."""
        support = np.flatnonzero(self.weights)
        return X[:, support].astype(np.float64) @ self.weights[support] + self.intercept

    def normalised_margin(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """(x . w + b) / ||w||_2 of every row of X (n, U), float64 (n,) (Carvalho 2018).

        Without any weight it is the limit w -> 0: +inf where b > 0, -inf otherwise, the same for every row.
        """
        norm = float(np.linalg.norm(self.weights))
        if norm == 0.0:
            return np.full(len(X), np.inf if self.intercept > 0 else -np.inf)
        return self.margin(X) / norm

    def top(self, k: int) -> NDArray[np.intp]:
        """Columns of the k largest |w|, the largest first (ties: the lower column); zero weights never."""
        order = np.argsort(-np.abs(self.weights), kind="stable")[: min(k, self.nonzero)]
        return np.asarray(order, dtype=np.intp)


@dataclass(frozen=True)
class L1Sweep:
    """Fits on train for each C, their accuracy on the validation rows, and the chosen C fitted once more."""

    fits: tuple[L1Fit, ...]
    valid_accuracy: tuple[float, ...]
    best: L1Fit


def fit_l1(
    X: NDArray[np.float32],
    y: NDArray[Any],
    *,
    C: float,
    seed: int,
    tol: float = TOL,
    max_iter: int = MAX_ITER,
) -> L1Fit:
    """Fit one classifier to X (n, U) float32 and y (n,), 0/1 or bool.

    `C` is the inverse strength (larger: more weights), `seed` orders liblinear's coordinate steps. A fit that
    ran out of `max_iter` comes back with `converged=False`; see `warn_unconverged`.

    Raises:
        InputError: y has one class only, or values other than 0 and 1.
    """
    classes = np.unique(y).tolist()
    if classes != [0, 1]:
        raise InputError(f"y: expected both classes 0 and 1, got {classes}")
    model = LogisticRegression(C=C, l1_ratio=1, solver="liblinear", tol=tol, max_iter=max_iter, random_state=seed)
    with warnings.catch_warnings():
        # Recorded in `converged`; `warn_unconverged` says it once for all fits of a protocol.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, np.asarray(y, dtype=np.int8))
    weights = np.asarray(model.coef_[0], dtype=np.float64)
    iterations = int(model.n_iter_[0])
    return L1Fit(
        weights=weights,
        intercept=float(model.intercept_[0]),
        C=C,
        nonzero=int(np.count_nonzero(weights)),
        converged=iterations < max_iter,
        iterations=iterations,
    )


def sweep_l1(
    X: NDArray[np.float32],
    y: NDArray[Any],
    X_valid: NDArray[np.float32],
    y_valid: NDArray[Any],
    *,
    Cs: Sequence[float],
    seed: int,
    tol: float = TOL,
    max_iter: int = MAX_ITER,
    progress: bool = False,
    name: str = "L1",
) -> L1Sweep:
    """Fit every C on (X, y), take the C of the best accuracy on (X_valid, y_valid), fit it again on (X, y).

    As in Radford et al. 2017 (`train_with_reg_cv`): fit i of the sweep has seed `seed + i`, the last fit
    `seed + len(Cs)`, and the validation rows are never trained on. Ties: the smallest C.
    """
    fits: list[L1Fit] = []
    valid_accuracy: list[float] = []
    with tqdm(total=len(Cs) + 1, desc=name, unit="fit", disable=not progress) as bar:
        for i, C in enumerate(Cs):
            bar.set_postfix_str(f"C={C:g}")
            fits.append(fit_l1(X, y, C=C, seed=seed + i, tol=tol, max_iter=max_iter))
            valid_accuracy.append(accuracy(y_valid, fits[i].margin(X_valid) > 0))
            bar.update()
        C = best_strength(Cs, valid_accuracy)
        bar.set_postfix_str(f"C={C:g} again")
        best = fit_l1(X, y, C=C, seed=seed + len(Cs), tol=tol, max_iter=max_iter)
        bar.update()
    return L1Sweep(tuple(fits), tuple(valid_accuracy), best)


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
