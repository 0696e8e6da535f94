from __future__ import annotations

import math

import numpy as np
import pytest

from fastlstm_probes.metrics import binary_scores, histogram_by_class, weighted_precision_recall, wilson


@pytest.mark.parametrize(("correct", "n"), [(1672, 1821), (0, 10), (10, 10), (1, 2)])
def test_wilson_is_the_closed_form(correct, n):
    z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Two ways to write one formula in float64.
    assert wilson(correct, n) == pytest.approx((max(centre - half, 0), min(centre + half, 1)), abs=1e-12)


def test_wilson_of_the_published_sentiment_result_is_about_1_3_points():
    low, high = wilson(1672, 1821)
    assert round(100 * (high - low) / 2, 1) == 1.3


def test_weighted_recall_is_accuracy_and_missing_predictions_count_as_zero():
    truth, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 2, 2, 2, 0])
    precision, recall = weighted_precision_recall(truth, predicted)
    assert recall == pytest.approx(3 / 6)
    assert precision == pytest.approx((3 * 2 / 3 + 1 * 0 + 2 * 1 / 3) / 6)


def test_binary_scores():
    scores = binary_scores(np.array([True, True, False, False]), np.array([2.0, -1.0, 1.0, -2.0]))
    assert (scores.accuracy, scores.precision, scores.recall) == (0.5, 0.5, 0.5)
    assert scores.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_a_class_that_does_not_occur_has_no_average_precision():
    scores = binary_scores(np.zeros(3, bool), np.array([-1.0, -1.0, 1.0]))
    assert scores.average_precision is None
    assert (scores.precision, scores.recall) == (0.0, 0.0)
    assert scores.accuracy == pytest.approx(2 / 3)


def test_histogram_counts_every_value_and_is_not_stretched_by_outliers():
    rng = np.random.default_rng(0)
    values = np.append(rng.standard_normal(9_999), 1e6).astype(np.float32)
    positive = values > 0
    histogram = histogram_by_class(values, positive, bins=20)
    assert len(histogram.edges) == 21
    assert (sum(histogram.negative), sum(histogram.positive)) == ((~positive).sum(), positive.sum())
    assert histogram.edges[-1] < 10
    middle = np.array(histogram.edges[:-1]) + (histogram.edges[1] - histogram.edges[0]) / 2
    assert not np.array(histogram.positive)[middle < -1].any()
    assert not np.array(histogram.negative)[middle > 1].any()


def test_histogram_of_a_constant_cell():
    histogram = histogram_by_class(np.full(5, 2.0, np.float32), np.array([True] * 2 + [False] * 3), bins=4)
    assert (sum(histogram.negative), sum(histogram.positive)) == (3, 2)
    assert histogram.edges[0] < 2 < histogram.edges[-1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("truth", [[False, False, False], [True, True, True], [True, False, True]])
def test_a_constant_answer_has_no_correlation(truth: list[bool]) -> None:
    assert binary_scores(np.array(truth), np.array([-1.0, -2.0, -3.0])).mcc == 0
