"""Which cells know a tag: rankings apart from probing, all judged by the same probe (Antverg and Belinkov 2022).

A ranking is made on train rows, a probe (an L1 classifier of the same C) is fitted there on its first k cells, and its
average precision on test rows says how good the ranking is at that k. For k <= 3 the best subset of the cells that any
ranking has near its head is found by trying all of them.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import f_classif
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from fastlstm.errors import InputError
from fastlstm.files import write_whole
from fastlstm.states import States
from fastlstm_probes.l1 import L1LogisticOvR, fit_l1
from fastlstm_probes.part_of_speech import row_classes
from fastlstm_probes.splits import read_rows, split_rows

KS = (1, 2, 3, 5, 10, 20, 50)
_BINS = 16
_AMONG = 24  # cells that subsets are taken from: 2,024 subsets of three
_SUBSET_ROWS = 4096
_PATH = tuple(np.geomspace(0.9, 0.02, 20).tolist())  # shares of the strongest penalty

Cells = NDArray[np.float32]
Labels = NDArray[np.bool_]


@dataclass(frozen=True)
class RankedBy:
    """One ranking: its first cells, the best first; k -> average precision of the probe on test rows."""

    name: str
    cells: tuple[int, ...]
    average_precision: dict[int, float]


def compare_rankings(
    train: tuple[Cells, Labels],
    test: tuple[Cells, Labels],
    *,
    C: float = 0.25,
    ks: Sequence[int] = KS,
    seed: int = 42,
    progress: bool = True,
) -> list[RankedBy]:
    """Every ranking of the cells of train (X (n, U), y (n,)), judged on test; then the best subset for k <= 3."""
    X, y = train
    found = rankings(X, y, C=C, seed=seed)
    ks = [k for k in ks if k <= X.shape[1]]
    judged: list[RankedBy] = []
    for name, order in tqdm(found.items(), desc="rankings", disable=not progress):
        scores = {k: _probe(train, test, order[:k], C, seed) for k in ks}
        judged.append(RankedBy(name, tuple(order[: max(ks)].tolist()), scores))
    # Cells by their best place in any ranking.
    places = np.min([np.argsort(order) for order in found.values()], axis=0)
    among = np.argsort(places, kind="stable")[:_AMONG]
    subsets = {k: best_subset(X, y, among, k, seed) for k in ks if k <= min(3, len(among))}
    for k, columns in subsets.items():  # they need not be parts of one another
        judged.append(
            RankedBy(f"best subset of {k}", tuple(columns.tolist()), {k: _probe(train, test, columns, C, seed)})
        )
    return judged


def rank_tag(
    store: States, tag: str, *, group: bool = True, C: float = 0.25, seed: int = 42, progress: bool = True
) -> list[RankedBy]:
    """`compare_rankings` for one part of speech of a store, split by document; cells are unit ids.

    Raises:
        InputError: text without tags, a tag that train or test lack, or that all of their rows have.
    """
    classes, code = row_classes(store, group)
    if tag not in classes:
        raise InputError(f"tag: expected one of {', '.join(classes)}, got {tag!r}")
    split = split_rows(store)
    truth = code == classes.index(tag)
    for name, rows in (("train", split.train), ("test", split.test)):
        if not 0 < truth[rows].sum() < len(rows):
            raise InputError(f"{store.path}: expected rows of {tag} and others in split {name!r}, got one kind only")
    train, test = ((read_rows(store, rows), truth[rows]) for rows in (split.train, split.test))
    table = compare_rankings(train, test, C=C, seed=seed, progress=progress)
    return [replace(one, cells=tuple(store.units[list(one.cells)].tolist())) for one in table]


def write_rankings(path: Path, table: Sequence[RankedBy]) -> None:
    """CSV: ranking, k, average_precision, cells (the first k)."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(("ranking", "k", "average_precision", "cells"))
    for one in table:
        for k, score in one.average_precision.items():
            writer.writerow((one.name, k, score, " ".join(map(str, one.cells[:k]))))
    write_whole(path, content.getvalue().encode())


def rankings(X: Cells, y: Labels, *, C: float, seed: int) -> dict[str, NDArray[np.intp]]:
    """Columns of X (n, U), the best first, by name of what ranks them; ties: the lower column."""
    deviation = X.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1)
    full = fit_l1(X, y, C=C, seed=seed)
    difference = X[y].mean(axis=0, dtype=np.float64) - X[~y].mean(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of constant cells, which come last
        F = np.where(deviation > 0, f_classif(X.astype(np.float64), y)[0], 0.0)
    measures = {
        "weight times deviation": np.abs(full.weights) * deviation,
        "mean difference": np.abs(difference) / scale,
        "area under the ROC curve": np.abs(_areas(X, y) - 0.5),
        "F statistic": F,
        "mutual information": mutual_information(X, y),
        "order of entry on the path": _entry(((X - X.mean(axis=0)) / scale).astype(np.float32), y, seed),
    }
    return {name: np.argsort(-value, kind="stable") for name, value in measures.items()}


def mutual_information(X: Cells, y: Labels) -> NDArray[np.float64]:
    """Of each column, cut at its 16-quantiles, with y, in bits, (U,)."""
    found = np.empty(X.shape[1])
    for column in range(X.shape[1]):
        edges = np.unique(np.quantile(X[:, column], np.linspace(0, 1, _BINS + 1)[1:-1]))
        place = np.searchsorted(edges, X[:, column], side="right")
        joint = np.bincount(2 * place + y, minlength=2 * (len(edges) + 1)).reshape(-1, 2) / len(y)
        independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        there = joint > 0
        found[column] = (joint[there] * np.log2(joint[there] / independent[there])).sum()
    return found


def best_subset(X: Cells, y: Labels, among: NDArray[np.intp], k: int, seed: int) -> NDArray[np.intp]:
    """The k of the columns `among` whose logistic regression has the least loss on X (n, U): all subsets are tried.

    On at most 4,096 of the rows, drawn by `seed`; columns are standardised, the penalty is an L2 of 1e-3 on the sum of
    losses, which keeps separable data finite.
    """
    rows = np.arange(len(X))
    if len(X) > _SUBSET_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(len(X), _SUBSET_ROWS, replace=False))
    cells = torch.from_numpy(X[np.ix_(rows, among)]).double()
    deviation = cells.std(0)
    cells = (cells - cells.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    truth = torch.from_numpy(y[rows]).double()
    subsets = torch.tensor(list(combinations(range(len(among)), k)))
    losses = torch.cat([_logistic_losses(cells, truth, part) for part in torch.split(subsets, 128)])
    return np.asarray(among[subsets[int(losses.argmin())].numpy()])


def _logistic_losses(cells: torch.Tensor, truth: torch.Tensor, subsets: torch.Tensor) -> torch.Tensor:
    """The least penalised loss on each of the subsets (s, k) of the columns, (s,): Newton steps, halved if too long."""
    design = cells[:, subsets].permute(1, 0, 2)  # (s, n, k)
    design = torch.cat([design, torch.ones_like(design[..., :1])], dim=2)
    penalty = torch.eye(design.shape[2], dtype=torch.float64) * 1e-3
    w = torch.zeros(len(subsets), design.shape[2], 1, dtype=torch.float64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        margin = (design @ w)[..., 0]
        total = torch.nn.functional.softplus(margin) - truth * margin
        return total.sum(1) + 0.5e-3 * w.square().sum((1, 2))

    at = loss(w)
    for _ in range(25):
        share = torch.sigmoid(design @ w)
        gradient = design.mT @ (share - truth[:, None]) + 1e-3 * w
        hessian = design.mT @ (design * share * (1 - share)) + penalty
        step = torch.linalg.solve(hessian, gradient)
        length = torch.ones(len(w), 1, 1, dtype=torch.float64)
        for _ in range(12):
            new = loss(w - length * step)
            worse = new > at
            if not bool(worse.any()):
                break
            length = torch.where(worse[:, None, None], length / 2, length)
        better = new < at
        w = torch.where(better[:, None, None], w - length * step, w)
        if bool(((at - new) <= 1e-9 * at).all()):
            break
        at = torch.minimum(at, new)
    return at


def _probe(
    train: tuple[Cells, Labels], test: tuple[Cells, Labels], columns: NDArray[np.intp], C: float, seed: int
) -> float:
    fit = fit_l1(np.ascontiguousarray(train[0][:, columns]), train[1], C=C, seed=seed)
    return float(average_precision_score(test[1], fit.margin(test[0][:, columns])))


def _areas(X: Cells, y: Labels) -> NDArray[np.float64]:
    """The area under the ROC curve of each column, (U,): 0.5 says nothing; equal values count half."""
    positives = int(y.sum())
    found = np.empty(X.shape[1])
    for column in range(X.shape[1]):
        _, place, count = np.unique(X[:, column], return_inverse=True, return_counts=True)
        rank = np.cumsum(count) - (count - 1) / 2
        total = rank[place[y]].sum() - positives * (positives + 1) / 2
        found[column] = total / (positives * (len(y) - positives))
    return found


def _entry(X: Cells, y: Labels, seed: int) -> NDArray[np.float64]:
    """How strong a penalty each standardised cell's weight survives, (U,), then its weight at the end.

    The penalty is a share of the strongest; the intercept is free.
    """
    survived = np.zeros(X.shape[1])
    start = None
    for share in _PATH:
        model = L1LogisticOvR(alpha_fraction=share, tol=1e-4, penalise_intercept=False, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an order of entry needs no certificate
            model.fit(X, y, start=start)
        start = np.hstack([model.coef_, model.intercept_[:, None]])
        survived = np.where((survived == 0) & (model.coef_[0] != 0), share, survived)
    last = np.abs(model.coef_[0])
    return np.asarray(survived + 1e-6 * last / max(float(last.max()), 1e-300))
