"""The ranking of single cells, against scikit-learn's scores and by trying every cut."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from fastlstm_probes import single_cells
from fastlstm_probes.single_cells import best_f1_threshold, judge_cell, rank_cells, ranking_rows


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_best_cell_is_scikit_learns(dtype):
    rng = np.random.default_rng(0)
    code = rng.choice([0, 1, 5], 3000, p=(0.7, 0.27, 0.03)).astype(np.int16)
    X = rng.standard_normal((3000, 7)).astype(dtype).astype(np.float32)  # float16: many equal values
    X[:, 4] -= 0.5 * (code == 1)
    X[:, 6] += 0.2 * (code == 5)
    for ranked, wanted in zip(rank_cells(X, code, [5, 1], progress=False), (5, 1), strict=True):
        truth = code == wanted
        tried = {(c, s): average_precision_score(truth, s * X[:, c]) for c in range(7) for s in (1, -1)}
        assert (ranked.column, ranked.sign) == max(tried, key=tried.__getitem__)
        # The same sum of n terms in another order.
        assert ranked.average_precision == pytest.approx(max(tried.values()), rel=3000 * np.finfo(float).eps)
    assert (ranked.column, ranked.sign) == (4, -1)


def test_ties_go_to_the_first_cell_and_high_values():
    X = np.tile(np.array([[0.0], [1.0], [1.0], [0.0]], np.float32), (1, 3))
    (ranked,) = rank_cells(X, np.array([0, 1, 0, 1], np.int16), [1], progress=False)
    assert (ranked.column, ranked.sign, ranked.average_precision) == (0, 1, 0.5)


def test_a_class_that_was_not_drawn_has_a_cell_and_no_precision():
    (ranked,) = rank_cells(np.ones((4, 2), np.float32), np.zeros(4, np.int16), [3], progress=False)
    assert (ranked.column, ranked.average_precision) == (0, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_best_f1_of_all(seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 12, 60).astype(np.float64)
    truth = rng.random(60) < values / 14
    cut = best_f1_threshold(values, truth)
    tried = [f1_score(truth, values > c) for c in np.arange(-0.5, 11)]
    assert f1_score(truth, values > cut) == max(tried)
    assert cut == max(c for c, f1 in zip(np.arange(-0.5, 11), tried, strict=True) if f1 == max(tried))


def test_a_cell_is_judged_on_test_by_the_cut_of_train():
    train = np.array([-3, -2, 1, 2], np.float32), np.array([True, True, False, False])
    test = np.array([-3, -1, 0, -2.5], np.float32), np.array([True, True, False, False])
    (ranked,) = rank_cells(train[0][:, None], train[1].astype(np.int16), [1], progress=False)
    cell = judge_cell(ranked, 77, train, test)
    assert (cell.unit, cell.sign, cell.threshold, cell.train_average_precision) == (77, -1, -0.5, 1.0)
    assert (cell.precision, cell.recall) == (2 / 3, 1.0)
    assert cell.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert judge_cell(ranked, 77, train, (test[0], np.zeros(4, bool))).average_precision is None


def test_rows_to_rank_on_are_bounded_and_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(single_cells, "RANKING_ROWS", 50)
    np.testing.assert_array_equal(ranking_rows(50, 0), np.arange(50))
    drawn = ranking_rows(1000, 0)
    assert len(np.unique(drawn)) == drawn.size == 50
    np.testing.assert_array_equal(drawn, ranking_rows(1000, 0))
    assert not np.array_equal(drawn, ranking_rows(1000, 1))
