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
    class_of_code = np.full(max(int(code.max()), *codes) + 1, len(codes), dtype=np.int64)
    class_of_code[codes] = np.arange(len(codes))
    classes = class_of_code[code]
    best = np.full(len(codes), -1.0)
    column_of, sign_of = np.zeros(len(codes), dtype=np.int64), np.ones(len(codes), dtype=np.int64)
    for column in tqdm(range(X.shape[1]), desc=name, unit="cell", disable=not progress):
        counts, total = _counts_by_value(X[:, column], classes, len(codes))
        for sign in (1, -1):
            found = _average_precisions(counts[::-sign], total[::-sign])
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


def _counts_by_value(
    values: NDArray[np.float32], classes: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of each class (values, count) and of any class (values,) at every distinct value, ascending."""
    order = np.argsort(values, kind="stable")
    value = values[order]
    place = np.cumsum(np.append(False, value[1:] != value[:-1]))
    size = int(place[-1]) + 1
    table = np.bincount(place * (count + 1) + classes[order], minlength=size * (count + 1)).reshape(size, count + 1)
    return table[:, :count], table.sum(axis=1)


def _average_precisions(counts: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average precision of every class when rows are ranked by descending value; 0 where a class has no row.

    counts (values, K), total (values,): rows of each class and of any at every value, the highest first. It is
    scikit-learn's `average_precision_score`: precision at each value, weighted by the recall gained there.
    """
    found = np.cumsum(counts, axis=0)
    precision = found / np.cumsum(total)[:, None]
    positives = found[-1]
    summed = np.einsum("vk,vk->k", precision, counts)
    return np.asarray(summed / np.maximum(positives, 1))
