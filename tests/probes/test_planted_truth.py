"""On grammar text with planted cells the pipeline reports exactly what is there: one cell, three cells, chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastlstm.corpus.shards import Document, Word
from fastlstm_probes.chance import best_cell_p_values, false_discovery, rotation
from fastlstm_probes.findings import cells_needed, is_chance
from fastlstm_probes.part_of_speech import fit_part_of_speech
from fastlstm_probes.results import TagRow
from planted_store import PlantedText, every_byte, write_store

TAGSET = ("CONCEPT", "REST")
COUNT, WORDS, CELLS = 120, 40, 40


def _fitted(folder: Path, shift: dict[int, float]) -> TagRow:
    """What is reported of a fifth of the words, drawn at random, whose bytes shift some cells by so many deviations."""
    rng = np.random.default_rng(0)
    documents, concept = [], []
    for number in range(COUNT):
        drawn = rng.random(WORDS) < 0.2
        words = tuple(Word(2 + 4 * i, 5 + 4 * i, TAGSET[0 if one else 1]) for i, one in enumerate(drawn))
        documents.append(Document(f"d{number}", b"\n " + b"abc " * WORDS, None, words))
        line = np.zeros(2 + 4 * WORDS, bool)
        for word in words:
            line[word.start : word.end] = word.tag == "CONCEPT"
        concept.append(line)
    text = PlantedText(documents, [0] * 80 + [1] * 20 + [2] * 20, TAGSET)
    true = np.concatenate(concept)
    cells = rng.standard_normal((len(true), CELLS))
    for cell, by in shift.items():
        cells[:, cell] += by * true
    store = write_store(folder / "store", text, every_byte(text), cells, rows="all")
    result = fit_part_of_speech(store, group=False, top=(1, 2, 3, 5, 10), progress=False)
    return next(row for row in result.tags if row.tag == "CONCEPT")


def test_a_concept_of_one_cell_is_found_with_one(tmp_path: Path):
    row = _fitted(tmp_path, {7: 6.0})
    assert (row.best.unit, row.top[0], cells_needed(row), is_chance(row)) == (7, 7, 1, False)


def test_a_concept_of_three_cells_is_found_with_three(tmp_path: Path):
    row = _fitted(tmp_path, {11: 1.5, 19: 1.5, 23: 1.5})
    assert (set(row.top), cells_needed(row), is_chance(row)) == ({11, 19, 23}, 3, False)


def test_a_concept_of_no_cell_is_chance(tmp_path: Path):
    row = _fitted(tmp_path, {})
    assert is_chance(row)
    share = row.positive / (row.positive + row.negative)
    for score in row.by_k:
        assert score.average_precision == pytest.approx(share, abs=0.05)
        assert score.roc_auc == pytest.approx(0.5, abs=0.05)


def test_p_values_of_noise_are_uniform_and_of_a_signal_the_least():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(30), 20)
    X = rng.standard_normal((600, 15)).astype(np.float32)
    # Labels in runs of five, as the bytes of words: they have nothing to do with the cells.
    noise = np.repeat(rng.random((120, 40)) > 0.7, 5, axis=0)
    p = best_cell_p_values(X, np.column_stack([noise, X[:, 3] > 1]), group, seed=0, permutations=99)
    assert p[-1] == 0.01
    # Under the null at most a tenth of 40 is below 0.1: 4 are expected, 11 have a chance of 1 in 1,000.
    assert (p[:-1] < 0.1).sum() < 11
    assert 0.3 < p[:-1].mean() < 0.7


def test_slow_cells_do_not_make_slow_labels_significant():
    """A cell that drifts and a label in long runs correlate by chance far more than rows that are independent do."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(4), 500)
    drift = np.cumsum(rng.standard_normal((2000, 10)), axis=0).astype(np.float32)
    runs = np.repeat(rng.random((20, 20)) > 0.5, 100, axis=0)
    p = best_cell_p_values(drift, runs, group, seed=0, permutations=99)
    assert np.median(p) > 0.1


def test_rotation_keeps_groups_and_their_order():
    group = np.array([0, 0, 0, 0, 1, 2, 2, 2])
    order = rotation(group, np.random.default_rng(3))
    np.testing.assert_array_equal(group[order], group)
    np.testing.assert_array_equal(np.sort(order), np.arange(8))
    np.testing.assert_array_equal(np.diff(np.append(order[:4], order[0])) % 4, 1)


def test_the_false_discovery_rate_is_benjamini_and_hochbergs():
    np.testing.assert_allclose(false_discovery(np.array([0.01, 0.04, 0.03, 0.5])), [0.04, 0.16 / 3, 0.16 / 3, 0.5])


def test_chance_is_not_tested_unless_wanted(tmp_path: Path):
    text = PlantedText([Document("d", b"\n abc ", None, (Word(2, 5, "CONCEPT"),))] * 6, [0, 0, 0, 1, 1, 2], TAGSET)
    cells = np.random.default_rng(0).standard_normal((36, 3))
    store = write_store(tmp_path / "store", text, every_byte(text), cells, rows="all")
    row = fit_part_of_speech(store, controls=(), progress=False).tags[0]
    assert (row.p, row.q, is_chance(row)) == (None, None, False)
