"""The cell that finds a class best alone, ranked apart from the probe (Antverg & Belinkov 2022).

|w| of an L1 probe on cells that are not standardised depends on their scale, and L1 splits a concept that several
cells hold: the largest weight need not be on the cell that holds it. Here every cell is ranked by its own average
precision on train rows, high values first or low values first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastlstm_probes.metrics import binary_scores
from fastlstm_probes.results import BestCell

# Rows that cells are ranked on. All of 50,000 rows would take minutes for 2,048 float32 cells and 17 tags.
RANKING_ROWS = 20_000

Codes = NDArray[np.int16]


@dataclass(frozen=True)
class Ranked:
    """The best cell of one class: its column, +1 where high values are the class and -1 where low ones are."""

    column: int
    sign: int
    average_precision: float  # on the rows it was ranked on


def ranking_rows(rows: int, seed: int) -> NDArray[np.int64]:
    """At most `RANKING_ROWS` of the row numbers 0..rows - 1, sorted, drawn by `seed`."""
    if rows <= RANKING_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, RANKING_ROWS, replace=False))


def rank_cells(
    X: NDArray[np.float32], code: Codes, codes: list[int], *, progress: bool = True, name: str = "cells"
) -> list[Ranked]:
    """For each of `codes` the column of X (n, U) with the best average precision on code (n,), of either sign.

    Ties: the lower column, high values. A code that no row has gets column 0 and an average precision of 0.
    """
    class_of_code = np.full(max(int(code.max()), *codes) + 1, len(codes), dtype=np.int16)
    class_of_code[codes] = np.arange(len(codes))
    classes = class_of_code[code]
    best = np.full(len(codes), -1.0)
    column_of, sign_of = np.zeros(len(codes), dtype=np.int64), np.ones(len(codes), dtype=np.int64)
    for column in tqdm(range(X.shape[1]), desc=name, unit="cell", disable=not progress):
        for sign, found in zip((1, -1), _average_precisions(X[:, column], classes, len(codes)), strict=True):
            better = found > best
            best[better], column_of[better], sign_of[better] = found[better], column, sign
    return [Ranked(int(c), int(s), float(b)) for c, s, b in zip(column_of, sign_of, best, strict=True)]


def judge_cell(
    ranked: Ranked,
    unit: int,
    train: tuple[NDArray[np.float32], NDArray[np.bool_]],
    test: tuple[NDArray[np.float32], NDArray[np.bool_]],
) -> BestCell:
    """The cell `unit` with its threshold of best F1 on train (values, truth), scored on test (values, truth)."""
    threshold = best_f1_threshold(ranked.sign * train[0].astype(np.float64), train[1])
    scores = binary_scores(test[1], ranked.sign * test[0].astype(np.float64) - threshold)
    return BestCell(
        unit=unit,
        sign=ranked.sign,
        threshold=ranked.sign * threshold,
        train_average_precision=ranked.average_precision,
        precision=scores.precision,
        recall=scores.recall,
        average_precision=scores.average_precision,
    )


def best_f1_threshold(values: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """The cut with the best F1 of `values > cut` on `truth` (n,), both (n,); ties: the highest cut.

    Cuts are half-way between neighbouring values, or below them all.
    """
    order = np.argsort(-values, kind="stable")
    value = values[order]
    last = np.append(value[:-1] > value[1:], True)  # of a run of equal values, which one cut takes together
    taken = np.flatnonzero(last) + 1
    found = np.cumsum(truth[order])[last]
    best = int(np.argmax(2 * found / (taken + truth.sum())))
    at = taken[best]
    return float((value[at - 1] + value[at]) / 2) if at < value.size else float(np.nextafter(value[-1], -np.inf))


def _average_precisions(
    values: NDArray[np.float32], classes: NDArray[np.int16], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average precision (count,) of every class when rows are ranked high values first, and low values first.

    It is scikit-learn's `average_precision_score`: the precision at each value, weighted by the recall gained there; 0
    where a class (0 to count - 1; others are of no class) has no row. The time does not depend on the classes' number.
    """
    n = values.size
    order = np.argsort(-values, kind="stable")
    value = values[order]
    ends = np.append(value[1:] != value[:-1], True)  # of a run of equal values, which are ranked together
    last = np.flatnonzero(ends)
    first = np.append(0, last[:-1] + 1)
    run = np.append(0, np.cumsum(ends[:-1]))
    # The rows class by class, high values first; those of one class and one run are a pair.
    by_class = np.argsort(classes[order], kind="stable")
    of_class, of_run = classes[order][by_class], run[by_class]
    size = np.bincount(of_class, minlength=count + 1)
    begins = np.flatnonzero(np.append(True, (of_class[1:] != of_class[:-1]) | (of_run[1:] != of_run[:-1])))
    pair_class, pair_run = of_class[begins], of_run[begins]
    above = begins - (np.cumsum(size) - size)[pair_class]  # rows of the class with higher values
    own = np.diff(np.append(begins, n))
    below = size[pair_class] - above - own
    high = own * (above + own) / (last[pair_run] + 1)
    low = own * (below + own) / (n - first[pair_run])
    share = np.maximum(size, 1)[:count]
    summed = (np.bincount(pair_class, weights=one, minlength=count + 1)[:count] for one in (high, low))
    high_first, low_first = (one / share for one in summed)
    return high_first, low_first
