"""Classifiers of the rows' classes, one against the rest, and the class that they name together.

The class of the largest normalised margin (x . w + b) / ||w||_2 is named (Carvalho 2018). A classifier without any
weight has the margin of the limit w -> 0: +inf everywhere if b > 0, else -inf. Where margins tie, the class that is
more frequent in train wins, so classifiers without weights name the majority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm_probes.l1 import L1Fit, fit_l1
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

    def margin(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.fit.margin(X[:, self.columns])

    def normalised_margin(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.fit.normalised_margin(X[:, self.columns])


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
    X: NDArray[np.float32], y: NDArray[np.bool_], columns: NDArray[np.intp], k: int, like: L1Fit, **settings: Any
) -> Classifier:
    """The classifier of y (n,) on these columns of X (n, U), C and intercept (where there are no columns) as in `like`.

    settings: those of `fit_tags`.
    """
    if columns.size:
        fit = fit_l1(np.ascontiguousarray(X[:, columns]), y, C=like.C, **settings)
    else:
        fit = L1Fit(np.zeros(0), like.intercept, like.C, 0, like.converged, like.iterations, like.gap)
    return Classifier(str(k), columns, fit)


def named_class(
    codes: Sequence[int], classifiers: Sequence[Classifier], X: NDArray[np.float32], rule: str = "norm"
) -> Codes:
    """Each row's class (n,): of the largest normalised margin, or ("probability") of the largest predict_proba."""
    margins = [one.normalised_margin(X) if rule == "norm" else one.margin(X) for one in classifiers]
    return np.asarray(np.array(codes, dtype=np.int16)[np.stack(margins, axis=1).argmax(axis=1)])


def predict(fits: Sequence[TagFits], k: str, X: NDArray[np.float32], rule: str = "norm") -> Codes:
    """`named_class` of the classifiers on k cells."""
    chosen = [next(one for one in fit.classifiers() if one.k == k) for fit in fits]
    return named_class([fit.code for fit in fits], chosen, X, rule)
