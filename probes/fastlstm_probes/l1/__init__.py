"""L1-penalised logistic regression, all tags at once, over rows in memory, on disk or on several machines."""

from __future__ import annotations

from fastlstm_probes.l1.chunks import MEMORY_LIMIT, StoreRows
from fastlstm_probes.l1.estimator import L1LogisticOvR, Solver
from fastlstm_probes.l1.fit import (
    MAX_ITER,
    L1Fit,
    L1Sweep,
    best_strength,
    fit_few,
    fit_l1,
    fit_tags,
    margins,
    sweep_l1,
    warn_unconverged,
)

__all__ = [
    "MAX_ITER",
    "MEMORY_LIMIT",
    "L1Fit",
    "L1LogisticOvR",
    "L1Sweep",
    "Solver",
    "StoreRows",
    "best_strength",
    "fit_few",
    "fit_l1",
    "fit_tags",
    "margins",
    "sweep_l1",
    "warn_unconverged",
]
