"""The fits that controls need: cheaper than the fit that they judge, on fewer rows and to a wider gap."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm.states import States
from fastlstm_probes.classifiers import Classifier, Part, TagFits, refit, refit_top
from fastlstm_probes.l1 import MAX_ITER, L1Fit, fit_tags
from fastlstm_probes.l1.stored import stored_fits
from fastlstm_probes.single_cells import Codes
from fastlstm_probes.splits import limit_rows

# Train rows that controls are fitted on at most, those of whole documents: they need about ten fits on all cells.
CONTROL_ROWS = 20_000
CONTROL_TOL = 1e-3  # relative duality gap, where accuracies or probabilities are read and not the cells


def control_part(store: States, train: Part, seed: int) -> Part:
    """At most `CONTROL_ROWS` of the train rows, those of whole documents drawn by `seed`, one document at least."""
    largest = int(np.unique(train.document, return_counts=True)[1].max())
    taken = limit_rows(store, train.index, max(CONTROL_ROWS, largest), seed)
    return train if taken.size == train.index.size else train.take(np.isin(train.index, taken))


@dataclass
class ControlFits:
    """How controls fit: by the joint solver, all classes at once, kept in `partial_fits` as they are made.

    made: every fit with a name, for the warning of those that did not converge.
    """

    classes: tuple[str, ...]
    seed: int = 42
    max_iter: int = MAX_ITER
    device: str | None = None
    partial_fits: Path | None = None
    progress: bool = False
    made: list[tuple[str, L1Fit]] = field(default_factory=list)

    def fit(
        self,
        name: str,
        X: NDArray[np.float32],
        code: Codes,
        strength: Mapping[int, float],
        *,
        start: Mapping[int, L1Fit] | None = None,
        tol: float = CONTROL_TOL,
    ) -> dict[int, L1Fit]:
        """Classifiers of every class that the rows X (n, U) with code (n,) have, by code, the most frequent first.

        strength: C of each class. start: fits to begin from. A class that all rows have gets a constant classifier.
        """
        counts = np.bincount(code, minlength=len(self.classes))
        codes = [int(one) for one in np.argsort(-counts, kind="stable") if counts[one]]
        zero = np.zeros(X.shape[1])
        if len(codes) == 1:
            return {codes[0]: L1Fit(zero, 1.0, strength[codes[0]], 0, True, 0, 0.0)}
        C = [strength[one] for one in codes]
        begin = None
        if start is not None:
            begin = [start.get(one, L1Fit(zero, 0.0, strength[one], 0, False, 0, 1.0)) for one in codes]
        settings: dict[str, Any] = {
            "C": C,
            "seed": self.seed,
            "tol": tol,
            "max_iter": self.max_iter,
            "device": self.device,
        }
        targets = code[:, None] == np.array(codes)
        make = partial(fit_tags, X, targets, start=begin, progress=self.progress, **settings)
        if self.partial_fits is None:
            fits = make()
        else:
            begun = [np.append(fit.weights, fit.intercept) for fit in begin or ()]
            content = {"cells": _digest(X), "targets": _digest(targets), "begun": _digest(*begun)}
            fits = stored_fits(self.partial_fits, {"control": name, **content, **settings}, make)
        self.made += [(f"{name} {self.classes[one]}", fit) for one, fit in zip(codes, fits, strict=True)]
        return dict(zip(codes, fits, strict=True))

    def fit_top(
        self,
        name: str,
        X: NDArray[np.float32],
        code: Codes,
        strength: Mapping[int, float],
        top: Sequence[int],
        *,
        start: Mapping[int, L1Fit] | None = None,
    ) -> list[TagFits]:
        """`fit`, and each class again on the k cells of its largest weights for k of `top`."""
        fits = self.fit(name, X, code, strength, start=start)
        targets = code[:, None] == np.array(list(fits))
        full = list(fits.values())
        tops = refit_top(X, targets, full, top, name=name, progress=self.progress, **self._settings())
        found = [
            TagFits(self.classes[one], one, fit, of_tag) for (one, fit), of_tag in zip(fits.items(), tops, strict=True)
        ]
        self._note(name, [one for fit in found for one in fit.top])
        return found

    def refit(
        self,
        name: str,
        X: NDArray[np.float32],
        targets: NDArray[np.bool_],
        columns: Sequence[NDArray[np.intp]],
        k: int,
        like: Sequence[L1Fit],
        before: Sequence[Classifier] | None = None,
    ) -> list[Classifier]:
        """The classifiers of targets (n, K) on columns of X (n, U) of their own; see `refit`."""
        found = refit(X, targets, columns, k, like, before, **self._settings())
        self._note(name, found)
        return found

    def _settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "max_iter": self.max_iter, "tol": CONTROL_TOL, "device": self.device}

    def _note(self, name: str, made: Sequence[Classifier]) -> None:
        """Those that did not converge, for the warning."""
        self.made += [(f"{name} k={one.k}", one.fit) for one in made if one.columns.size and not one.fit.converged]


def _digest(*arrays: NDArray[Any]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
