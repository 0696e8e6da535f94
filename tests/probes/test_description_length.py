"""The online code: short for a planted concept, no shorter than the uniform one for noise, and always finite."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from fastlstm_probes.classifiers import Part
from fastlstm_probes.control_fits import CONTROL_TOL, ControlFits
from fastlstm_probes.description_length import code_bits, online_code, parts_of
from fastlstm_probes.l1 import L1LogisticOvR

CLASSES, DOCUMENTS, LENGTH, CELLS = 4, 80, 25, 8
STRENGTH = dict.fromkeys(range(CLASSES), 0.5)


def _part(shift: float) -> Part:
    """Four classes, equally frequent; cell i is higher by `shift` where the class is i, the other cells are noise."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, CLASSES, DOCUMENTS * LENGTH).astype(np.int16)
    X = rng.standard_normal((code.size, CELLS))
    X[:, :CELLS] += shift * (code[:, None] == np.arange(CELLS))
    return Part(np.arange(code.size), X.astype(np.float32), code, np.repeat(np.arange(DOCUMENTS), LENGTH))


def _fits() -> ControlFits:
    return ControlFits(tuple("abcd"), seed=3)


def test_a_planted_concept_has_a_short_code():
    found = online_code(_fits(), _part(10.0), STRENGTH)
    assert found is not None
    assert (found.rows, found.classes, found.uniform_bits_per_row) == (DOCUMENTS * LENGTH, CLASSES, 2.0)
    assert found.compression > 4
    assert found.bits_per_row < 0.5 < found.frequency_bits_per_row
    assert sum(found.parts) == found.rows


def test_noise_has_the_uniform_code():
    found = online_code(_fits(), _part(0.0), STRENGTH)
    assert found is not None
    # Nothing is learnt; what is fitted to few rows costs some.
    assert 0.8 < found.compression < 1.01
    assert found.frequency_bits_per_row == pytest.approx(2.0, rel=0.02)


def test_the_code_is_that_of_the_estimators_probabilities():
    """By hand: scikit-learn's interface on each prefix, its normalised one-vs-rest probabilities, row by row."""
    part = _part(2.0)
    found = online_code(_fits(), part, STRENGTH)
    assert found is not None
    order, ends = parts_of(part.document, 3)
    X, code = part.X[order], part.code[order]
    assert np.unique(code[: ends[0]]).size == CLASSES  # so that the estimator knows all classes from the first part on
    bits = ends[0] * 2.0
    for begin, end in pairwise(ends):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = L1LogisticOvR(C=0.5, tol=CONTROL_TOL / 100, random_state=0).fit(X[:begin], code[:begin])
        for p, one in zip(model.predict_proba(X[begin:end]), code[begin:end], strict=True):
            bits -= np.log2((begin * p[one] + 1) / (begin + CLASSES))
    # Both optima are within their gaps of the least, where probabilities differ less than that.
    assert found.bits_per_row * part.code.size == pytest.approx(bits, rel=0.01)


def test_parts_are_of_whole_documents_and_double():
    document = np.repeat(np.arange(64) * 7, 10)
    order, ends = parts_of(document, 0)
    assert ends == [10, 20, 40, 80, 160, 320, 640]
    assert sorted(order.tolist()) == list(range(640))
    assert order.tolist() != list(range(640))
    shuffled = document[order]
    np.testing.assert_array_equal(shuffled.reshape(64, 10), np.repeat(shuffled[::10], 10).reshape(64, 10))
    # Documents of any length: a part ends with the document that its share falls into.
    long = np.repeat([0, 1, 2], [5, 100, 7])
    order, ends = parts_of(long, 1)
    lengths = np.array([5, 100, 7])[long[order][np.append(True, np.diff(long[order]) != 0)]]
    assert set(ends) <= set(np.cumsum(lengths).tolist())
    assert ends[-1] == 112


def test_a_class_that_comes_late_costs_bits_that_are_finite():
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(20), 10)
    last = parts_of(document, 3)[0][-10:]  # the rows of the document that comes last
    code = rng.integers(0, 2, 200).astype(np.int16)
    code[last] = 2
    X = rng.standard_normal((200, 3)).astype(np.float32)
    found = online_code(_fits(), Part(np.arange(200), X, code, document), STRENGTH)
    assert found is not None
    assert np.isfinite(found.bits_per_row)
    seen = 200 - found.parts[-1]
    assert found.bits_per_row * 200 > 10 * np.log2(seen + 3)  # each row of the class that no part before it had
    assert code_bits(np.array([[1.0, 0.0]]), np.array([1]), 6) == pytest.approx(3.0)  # (6 * 0 + 1) / (6 + 2)


def test_nothing_is_coded_of_one_document_or_class():
    part = _part(1.0)
    assert online_code(_fits(), part.take(part.document == 0), STRENGTH) is None
    assert online_code(_fits(), part.take(part.code == 0), STRENGTH) is None
