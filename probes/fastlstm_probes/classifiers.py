"""Classifiers of the rows' classes, one against the rest, and the class that they name together.

The class of the largest normalised margin (x . w + b) / ||w||_2 is named (Carvalho 2018). A classifier without any
weight has the margin of the limit w -> 0: +inf everywhere if b > 0, else -inf. Where margins tie, the class that is
more frequent in train wins, so classifiers without weights name the majority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastlstm_probes.l1 import L1Fit, Solver, fit_few, fit_l1, margins
from fastlstm_probes.l1.fit import TOL
from fastlstm_probes.single_cells import Codes


@dataclass(frozen=True)
class Part:
    """Rows of one part of a store: index (n,) into the store, cells (n, U), class (n,), document (n,)."""

    index: NDArray[np.int64]
    X: NDArray[np.float32]
    code: Codes
    document: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> Part:
        """These of its rows: a mask, or numbers into it."""
        return Part(self.index[rows], self.X[rows], self.code[rows], self.document[rows])


@dataclass(frozen=True)
class Classifier:
    """A fit on some columns of the cells."""

    k: str
    columns: NDArray[np.intp]
    fit: L1Fit

    def weights_on(self, columns: NDArray[np.intp]) -> NDArray[np.float64]:
        """Its weights on other columns (k,), 0 where it has none, and the intercept: (k + 1,)."""
        own = dict(zip(self.columns.tolist(), self.fit.weights.tolist(), strict=True))
        return np.array([*(own.get(one, 0.0) for one in columns.tolist()), self.fit.intercept])

    def on_all(self, cells: int) -> L1Fit:
        """The same fit with a weight for every one of the cells, 0 for those that it has not."""
        weights = np.zeros(cells)
        weights[self.columns] = self.fit.weights
        return replace(self.fit, weights=weights)


@dataclass(frozen=True)
class TagFits:
    """The classifiers of one class, on all cells and on its k best."""

    tag: str
    code: int
    full: L1Fit
    top: tuple[Classifier, ...]
    others: tuple[L1Fit, ...] = ()  # fits of a sweep that were not chosen

    def classifiers(self) -> tuple[Classifier, ...]:
        return (Classifier("all", np.arange(self.full.weights.size), self.full), *self.top)


def refit(
    X: NDArray[np.float32],
    targets: NDArray[np.bool_],
    columns: Sequence[NDArray[np.intp]],
    k: int,
    like: Sequence[L1Fit],
    before: Sequence[Classifier] | None = None,
    *,
    seed: int,
    max_iter: int,
    tol: float = TOL,
    solver: Solver = "joint",
    device: str | None = None,
) -> list[Classifier]:
    """The classifier of each column of targets (n, K) on columns of X (n, U) of its own, with the C of its `like`.

    Where it has no columns its intercept is that of `like`. The joint solver, to a gap of `tol`, begins from the
    classifiers `before`, which may be on other columns.
    """
    chosen = [place for place, of_tag in enumerate(columns) if of_tag.size]
    fits: list[L1Fit] = []
    if solver != "joint":
        settings: dict[str, Any] = {"seed": seed, "max_iter": max_iter, "solver": solver}
        for place in chosen:
            some = np.ascontiguousarray(X[:, columns[place]])
            fits.append(fit_l1(some, targets[:, place], C=like[place].C, **settings))
    elif chosen:
        fits = fit_few(
            X,
            targets[:, chosen],
            [columns[place] for place in chosen],
            C=[like[place].C for place in chosen],
            tol=tol,
            max_iter=max_iter,
            device=device,
            start=None if before is None else [before[place].weights_on(columns[place]) for place in chosen],
        )
    of_place = dict(zip(chosen, fits, strict=True))
    return [
        Classifier(
            str(k),
            columns[place],
            of_place.get(place) or L1Fit(np.zeros(0), one.intercept, one.C, 0, one.converged, one.iterations, one.gap),
        )
        for place, one in enumerate(like)
    ]


def refit_top(
    X: NDArray[np.float32],
    targets: NDArray[np.bool_],
    full: Sequence[L1Fit],
    top: Sequence[int],
    *,
    name: str,
    progress: bool,
    **settings: Any,
) -> list[tuple[Classifier, ...]]:
    """For each column of targets, and each k of `top`, the classifier on the k cells of the largest weights in `full`.

    settings: those of `refit`.
    """
    by_k: list[list[Classifier]] = []
    for k in tqdm(top, desc=f"{name}: fewer cells", unit="k", disable=not progress):
        before = by_k[-1] if by_k else None
        by_k.append(refit(X, targets, [fit.top(k) for fit in full], k, full, before, **settings))
    return list(zip(*by_k, strict=True)) if by_k else [()] * len(full)


def margins_of(
    classifiers: Sequence[Classifier], X: NDArray[np.float32], *, normalised: bool = False
) -> NDArray[np.float64]:
    """`margins` of classifiers on columns of X (n, U) of their own: (n, K)."""
    return margins([one.on_all(X.shape[1]) for one in classifiers], X, normalised=normalised)


def named_class(
    codes: Sequence[int], classifiers: Sequence[Classifier], X: NDArray[np.float32], rule: str = "norm"
) -> Codes:
    """Each row's class (n,): of the largest normalised margin, or ("probability") of the largest predict_proba."""
    found = margins_of(classifiers, X, normalised=rule == "norm")
    return np.asarray(np.array(codes, dtype=np.int16)[found.argmax(axis=1)])


def on_cells(fits: Sequence[TagFits], k: str) -> list[Classifier]:
    """Of each class its classifier on k cells, a number or "all"."""
    return [next(one for one in fit.classifiers() if one.k == k) for fit in fits]


def predict(fits: Sequence[TagFits], k: str, X: NDArray[np.float32], rule: str = "norm") -> Codes:
    """`named_class` of the classifiers on k cells."""
    return named_class([fit.code for fit in fits], on_cells(fits, k), X, rule)
