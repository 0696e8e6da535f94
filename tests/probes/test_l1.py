"""The door to L1 logistic regression: the optimum, the choice of C, and convergence that is never hidden."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from fastlstm.errors import InputError
from fastlstm_probes.l1 import L1Fit, best_strength, fit_l1, margins, sweep_l1, warn_unconverged


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 12)).astype(np.float32)
    y = X[:, 3] - 0.5 * X[:, 8] + 0.5 * rng.standard_normal(400) > 0.2
    return X, y


def _violation(X: np.ndarray, y: np.ndarray, weights: np.ndarray, intercept: float, C: float) -> float:
    """How far (l1 norm) 0 is from the subgradient of |w|_1 + |b| + C * loss."""
    X1 = np.hstack([X.astype(np.float64), np.ones((len(X), 1))])
    w = np.append(weights, intercept)
    sign = np.where(y, 1.0, -1.0)
    gradient = -C * X1.T @ (sign / (1 + np.exp(sign * (X1 @ w))))
    at_zero = np.maximum(np.abs(gradient) - 1, 0)
    return float(np.where(w == 0, at_zero, np.abs(gradient + np.sign(w))).sum())


@pytest.mark.parametrize("C", [0.01, 0.25, 4.0])
def test_fit_is_optimal_for_the_penalised_intercept(data, C):
    X, y = data
    tol = 1e-6
    fit = fit_l1(X, y, C=C, seed=0, tol=tol, max_iter=1000, solver="liblinear")
    # liblinear stops at this share of the violation that it starts with (w = 0).
    start = _violation(X, y, np.zeros(12), 0.0, C)
    allowed = tol * min(y.sum(), (~y).sum()) / len(y) * start
    assert fit.converged
    # Its products are sums of 400 doubles: rounding is far below this share of the start.
    assert _violation(X, y, fit.weights, fit.intercept, C) <= allowed + 1e-12 * start


def test_fit_finds_the_features_and_counts_them(data):
    fit = fit_l1(*data, C=0.05, seed=0)
    assert fit.weights.shape == (12,)
    assert fit.weights.dtype == np.float64
    assert fit.top(2).tolist() == [3, 8]
    assert fit.weights[3] > 0 > fit.weights[8]
    assert fit.nonzero == np.count_nonzero(fit.weights) < 12


def test_margin_is_the_decision_function(data):
    X, y = data
    fit = fit_l1(X, y, C=0.1, seed=0)
    expected = X.astype(np.float64) @ fit.weights + fit.intercept
    # The same sum over fewer columns, in another order.
    np.testing.assert_allclose(fit.margin(X), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    normalised = margins([fit], X, normalised=True)[:, 0]
    np.testing.assert_allclose(normalised, fit.margin(X) / np.linalg.norm(fit.weights), rtol=1e-14)


def test_margins_of_many_fits_are_those_of_each(data, monkeypatch):
    X, y = data
    fits = [fit_l1(X, y, C=0.1, seed=0), L1Fit(np.zeros(12), -2.0, 0.1, 0, True, 1, 0.0), fit_l1(X, ~y, C=1.0, seed=0)]
    monkeypatch.setattr("fastlstm_probes.l1.fit._MARGIN_ROWS", 7)
    together = margins(fits, X)
    for place, fit in enumerate(fits):
        np.testing.assert_allclose(together[:, place], X.astype(float) @ fit.weights + fit.intercept, atol=1e-12)


@pytest.mark.parametrize(("intercept", "limit"), [(-0.5, -np.inf), (0.0, -np.inf), (0.5, np.inf)])
def test_without_weights_the_normalised_margin_is_the_limit(intercept, limit):
    fit = L1Fit(np.zeros(3), intercept, 0.1, 0, True, 1, 0.0)
    assert margins([fit], np.ones((2, 3), np.float32), normalised=True)[:, 0].tolist() == [limit, limit]
    assert fit.margin(np.ones((2, 3), np.float32)).tolist() == [intercept, intercept]
    assert fit.top(3).size == 0


def test_sweep_ties_go_to_the_smallest_strength():
    X = np.linspace(-1, 1, 41, dtype=np.float32)[:, None] * 100
    y = X[:, 0] > 0
    far = np.array([[-90.0], [90.0]], np.float32)
    sweep = sweep_l1(X, y, far, np.array([False, True]), Cs=(4.0, 1.0, 0.25, 2.0), seed=0)
    assert sweep.valid_accuracy == (1.0, 1.0, 1.0, 1.0)
    assert sweep.best.C == 0.25
    assert [fit.C for fit in sweep.fits] == [4.0, 1.0, 0.25, 2.0]


def test_best_strength_prefers_accuracy_then_the_smallest():
    assert best_strength((1.0, 0.5, 0.25), (0.8, 0.9, 0.9)) == 0.25
    assert best_strength((1.0, 0.5, 0.25), (0.91, 0.9, 0.9)) == 1.0


def test_sweep_refits_on_train_alone_with_the_protocols_seed(data):
    X, y = data
    sweep = sweep_l1(X[:300], y[:300], X[300:], y[300:], Cs=(0.02, 0.05, 0.1), seed=42, solver="liblinear")
    again = fit_l1(X[:300], y[:300], C=sweep.best.C, seed=45, solver="liblinear")
    np.testing.assert_array_equal(sweep.best.weights, again.weights)


def test_fits_that_ran_out_are_marked_and_warned_of_once(data):
    X, y = data
    short = fit_l1(X, y, C=4.0, seed=0, max_iter=1, solver="liblinear")
    full = fit_l1(X, y, C=4.0, seed=0)
    assert (short.converged, full.converged) == (False, True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_unconverged([("NN", short), ("VB", full), ("DT", short)], 1)
        warn_unconverged([("VB", full)], 1)
    (warning,) = caught
    assert warning.category is ConvergenceWarning
    assert "2 L1 fits did not converge in 1 iterations: NN (C=4), DT (C=4)" in str(warning.message)


@pytest.mark.parametrize("y", [np.zeros(4), np.ones(4), np.array([0, 1, 2, 1])])
def test_other_than_two_classes_is_refused(y):
    with pytest.raises(InputError, match="y: expected both classes 0 and 1, got"):
        fit_l1(np.ones((4, 2), np.float32), y, C=1.0, seed=0)
