"""Selectivity: high for a concept that a cell holds, none for cells that only tell words apart."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm_probes.classifiers import Part
from fastlstm_probes.control_fits import ControlFits
from fastlstm_probes.results import Selectivity
from fastlstm_probes.selectivity import control_classes, control_codes, selectivity

TYPES, LENGTH, CONCEPTS = 40, 3, 5
SPACE = CONCEPTS


def _words(count: int, seed: int, of_type: np.ndarray | None) -> tuple[Part, np.ndarray, np.ndarray]:
    """Words of three rows and a space after each; class 0 to 4, of the type if given, else of the occurrence.

    The part has the word's type as its only cell; types (count,) of the words, word (n,) of the rows.
    """
    rng = np.random.default_rng(seed)
    types = rng.integers(0, TYPES, count)
    concept = rng.integers(0, CONCEPTS, count) if of_type is None else of_type[types]
    word = np.repeat(np.arange(count), LENGTH + 1)
    word[LENGTH :: LENGTH + 1] = -1
    code = np.where(word >= 0, np.repeat(concept, LENGTH + 1), SPACE).astype(np.int16)
    row = np.arange(word.size)
    X = np.repeat(types, LENGTH + 1)[:, None].astype(np.float32)
    return Part(row, X, code, row // 100), word, types


def _selectivity(of_type: np.ndarray | None, cells: str) -> dict[str, Selectivity]:
    parts = []
    for seed, count in ((1, 800), (2, 400)):
        part, word, types = _words(count, seed, of_type)
        if cells == "concept":
            X = np.random.default_rng(seed).standard_normal((word.size, 12)).astype(np.float32)
            X[:, : SPACE + 1] += 8 * (part.code[:, None] == np.arange(SPACE + 1))
        else:  # the word's identity, and whether it is one
            X = 4.0 * (part.X.astype(int) == np.arange(TYPES)) * (word >= 0)[:, None]
        parts.append((Part(part.index, X.astype(np.float32), part.code, part.document), word, types))
    (train, train_word, train_types), (test, test_word, test_types) = parts
    fits = ControlFits(tuple("abcde "))
    true = fits.fit_top("true", train.X, train.code, dict.fromkeys(range(SPACE + 1), 1.0), (1, 2))
    types = np.concatenate([train_types, test_types])
    later = np.where(test_word >= 0, test_word + train_types.size, -1)
    found = selectivity(fits, true, train, test, train_word, later, types, (1, 2))
    assert {one.rows for one in found} == {LENGTH * test_types.size}
    assert {one.train_rows for one in found} == {train.code.size}
    assert {one.word_types for one in found} == {TYPES}
    return {one.k: one for one in found}


def test_a_planted_concept_is_selective():
    found = _selectivity(None, "concept")
    assert list(found) == ["all", "1", "2"]
    for one in found.values():
        assert one.accuracy > 0.95
        # Cells that know no word cannot do better than the most frequent control class.
        assert one.control_accuracy < 0.5
        assert one.selectivity == pytest.approx(one.accuracy - one.control_accuracy)
        assert 0.3 < one.low < one.selectivity < one.high


def test_cells_that_only_tell_words_apart_are_not():
    of_type = np.random.default_rng(5).integers(0, CONCEPTS, TYPES)
    found = _selectivity(of_type, "identity")
    assert found["all"].accuracy > 0.95
    assert found["all"].control_accuracy > 0.95
    assert abs(found["all"].selectivity) < 0.03


def test_control_classes_are_one_for_each_type_and_as_frequent_as_the_true_ones():
    part, word, types = _words(20_000, 3, None)
    skewed = np.where(word >= 0, word % 4 == 0, part.code).astype(np.int16)  # a quarter of the words are of class 1
    many = types + TYPES * (np.arange(types.size) % 50)  # 2,000 types
    classes = control_classes(many, word, skewed, seed=4)
    assert set(classes) == set(many.tolist())
    # A binomial share of 2,000 draws, 4 standard deviations.
    assert np.mean(list(classes.values())) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 2000))
    codes, known = control_codes(many, word, skewed, classes)
    np.testing.assert_array_equal(known, word >= 0)
    expected = [classes[many[w]] if w >= 0 else SPACE for w in word.tolist()]
    assert codes.tolist() == expected
    assert control_classes(many, word, skewed, seed=4) == classes
    assert control_classes(many, word, skewed, seed=5) != classes


def test_types_that_train_lacks_do_not_count():
    types = np.array([0, 1, 0, 2])
    word, code = np.array([0, 1, -1]), np.array([0, 1, 2], dtype=np.int16)
    classes = control_classes(types, word, code, seed=0)
    assert set(classes) == {0, 1}
    codes, known = control_codes(types, np.array([2, 3, -1]), np.array([1, 1, 2], dtype=np.int16), classes)
    assert known.tolist() == [True, False, False]
    assert codes.tolist() == [classes[0], 1, 2]
    rows = np.arange(2)
    some = Part(rows, np.zeros((2, 1), np.float32), np.array([1, 2], dtype=np.int16), rows)
    assert selectivity(ControlFits(("a", "b", "c")), [], some, some, word[:2], np.array([3, -1]), types, (1,)) == []
