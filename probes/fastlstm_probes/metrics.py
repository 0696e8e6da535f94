"""The numbers that a fit is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from fastlstm_probes.results import Histogram


@dataclass(frozen=True)
class BinaryScores:
    """One class against the rest; precision and recall are 0 where they are 0/0."""

    accuracy: float
    precision: float
    recall: float
    average_precision: float | None  # None where the class does not occur
    roc_auc: float | None  # None where only one class occurs
    mcc: float  # Matthews correlation coefficient, 0 where it is 0/0


def accuracy(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Share (0..1) of `truth` (n,) that `predicted` (n,) names."""
    return float(accuracy_score(truth, predicted))


def weighted_precision_recall(truth: NDArray[Any], predicted: NDArray[Any]) -> tuple[float, float]:
    """Per-class precision and recall averaged by the classes' true counts (Carvalho 2018); 0 where 0/0."""
    precision, recall, _, _ = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    return float(precision), float(recall)


def binary_scores(truth: NDArray[np.bool_], margin: NDArray[np.float64]) -> BinaryScores:
    """Scores of the classifier that says yes where `margin` (n,) > 0; average precision ranks by margin."""
    predicted = margin > 0
    precision, recall, _, _ = precision_recall_fscore_support(truth, predicted, average="binary", zero_division=0)
    average_precision = float(average_precision_score(truth, margin)) if truth.any() else None
    varied = all(0 < answers.sum() < len(answers) for answers in (truth, predicted))
    return BinaryScores(
        accuracy=accuracy(truth, predicted),
        precision=float(precision),
        recall=float(recall),
        average_precision=average_precision,
        roc_auc=float(roc_auc_score(truth, margin)) if truth.any() and not truth.all() else None,
        mcc=float(matthews_corrcoef(truth, predicted)) if varied else 0.0,
    )


def bootstrap_by_group(
    correct: NDArray[Any], group: NDArray[np.int64], seed: int, draws: int = 1000
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `correct` (n,) when whole groups (n,) are drawn with replacement.

    Rows of one document are not independent, documents nearly are (Efron and Tibshirani 1993, chapter 13).
    """
    _, place = np.unique(group, return_inverse=True)
    size = np.bincount(place)
    right = np.bincount(place, weights=correct)
    times = np.random.default_rng(seed).multinomial(len(size), np.full(len(size), 1 / len(size)), size=draws)
    low, high = np.quantile(times @ right / (times @ size), (0.025, 0.975))
    return float(low), float(high)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of the share `correct / n` of n independent trials."""
    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def histogram_by_class(values: NDArray[np.float32], positive: NDArray[np.bool_], bins: int = 50) -> Histogram:
    """Counts of `values` (n,) by class in equal bins between the 0.1 % and 99.9 % quantiles.

    Cells that count bytes run far away (hundreds, where most rows are near 0), so the few values beyond the
    quantiles are put in the outer bins: all n are counted.
    """
    low, high = np.quantile(values.astype(np.float64), (0.001, 0.999))
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    inside = np.clip(values, low, high)
    return Histogram(
        edges=edges.tolist(),
        negative=np.histogram(inside[~positive], edges)[0].tolist(),
        positive=np.histogram(inside[positive], edges)[0].tolist(),
    )
