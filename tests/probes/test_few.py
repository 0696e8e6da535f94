"""Many small problems at once have each the optimum, certified, that it has alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import DATA, TOL, liblinear, objective

from fastlstm.errors import InputError
from fastlstm_probes.l1 import few as few_module
from fastlstm_probes.l1 import fit_few, fit_l1
from fastlstm_probes.l1.interior_point import minimise_quadratic, minimise_quadratics

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SUBSETS = [[3], [8, 3], [3, 8, 1], [0, 1, 2, 4, 5], list(range(20))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", DATA)
def test_each_problem_has_liblinears_objective_and_support(name: str, device: str):
    X, y = DATA[name]
    last = X.shape[1] - 1  # the constant, the zeros, the counting cell
    columns = [np.array(one) for one in (*SUBSETS, [last, 3], [last])]
    C = [0.02, 4.0, 0.25, 0.25, 1.0, 0.25, 1.0]
    targets = np.stack([y] * len(columns), axis=1)
    fits = fit_few(X, targets, columns, C=C, tol=TOL, device=device)
    for fit, own, strength in zip(fits, columns, C, strict=True):
        ours = objective(X[:, own], y, fit.weights, fit.intercept, (strength, strength))
        w, b = liblinear(X[:, own], y, strength)
        assert fit.converged
        assert fit.gap <= TOL
        assert ours <= objective(X[:, own], y, w, b, (strength, strength)) * (1 + TOL)
        np.testing.assert_array_equal(np.abs(fit.weights) > 1e-4, np.abs(w) > 1e-4)


def test_every_problem_has_labels_of_its_own_whatever_it_is_solved_beside(monkeypatch: pytest.MonkeyPatch):
    X, _ = DATA["noisy rule"]
    targets = np.stack([X[:, 0] > 0.5, X[:, 1] + X[:, 2] > 2, np.arange(len(X)) < 3], axis=1)
    columns = [np.array([0, 7]), np.array([1]), np.array([2, 5, 9])]
    together = fit_few(X, targets, columns, C=[0.25, 1.0, 4.0])
    # Problem by problem, a few rows at a time.
    monkeypatch.setitem(few_module._GROUP_VALUES, "cpu", 1)
    monkeypatch.setitem(few_module._CHUNK_VALUES, "cpu", 50)
    for one, other in zip(together, fit_few(X, targets, columns, C=[0.25, 1.0, 4.0]), strict=True):
        np.testing.assert_allclose(one.weights, other.weights, rtol=1e-6, atol=1e-9)
        assert one.intercept == pytest.approx(other.intercept, rel=1e-6)


def test_from_its_own_optimum_a_problem_is_done_in_one_pass():
    X, y = DATA["noisy rule"]
    columns, targets = [np.array([3, 8, 1])], y[:, None]
    (fit,) = fit_few(X, targets, columns, C=[0.25], tol=1e-8)
    (again,) = fit_few(X, targets, columns, C=[0.25], tol=1e-7, start=[np.append(fit.weights, fit.intercept)])
    assert again.iterations == 1
    np.testing.assert_array_equal(again.weights, fit.weights)


@pytest.mark.parametrize("max_iter", [1, 2, 3, 8])
def test_a_fit_that_ran_out_of_passes_says_how_far_it_is(max_iter: int):
    X, y = DATA["separable"]
    columns, targets = [np.array([3, 8, 1])], y[:, None]
    (early,) = fit_few(X, targets, columns, C=[4.0], tol=1e-12, max_iter=max_iter)
    (best,) = fit_few(X, targets, columns, C=[4.0], tol=1e-9)
    cost = (4.0, 4.0)
    reached, least = (objective(X[:, columns[0]], y, fit.weights, fit.intercept, cost) for fit in (early, best))
    assert not early.converged
    assert early.iterations == max_iter
    assert 1 > early.gap >= (1 - least / reached) * (1 - 1e-6)


def test_a_start_far_away_costs_a_few_passes():
    X, y = DATA["noisy rule"]
    columns, targets = [np.array([3, 8, 1])], y[:, None]
    (cold,) = fit_few(X, targets, columns, C=[0.25], tol=1e-8)
    (far,) = fit_few(X, targets, columns, C=[0.25], tol=1e-8, start=[np.array([1e6, -1e3, 0.0, 5.0])])
    np.testing.assert_allclose(far.weights, cold.weights, rtol=1e-5, atol=1e-9)
    assert cold.iterations < far.iterations <= cold.iterations + 10


def test_arguments_that_do_not_fit_are_named():
    X, y = DATA["noisy rule"]
    targets, columns = y[:, None], [np.array([3])]
    with pytest.raises(InputError, match="columns: expected one for each of 1 tags, got 2"):
        fit_few(X, targets, columns * 2, C=[1.0])
    with pytest.raises(InputError, match="C: expected one for each of 1 tags, got 2"):
        fit_few(X, targets, columns, C=[1.0, 1.0])
    with pytest.raises(InputError, match="C: expected numbers above 0"):
        fit_few(X, targets, columns, C=[-1.0])
    with pytest.raises(InputError, match="targets: expected 500 rows"):
        fit_few(X, targets[:400], columns, C=[1.0])
    for wrong in ([20], [-1], []):
        with pytest.raises(InputError, match="columns: expected at least one of 0 to 19"):
            fit_few(X, targets, [np.array(wrong, dtype=np.intp)], C=[1.0])
    broken = X.copy()
    broken[7, 3] = np.nan
    with pytest.raises(InputError, match="without NaN"):
        fit_few(broken, targets, columns, C=[1.0])
    assert fit_few(broken, targets, [np.array([4])], C=[1.0])[0].converged
    assert fit_few(X, targets[:, :0], [], C=[]) == []


def test_two_large_cells_that_differ_by_little_have_their_optimum_either_way():
    """Their float32 products do not say it: the joint solver's last Hessians are float64."""
    rng = np.random.default_rng(5)
    large, small = 1000 * np.abs(rng.standard_normal((4000, 1))), rng.standard_normal((4000, 1))
    X = np.hstack([large, large + small, rng.standard_normal((4000, 3))]).astype(np.float32)
    y = small[:, 0] + 0.5 * rng.standard_normal(4000) > 0
    (few,) = fit_few(X, y[:, None], [np.arange(5)], C=[1.0], max_iter=30)
    joint = fit_l1(X, y, C=1.0, seed=0, max_iter=60)
    assert few.converged
    assert joint.converged
    ours = objective(X, y, joint.weights, joint.intercept, (1.0, 1.0))
    assert ours == pytest.approx(objective(X, y, few.weights, few.intercept, (1.0, 1.0)), rel=2 * TOL)


def test_one_class_is_an_error():
    X, y = DATA["noisy rule"]
    with pytest.raises(InputError, match=r"both classes 0 and 1 in every column, got \[1\] in column 1"):
        fit_few(X, np.stack([y, np.ones_like(y)], axis=1), [np.array([0]), np.array([1])], C=[1.0, 1.0])


def test_quadratics_at_once_are_each_one_alone():
    rng = np.random.default_rng(3)
    A = torch.from_numpy(rng.standard_normal((40, 30, 6)))
    A[5, :, 2] = A[5, :, 1]  # singular
    H = A.mT @ A
    c, start = torch.from_numpy(10 * rng.standard_normal((2, 40, 6)))
    l1 = torch.tensor([1.0, 1.0, 5.0, 20.0, 1.0, 0.0], dtype=torch.float64)

    def value(z: torch.Tensor, one: int) -> float:
        return float(z @ (H[one] @ z) / 2 + c[one] @ z + l1 @ z.abs())

    for one, z in enumerate(minimise_quadratics(H, c, l1, start)):
        alone = minimise_quadratic(H[one], c[one], l1, start[one])
        assert value(z, one) == pytest.approx(value(alone, one), rel=1e-9)
        if one != 5:
            np.testing.assert_allclose(z, alone, rtol=1e-6, atol=1e-9)


def test_a_quadratic_that_signs_do_not_settle_is_solved_all_the_same(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(4)
    A = torch.from_numpy(rng.standard_normal((3, 8, 6)))
    A[:, :, 4] = 0
    H, c = A.mT @ A, torch.from_numpy(rng.standard_normal((3, 6)))
    c[:, 4] = 0
    l1, start = torch.full((6,), 0.1, dtype=torch.float64), torch.zeros(3, 6, dtype=torch.float64)
    expected = minimise_quadratics(H, c, l1, start)
    monkeypatch.setattr("fastlstm_probes.l1.interior_point._TRIES", 1)
    np.testing.assert_allclose(minimise_quadratics(H, c, l1, start), expected, rtol=1e-6, atol=1e-9)
    assert not expected[:, 4].any()
