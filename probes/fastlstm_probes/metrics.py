"""The numbers that a fit is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_fscore_support

from fastlstm_probes.results import Histogram


@dataclass(frozen=True)
class BinaryScores:
    """One class against the rest; precision and recall are 0 where they are 0/0."""

    accuracy: float
    precision: float
    recall: float
    average_precision: float | None  # None where the class does not occur


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
    return BinaryScores(accuracy(truth, predicted), float(precision), float(recall), average_precision)


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
