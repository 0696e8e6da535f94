"""The largest weights on halves and resamples: always on a planted cell, anywhere on noise."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm_probes.classifiers import Part
from fastlstm_probes.control_fits import ControlFits
from fastlstm_probes.l1 import L1Fit
from fastlstm_probes.stability import RESAMPLES, overlap, rows_of, stability

CELLS, CLASSES = 60, 6


def _part(shift: float) -> Part:
    rng = np.random.default_rng(0)
    code = rng.integers(0, CLASSES, 1200).astype(np.int16)
    X = rng.standard_normal((1200, CELLS))
    X[:, :CLASSES] += shift * (code[:, None] == np.arange(CLASSES))
    return Part(np.arange(1200), X.astype(np.float32), code, np.arange(1200) // 20)


def _found(part: Part):
    fits = ControlFits(tuple("abcdef"))
    tags = fits.fit_top("tags", part.X, part.code, dict.fromkeys(range(CLASSES), 0.25), (1,))
    return stability(fits, tags, part, (1, 2, 20))


def test_a_planted_cell_is_stable():
    for one in _found(_part(6.0)):
        assert (one.halves["1"], one.same_top, one.resamples) == (1.0, 1.0, RESAMPLES)


def test_cells_of_noise_are_not():
    found = _found(_part(0.0))
    # k cells drawn at random have k/60 of the k in common.
    assert np.mean([one.halves["20"] for one in found]) < 0.6
    assert np.mean([one.halves["1"] for one in found]) < 1
    assert np.mean([one.halves["2"] for one in found]) < 0.7


def test_one_document_has_no_halves():
    part = _part(6.0)
    assert set(_found(part.take(part.document == 0))) == {None}


def _fit(*weights: float) -> L1Fit:
    return L1Fit(np.array(weights), 0.0, 1.0, int(np.count_nonzero(weights)), True, 1, 0.0)


def test_overlap_by_hand():
    one, other = _fit(5, -4, 3, 0, 0), _fit(4, 1, -3, 2, 0)
    assert overlap(one, other, k=1) == 1.0
    assert overlap(one, other, k=2) == 0.5  # {0, 1} and {0, 2}
    assert overlap(one, other, k=3) == pytest.approx(2 / 3)  # {0, 1, 2} and {0, 2, 3}
    assert overlap(one, other, k=5) == 0.75  # three weights and four
    assert overlap(one, _fit(0, 0, 0, 0, 1), k=2) == 0.0
    assert overlap(_fit(0, 0), _fit(0, 0), k=1) is None
    assert overlap(one, None, k=1) is None


def test_rows_of_documents_drawn():
    document = np.array([2, 2, 5, 9, 9, 9])
    drawn = np.array([9, 2, 9])
    naive = sorted(row for one in drawn for row in range(6) if document[row] == one)
    assert rows_of(document, drawn).tolist() == naive == [0, 1, 3, 3, 4, 4, 5, 5]
