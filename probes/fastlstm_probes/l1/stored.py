"""Fits kept on disk as they are made, so that a run that was killed goes on at the first that is missing."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.files import write_whole
from fastlstm_probes.l1.fit import L1Fit

_FIELDS = ("intercept", "C", "converged", "iterations", "gap")


def stored_fits(folder: Path | None, key: Mapping[str, Any], make: Callable[[], list[L1Fit]]) -> list[L1Fit]:
    """The fits of `make`, from `folder` if they were made before with this key; None: make them.

    key: everything that decides them (JSON values): it names the file, so other settings never meet.
    """
    if folder is None:
        return make()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / f"{name}.npz"
    if path.is_file():
        with np.load(path) as found:
            rows = zip(found["weights"], *(found[name].tolist() for name in _FIELDS), strict=True)
            return [_fit(weights, *values) for weights, *values in rows]
    fits = make()
    folder.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    columns: dict[str, Any] = {name: np.array([getattr(fit, name) for fit in fits]) for name in _FIELDS}
    np.savez(content, weights=np.stack([fit.weights for fit in fits]), **columns)
    write_whole(path, content.getvalue())
    return fits


def _fit(weights: Any, intercept: float, C: float, converged: bool, iterations: int, gap: float) -> L1Fit:
    return L1Fit(weights, intercept, C, int(np.count_nonzero(weights)), converged, iterations, gap)
