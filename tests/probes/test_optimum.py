"""The joint solver reaches liblinear's optimum, says truly how far it is from it, and is a scikit-learn estimator."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from problems import DATA, TOL, liblinear, objective
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastlstm_probes.l1 import L1LogisticOvR
from fastlstm_probes.l1.chunks import MatrixRows
from fastlstm_probes.l1.interior_point import minimise_quadratic
from fastlstm_probes.l1.newton import sampling_factor
from fastlstm_probes.l1.objective import Problem, dual, primal
from fastlstm_probes.l1.passes import LocalPasses
from fastlstm_probes.l1.proximal_gradient import ProximalGradient


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("C", [0.02, 0.25, 4.0])
def test_objective_and_support_are_liblinears(name: str, C: float):
    X, y = DATA[name]
    model = L1LogisticOvR(C=C, tol=TOL).fit(X, y)
    ours = objective(X, y, model.coef_[0], model.intercept_[0], (C, C))
    w, b = liblinear(X, y, C)
    assert ours <= objective(X, y, w, b, (C, C)) * (1 + TOL)
    assert ours == pytest.approx(model.objective_[0], rel=1e-12)
    np.testing.assert_array_equal(np.abs(model.coef_[0]) > 1e-4, np.abs(w) > 1e-4)


def test_duplicate_columns_share_what_one_would_have():
    X, y = DATA["noisy rule"]
    twice = np.hstack([X, X[:, 3:4]])
    model = L1LogisticOvR(C=0.25, tol=1e-8).fit(twice, y)
    alone = L1LogisticOvR(C=0.25, tol=1e-8).fit(X, y)
    assert model.objective_[0] == pytest.approx(alone.objective_[0], rel=1e-7)
    joined = model.coef_[0, :20].copy()
    joined[3] += model.coef_[0, 20]
    np.testing.assert_array_equal(np.abs(joined) > 1e-4, np.abs(alone.coef_[0]) > 1e-4)


def test_not_a_number_and_one_class_are_errors():
    X, y = DATA["noisy rule"]
    broken = X.copy()
    broken[7, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        L1LogisticOvR().fit(broken, y)
    with pytest.raises(ValueError, match="X: expected"):
        L1LogisticOvR().fit(torch.from_numpy(broken), y)
    with pytest.raises(ValueError, match="one class"):
        L1LogisticOvR().fit(X, np.ones(len(X)))


@pytest.mark.parametrize("max_iter", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["noisy rule", "separable", "large means"])
def test_the_gap_is_never_less_than_what_is_left(name: str, max_iter: int):
    X, y = DATA[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        early = L1LogisticOvR(C=4.0, tol=1e-12, max_iter=max_iter).fit(X, y)
    best = L1LogisticOvR(C=4.0, tol=1e-9).fit(X, y)
    left = 1 - best.objective_[0] / early.objective_[0]
    assert early.gap_[0] >= left * (1 - 1e-6)
    assert best.gap_[0] <= 1e-9


def test_not_converged_is_said():
    X, y = DATA["separable"]
    with pytest.warns(ConvergenceWarning, match="1 of 1 tags did not converge in 1 iterations"):
        model = L1LogisticOvR(C=8.0, tol=1e-10, max_iter=1).fit(X, y)
    assert not model.converged_[0]
    assert model.gap_[0] > 1e-10


def test_all_tags_at_once_are_each_tag_alone():
    X, _ = DATA["noisy rule"]
    y = np.stack([X[:, 0] > 0.5, X[:, 1] + X[:, 2] > 2, np.zeros(len(X), bool), np.arange(len(X)) < 3], axis=1)
    together = L1LogisticOvR(C=1.0, tol=1e-9).fit(X, y)
    for tag in (0, 1, 3):
        alone = L1LogisticOvR(C=1.0, tol=1e-9).fit(X, y[:, tag])
        assert together.objective_[tag] == pytest.approx(alone.objective_[0], rel=1e-8)
    # A tag that no row has: no weight, and an intercept that says so.
    assert not together.coef_[2].any()
    assert together.intercept_[2] < 0


def test_every_tag_has_its_own_strength():
    X, _ = DATA["noisy rule"]
    y = np.stack([X[:, 0] > 0.5, X[:, 1] + X[:, 2] > 2, np.arange(len(X)) < 3], axis=1)
    C = np.array([0.02, 0.25, 4.0])
    together = L1LogisticOvR(C=C, tol=1e-9).fit(X, y)
    np.testing.assert_array_equal(together.C_, C)
    for tag, one in enumerate(C):
        alone = L1LogisticOvR(C=one, tol=1e-9).fit(X, y[:, tag])
        assert together.objective_[tag] == pytest.approx(alone.objective_[0], rel=1e-8)
    with pytest.raises(ValueError, match="C: expected a number or one for each of 3 tags"):
        L1LogisticOvR(C=C[:2]).fit(X, y)
    with pytest.raises(ValueError, match="C: expected a number above 0"):
        L1LogisticOvR(C=-C).fit(X, y)


def test_a_free_intercept_is_sagas():
    X, y = DATA["noisy rule"]
    model = L1LogisticOvR(C=0.25, tol=1e-9, penalise_intercept=False).fit(X, y)
    saga = LogisticRegression(C=0.25, l1_ratio=1, solver="saga", tol=1e-10, max_iter=100_000).fit(X.astype(float), y)
    costs = (0.25, 0.25)
    theirs = objective(X, y, saga.coef_[0], saga.intercept_[0], costs, intercept=False)
    assert model.objective_[0] == pytest.approx(theirs, rel=1e-8)
    assert model.gap_[0] <= 1e-9


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_scikit_learns_solvers_answer_the_same_question(class_weight: str | None):
    X, y = DATA["noisy rule"]
    ours = L1LogisticOvR(C=0.25, tol=1e-8, class_weight=class_weight).fit(X, y)
    positive, negative = (len(y) / (2 * n) if class_weight else 1.0 for n in (y.sum(), (~y).sum()))
    w, b = liblinear(X, y, 0.25, class_weight)
    reference = objective(X, y, w, b, (0.25 * positive, 0.25 * negative))
    assert ours.objective_[0] == pytest.approx(reference, rel=1e-7)
    theirs = L1LogisticOvR(C=0.25, tol=1e-6, solver="liblinear", class_weight=class_weight, max_iter=10_000).fit(X, y)
    assert theirs.objective_[0] == pytest.approx(reference, rel=1e-6)
    assert 0 <= theirs.gap_[0] < 1e-4
    free = {"C": 0.25, "class_weight": class_weight, "penalise_intercept": False}
    saga = L1LogisticOvR(solver="saga", tol=1e-5, max_iter=10_000, **free).fit(X, y)
    assert saga.objective_[0] == pytest.approx(L1LogisticOvR(tol=1e-9, **free).fit(X, y).objective_[0], rel=1e-4)


def test_sgd_runs_and_its_gap_says_how_far_it_is():
    X, y = DATA["noisy rule"]
    best = L1LogisticOvR(C=0.25, penalise_intercept=False).fit(X, y)
    sgd = L1LogisticOvR(C=0.25, penalise_intercept=False, solver="sgd", tol=1e-3, random_state=0).fit(X, y)
    assert sgd.gap_[0] >= 1 - best.objective_[0] / sgd.objective_[0] > 0


@pytest.mark.parametrize("penalised", [True, False])
def test_at_the_strongest_penalty_the_last_weight_is_gone(penalised: bool):
    X, y = DATA["noisy rule"]
    settings = {"penalise_intercept": penalised, "tol": 1e-9}
    none = L1LogisticOvR(alpha_fraction=1.0001, **settings).fit(X, y)
    assert not none.coef_.any()
    few = L1LogisticOvR(alpha_fraction=0.9, **settings).fit(X, y)
    assert 1 <= np.count_nonzero(few.coef_) + (penalised and few.intercept_[0] != 0) <= 3


def test_a_warm_start_takes_fewer_passes():
    X, y = DATA["large means"]
    near = L1LogisticOvR(C=0.9).fit(X, y)
    cold = L1LogisticOvR(C=1.0).fit(X, y)
    warm = L1LogisticOvR(C=1.0).fit(X, y, start=np.hstack([near.coef_, near.intercept_[:, None]]))
    assert warm.objective_[0] == pytest.approx(cold.objective_[0], rel=2 * TOL)
    assert warm.n_iter_[0] <= cold.n_iter_[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tensors_of_every_precision(dtype: torch.dtype):
    X, y = DATA["noisy rule"]
    tensor = torch.from_numpy(X).to(dtype)
    model = L1LogisticOvR(C=0.25).fit(tensor, y)
    same = L1LogisticOvR(C=0.25).fit(tensor.double().numpy(), y)
    assert model.objective_[0] == pytest.approx(same.objective_[0], rel=2 * TOL)


def test_the_quadratic_is_solved_where_it_is_nearly_singular():
    rng = np.random.default_rng(1)
    A = torch.from_numpy(rng.standard_normal((400, 40)) * 0.01 + rng.standard_normal((400, 1)))
    H, c = A.T @ A, torch.from_numpy(100 * rng.standard_normal(40))
    l1 = torch.full((40,), 1.0, dtype=torch.float64)
    l1[-1] = 0
    z = minimise_quadratic(H, c, l1, torch.zeros_like(c))
    slope = H @ z + c
    violation = torch.where(z != 0, slope + l1 * torch.sign(z), (slope.abs() - l1).clamp_min(0)).abs().max()
    assert float(torch.linalg.cond(H)) > 1e5
    assert float(violation) < 1e-6 * float(c.abs().max())


@pytest.mark.parametrize("share", [0.0625, 0.25])
def test_steps_by_few_rows_are_as_much_too_long_as_too_short(share: float):
    """The factor is the middle of the eigenvalues that the inverse has, whatever the Hessian of all rows is."""
    columns = 256
    X = np.random.default_rng(0).standard_normal((int(columns / share), columns))
    inverse = 1 / np.linalg.eigvalsh(X.T @ X / len(X))
    assert sampling_factor(share) == pytest.approx((inverse.min() + inverse.max()) / 2, rel=0.1)
    assert sampling_factor(0) == 1


@parametrize_with_checks(
    [L1LogisticOvR(), L1LogisticOvR(solver="liblinear", tol=1e-4)],
)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def test_the_accelerated_steps_go_on_in_float64():
    """What a GPU does after float32 has done what it can."""
    X, y = (torch.from_numpy(part) for part in DATA["noisy rule"])
    cost = torch.tensor([0.25], dtype=torch.float64)
    problem = Problem(y[:, None], None, cost, cost)
    tags = torch.arange(1)
    walk = ProximalGradient(X, problem, torch.zeros(21, 1, dtype=torch.float64), tags)
    for _ in range(100):
        walk.step()
    walk.in_float64()
    for _ in range(400):
        walk.step()
    sums, _ = LocalPasses(MatrixRows(X), problem).evaluate(walk.point, tags)
    gap = 1 - dual(sums, problem) / primal(sums, walk.point, problem)
    assert 0 <= float(gap) < 1e-10
