"""Ten data sets on which an L1 fit is held against liblinear's, and liblinear itself."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

TOL = 1e-6


def objective(
    X: np.ndarray, y: np.ndarray, w: np.ndarray, b: float, costs: tuple[float, float], *, intercept: bool = True
) -> float:
    """Sum of costs times log losses + |w|_1 + |b|: liblinear's, in plain float64; costs: of positives, of negatives."""
    margin = np.where(y, 1, -1) * (X.astype(np.float64) @ w + b)
    loss = np.where(y, *costs) @ np.logaddexp(0, -margin)
    return float(loss + np.abs(w).sum() + intercept * abs(b))


def liblinear(X: np.ndarray, y: np.ndarray, C: float, class_weight: str | None = None) -> tuple[np.ndarray, float]:
    model = LogisticRegression(
        C=C, l1_ratio=1, solver="liblinear", tol=TOL, max_iter=100_000, random_state=0, class_weight=class_weight
    )
    model.fit(X, y)
    return model.coef_[0], float(model.intercept_[0])


def _data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 20)).astype(np.float32)
    noisy = X[:, 3] - 0.5 * X[:, 8] + 0.5 * rng.standard_normal(500) > 0.2
    counting = np.cumsum(np.abs(X[:, :1]), axis=0) / 10  # a cell that runs away
    return {
        "random labels": (X, rng.random(500) > 0.7),
        "noisy rule": (X, noisy),
        "a constant column": (np.hstack([X, np.full((500, 1), 3, np.float32)]), noisy),
        "a column of zeros": (np.hstack([X, np.zeros((500, 1), np.float32)]), noisy),
        "separable": (X, X[:, 3] > 0),
        "one positive": (X, np.arange(500) == 5),
        "scales of 1e-3 to 1e3": (X * np.logspace(-3, 3, 20, dtype=np.float32), noisy),
        "large means": (X + 30, noisy),
        "a counting cell": (np.hstack([X, counting]), noisy),
        "more columns than rows": (rng.standard_normal((60, 200)).astype(np.float32), rng.random(60) > 0.5),
    }


DATA = _data()
