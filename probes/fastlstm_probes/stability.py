"""Would other text have chosen the same cells? The largest weights on halves and on resamples of the documents.

The joint solver comes to the same optimum whatever its seed is, so that only the text can change the cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastlstm_probes.classifiers import Part, TagFits
from fastlstm_probes.control_fits import ControlFits
from fastlstm_probes.l1 import L1Fit
from fastlstm_probes.results import Stability

RESAMPLES = 3
TOL = 1e-4  # the order of weights is read, not accuracies alone


def stability(fits: ControlFits, found: Sequence[TagFits], train: Part, top: Sequence[int]) -> list[Stability | None]:
    """Of each class in `found`, whose largest weights are the cells in question; None of fewer than two documents.

    Two random halves of the documents are fitted, and `RESAMPLES` draws of as many documents with replacement.
    """
    documents = np.unique(train.document)
    if documents.size < 2:
        return [None] * len(found)
    strength = {fit.code: fit.full.C for fit in found}
    start = {fit.code: fit.full for fit in found}

    def fitted(name: str, rows: NDArray[np.int64]) -> dict[int, L1Fit]:
        return fits.fit(name, train.X[rows], train.code[rows], strength, start=start, tol=TOL)

    order = np.random.default_rng(fits.seed).permutation(documents)
    halves = [fitted("half", np.flatnonzero(np.isin(train.document, half))) for half in np.array_split(order, 2)]
    rng = np.random.default_rng((fits.seed, 1))
    resamples = [
        fitted("resample", rows_of(train.document, rng.choice(documents, documents.size))) for _ in range(RESAMPLES)
    ]
    return [
        Stability(
            halves={str(k): overlap(*(half.get(fit.code) for half in halves), k=k) for k in top},
            resamples=len(resamples),
            same_top=sum(_same_top(fit.full, one.get(fit.code)) for one in resamples) / len(resamples)
            if fit.full.nonzero
            else None,
        )
        for fit in found
    ]


def overlap(one: L1Fit | None, other: L1Fit | None, *, k: int) -> float | None:
    """Share of the k largest weights that two fits have in common; of fewer where both have fewer that are not zero.

    None if a fit is missing (its text lacks the class) or neither has a weight.
    """
    if one is None or other is None:
        return None
    first, second = set(one.top(k).tolist()), set(other.top(k).tolist())
    size = max(len(first), len(second))
    return len(first & second) / size if size else None


def rows_of(document: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows (n,) of the documents drawn, as often as each was; `document` (N,) of each row."""
    documents, times = np.unique(drawn, return_counts=True)
    place = np.minimum(np.searchsorted(documents, document), documents.size - 1)
    repeats = np.where(documents[place] == document, times[place], 0)
    return np.repeat(np.arange(document.size), repeats)


def _same_top(full: L1Fit, other: L1Fit | None) -> bool:
    return other is not None and full.top(1).tolist() == other.top(1).tolist()
