"""The part-of-speech fit on a store with one planted cell per tag, and on noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fastlstm.corpus.shards import Document, Word
from fastlstm.errors import InputError
from fastlstm.states import States
from fastlstm_probes import control_fits, part_of_speech
from fastlstm_probes.baselines import (
    BYTE_NGRAM,
    CURRENT_BYTE,
    MAJORITY,
    UNTRAINED_ALL,
    UNTRAINED_ONE,
    random_cells,
)
from fastlstm_probes.controls import CONTROLS
from fastlstm_probes.part_of_speech import fit_part_of_speech, row_classes
from fastlstm_probes.results import PartOfSpeechResult
from planted_store import PlantedText, every_byte, last_bytes, write_store

TAGSET = ("DT", "NN", "NNS", "VBD", "FW")
WORDS = {"DT": "the", "NN": "camera", "NNS": "lenses", "VBD": "broke", "FW": "et"}
NOISE = 4  # cells that know nothing
PARTS = (60, 20, 30)


def _text() -> PlantedText:
    """Tagged words, single spaces, and a '*' that no word covers."""
    rng = np.random.default_rng(0)
    documents = []
    for i in range(sum(PARTS)):
        text, words = b"\n ", []
        for tag in rng.choice(TAGSET, 6, p=(0.3, 0.3, 0.1, 0.2, 0.1)):
            word = WORDS[tag].encode()
            words.append(Word(len(text), len(text) + len(word), str(tag)))
            text += word + b" "
        documents.append(Document(f"d{i}", text + b"* ", words=tuple(words)))
    return PlantedText(documents, np.repeat([0, 1, 2], PARTS).tolist(), TAGSET)


def _classes(text: PlantedText) -> list[str]:
    """The truth, written down byte by byte."""
    group = {"NNS": "NN", "VBD": "VB", "FW": "OTHER"}
    classes = []
    for document in text.documents:
        of_byte = ["SPACE" if byte in b"\n " else "OTHER" for byte in document.text]
        for word in document.words or ():
            of_byte[word.start : word.end] = [group.get(word.tag, word.tag)] * (word.end - word.start)
        classes += of_byte
    return classes


CLASSES = ("DT", "NN", "OTHER", "SPACE", "VB")
# Cell 10 + i knows CLASSES[i]; cells 20.. know nothing.
UNITS = (*range(20, 20 + NOISE), *range(10, 10 + len(CLASSES)))


def _cells(text: PlantedText, noise: float = 0.1, seed: int = 1) -> np.ndarray:
    truth = np.array(_classes(text))
    planted = np.stack([np.where(truth == name, -1.0, 0.0) for name in CLASSES], axis=1)
    rng = np.random.default_rng(seed)
    return np.hstack(
        [
            rng.standard_normal((len(truth), NOISE)),
            planted + noise * rng.standard_normal((len(truth), len(CLASSES))),
        ]
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> States:
    text = _text()
    path = tmp_path_factory.mktemp("pos") / "store"
    return write_store(path, text, every_byte(text), _cells(text), rows="all", units=UNITS)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> States:
    text = _text()
    path = tmp_path_factory.mktemp("pos") / "untrained"
    noise = np.random.default_rng(5).standard_normal((len(text.text), len(UNITS)))
    return write_store(path, text, every_byte(text), noise, rows="all", units=UNITS, untrained=True)


@pytest.fixture(scope="module")
def result(store: States, untrained: States) -> PartOfSpeechResult:
    return fit_part_of_speech(store, untrained=untrained, progress=False)


def test_every_planted_neuron_is_found(result):
    assert sorted(row.tag for row in result.tags) == list(CLASSES)
    for row in result.tags:
        assert row.top[0] == 10 + CLASSES.index(row.tag)
        (one,) = (score for score in row.by_k if score.k == "1")
        # Classes are 10 standard deviations apart.
        assert (one.precision, one.recall) == (1.0, 1.0)
        assert one.average_precision == pytest.approx(1.0)  # a sum of many steps of recall
        assert row.converged
        assert row.features_used == np.count_nonzero(row.weights)
        assert len(row.weights) == len(result.units) == len(UNITS)


def test_the_best_cells_are_the_planted_ones_and_not_those_of_noise(result):
    for row in result.tags:
        assert (row.best.unit, row.best.sign) == (10 + CLASSES.index(row.tag), -1)
        assert -1 < row.best.threshold < 0
        assert (row.best.precision, row.best.recall) == (1.0, 1.0)
        assert row.best.average_precision == pytest.approx(1.0)
        share = row.positive / (row.positive + row.negative)
        assert row.untrained_best is not None
        assert row.untrained_best.average_precision is not None
        # As for noise below, 4 standard deviations of a mean over the test rows of the tag.
        assert abs(row.untrained_best.average_precision - share) < 4 / np.sqrt(row.positive * PARTS[2] / sum(PARTS))
    assert result.ranking_rows == result.rows["train"]


def test_the_best_cell_is_not_that_of_the_largest_weight(tmp_path):
    text = _text()
    cells = _cells(text)
    nouns = 4 + CLASSES.index("NN")
    # In units so small that a weight on it costs more than what it tells; a blurred copy takes its place.
    noise = np.random.default_rng(3).standard_normal(len(cells))
    cells[:, 0] = cells[:, nouns] + noise
    cells[:, nouns] *= 1e-4
    store = write_store(tmp_path / "store", text, every_byte(text), cells, rows="all", units=UNITS)
    result = fit_part_of_speech(store, progress=False)
    (row,) = (row for row in result.tags if row.tag == "NN")
    assert row.top[0] != UNITS[nouns]
    assert row.best.unit == UNITS[nouns]
    assert row.best.average_precision == pytest.approx(1.0)
    assert row.untrained_best is None


def test_overall_scores(result):
    for rule in ("norm", "probability"):
        assert [overall.k for overall in result.overall if overall.rule == rule] == ["all", "1", "2", "3"]
    for overall in result.overall:
        assert overall.low <= overall.accuracy <= overall.high
        assert overall.accuracy == overall.recall
        assert overall.accuracy > 0.98
        assert overall.precision > 0.98


def test_counts_are_the_texts(result, store):
    truth = _classes(_text())
    for row in result.tags:
        assert row.positive == truth.count(row.tag)
        assert row.positive + row.negative == len(truth) == store.rows
        train = store.document_split[store.document_of_row] == 0
        assert sum(row.histogram.positive) == np.sum(np.array(truth)[train] == row.tag)
    assert result.rows["train"] == result.rows["train_available"] == train.sum()
    assert [row.positive for row in result.tags] == sorted((row.positive for row in result.tags), reverse=True)


def test_baselines(result, store):
    scores = {score.name: score for score in result.baselines}
    random = [random_cells(k) for k in (1, 2, 3)]
    assert list(scores) == [MAJORITY, CURRENT_BYTE, BYTE_NGRAM, *random, UNTRAINED_ALL, UNTRAINED_ONE]
    truth = np.array(_classes(_text()))
    part = store.document_split[store.document_of_row]
    most = max(CLASSES, key=lambda name: (truth[part == 0] == name).sum())
    assert scores[MAJORITY].test == np.mean(truth[part == 2] == most)
    # By hand: the most frequent class of every byte in train.
    table = {
        byte: max(CLASSES, key=lambda name, of=(part == 0) & (store.byte == byte): (truth[of] == name).sum())
        for byte in np.unique(store.byte)
    }
    expected = np.mean([table[byte] == name for byte, name in zip(store.byte, truth, strict=True)], where=part == 2)
    assert scores[CURRENT_BYTE].test == pytest.approx(expected, abs=0)
    assert scores[CURRENT_BYTE].test > scores[MAJORITY].test
    # Many words have an e, but its neighbours tell them apart.
    assert scores[BYTE_NGRAM].test > scores[CURRENT_BYTE].test
    ones = {overall.k: overall.accuracy for overall in result.overall if overall.rule == "norm"}
    assert all(scores[name].test < ones[str(k)] - 0.2 for k, name in zip((1, 2, 3), random, strict=True))
    # Noise cannot beat the majority.
    assert scores[UNTRAINED_ALL].test <= scores[MAJORITY].test_high
    assert scores[UNTRAINED_ONE].test <= scores[MAJORITY].test_high


def test_controls_judge_planted_cells(result, store):
    assert result.provenance.controls == list(CONTROLS)
    assert [one.k for one in result.selectivity] == ["all", "1", "2", "3"]
    for one in result.selectivity:
        assert one.accuracy > 0.98
        assert one.word_types == len(WORDS)
    assert result.description_length.rows == result.rows["train"]
    assert result.description_length.compression > 1.5
    assert result.description_length.bits_per_row < result.description_length.frequency_bits_per_row
    for one in result.positions:
        assert one.accuracy > 0.98
        assert one.rows == 6 * PARTS[2]
    for row in result.tags:
        assert (row.stability.halves["1"], row.stability.same_top) == (1.0, 1.0)
        assert row.p is not None


def test_controls_are_run_only_if_chosen(store):
    bare = fit_part_of_speech(store, controls=(), progress=False)
    assert bare.provenance.controls == []
    assert [score.name for score in bare.baselines] == [MAJORITY, CURRENT_BYTE]
    assert (bare.selectivity, bare.description_length, bare.positions) == ([], None, [])
    assert {(row.p, row.q, row.stability) for row in bare.tags} == {(None, None, None)}
    some = fit_part_of_speech(store, controls=("mdl", "ngram"), progress=False)
    assert some.provenance.controls == ["ngram", "mdl"]
    assert [score.name for score in some.baselines] == [MAJORITY, CURRENT_BYTE, BYTE_NGRAM]
    assert (some.selectivity, some.positions) == ([], [])
    assert some.description_length is not None
    with pytest.raises(InputError, match=r"controls: expected names of ngram, .*, got 'colour'"):
        fit_part_of_speech(store, controls=("colour",), progress=False)


def test_controls_are_fitted_on_few_rows_of_whole_documents(store, monkeypatch):
    monkeypatch.setattr(control_fits, "CONTROL_ROWS", 800)
    result = fit_part_of_speech(store, controls=("selectivity", "mdl", "stability"), progress=False)
    train = store.document_split == 0
    lengths = set(np.diff(store.row_offset)[train].tolist())
    assert 800 - max(lengths) < result.description_length.rows <= 800
    assert {one.train_rows for one in result.selectivity} == {result.description_length.rows}
    assert result.rows["train"] > 800
    for one in result.selectivity:
        assert one.accuracy > 0.98
    for row in result.tags:
        assert row.stability.same_top == 1.0


def test_noise_ranks_at_chance(untrained, store):
    result = fit_part_of_speech(write_like(untrained, store), progress=False)
    for row in result.tags:
        share = row.positive / (row.positive + row.negative)
        for score in row.by_k:
            assert score.average_precision is not None
            # The standard deviation of a mean over `positive` draws, 4 of them.
            assert abs(score.average_precision - share) < 4 / np.sqrt(row.positive)


def write_like(untrained: States, store: States) -> States:
    """The noise as if it were a trained model's: the same rows."""
    text = _text()
    path = untrained.path.parent / "noise"
    return write_store(path, text, every_byte(text), untrained.read(0, store.rows), rows="all", units=UNITS)


def test_classes_of_bytes(store):
    classes, code = row_classes(store, group=True)
    assert [classes[i] for i in code] == _classes(_text())
    ungrouped, _ = row_classes(store, group=False)
    assert {"NNS", "VBD", "NN", "DT", "FW"} < set(ungrouped)


def test_ungrouped_tags_are_apart(store):
    result = fit_part_of_speech(store, group=False, progress=False)
    assert {row.tag for row in result.tags} == {*TAGSET, "SPACE", "OTHER"}
    by_tag = {row.tag: row for row in result.tags}
    assert by_tag["VBD"].top[0] == 10 + CLASSES.index("VB")


@pytest.mark.parametrize("rows", ["word", "every:3"])
def test_other_rows_work(rows, tmp_path):
    text = _text()
    position = every_byte(text)
    if rows == "word":
        offset = text.offset
        position = np.array(
            [
                start + word.end - 1
                for start, document in zip(offset[:-1].tolist(), text.documents, strict=True)
                for word in document.words or ()
            ]
        )
    else:
        position = position[2::3]
    store = write_store(tmp_path / "store", text, position, _cells(text)[position], rows=rows, units=UNITS)
    result = fit_part_of_speech(store, progress=False)
    truth = np.array(_classes(text))[position]
    assert {row.tag: row.positive for row in result.tags} == {
        name: int((truth == name).sum()) for name in CLASSES if name in truth
    }
    assert result.overall[0].accuracy > 0.98


def test_the_same_fit_twice_is_the_same_result(store, untrained, result):
    again = fit_part_of_speech(store, untrained=untrained, progress=False)
    assert again.tags == result.tags
    assert again.overall == result.overall


def test_liblinear_finds_the_same_cells(store, result):
    reference = fit_part_of_speech(store, solver="liblinear", progress=False)
    assert reference.provenance.solver == "liblinear"
    assert [(row.tag, row.top[:1]) for row in reference.tags] == [(row.tag, row.top[:1]) for row in result.tags]


def test_a_killed_run_goes_on_from_its_fits(store, tmp_path, monkeypatch):
    whole = fit_part_of_speech(store, C=None, progress=False)
    made = []
    real = part_of_speech.fit_tags

    def killed(*arguments, **settings):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(settings["C"])
        return real(*arguments, **settings)

    monkeypatch.setattr(part_of_speech, "fit_tags", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_part_of_speech(store, C=None, partial_fits=tmp_path, progress=False)
    monkeypatch.setattr(part_of_speech, "fit_tags", lambda *a, **s: made.append(s["C"]) or real(*a, **s))
    again = fit_part_of_speech(store, C=None, partial_fits=tmp_path, progress=False)
    assert made == list(part_of_speech.SWEEP_STRENGTHS)
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(whole, seconds=0)
    # The fits of controls are kept as well.
    monkeypatch.setattr(control_fits, "fit_tags", lambda *a, **s: pytest.fail("fitted again"))
    kept = fit_part_of_speech(store, C=None, partial_fits=tmp_path, progress=False)
    assert dataclasses.replace(kept, seconds=0) == dataclasses.replace(whole, seconds=0)


def test_sweep_chooses_per_tag_on_validation(store):
    result = fit_part_of_speech(store, C=None, progress=False)
    # Every tag is separable, so that all strengths tie on the validation rows: the smallest.
    assert {row.C for row in result.tags} == {2.0**-4}


def test_byte_split_and_row_limit_are_recorded(store):
    result = fit_part_of_speech(store, split="byte", max_rows=1000, progress=False)
    assert result.provenance.split == "byte"
    assert result.rows["train"] <= 1000 < result.rows["train_available"]
    assert result.rows["test"] == pytest.approx(0.1 * store.rows, abs=1)


def test_fits_out_of_iterations_are_said(store):
    with pytest.warns(UserWarning, match="L1 fits did not converge in 1 iterations"):
        result = fit_part_of_speech(store, max_iter=1, progress=False)
    assert not all(row.converged for row in result.tags)


def test_a_tag_too_rare_for_a_weight_is_never_named(tmp_path):
    text = _text()
    cells = 1e-4 * _cells(text)
    result = fit_part_of_speech(
        write_store(tmp_path / "store", text, every_byte(text), cells, rows="all", units=UNITS),
        progress=False,
    )
    majority = result.baselines[0]
    for row in result.tags:
        assert (row.top, row.features_used) == ([], 0)
        # The probe has no cell, the tag has one all the same.
        assert row.best.unit == 10 + CLASSES.index(row.tag)
    # No classifier has a weight: the most frequent tag is named everywhere.
    assert [overall.accuracy for overall in result.overall if overall.rule == "norm"] == [majority.test] * 4


def test_mistakes_are_named(store, tmp_path):
    text = _text()
    last = last_bytes(text)
    whole = write_store(tmp_path / "whole", text, last, np.zeros((len(last), 2)), rows="document")
    with pytest.raises(InputError, match=r"whole: its rows are the last bytes of documents"):
        fit_part_of_speech(whole, progress=False)
    bare = PlantedText(text.documents, text.split)
    untagged = write_store(tmp_path / "bare", bare, every_byte(bare), _cells(text), rows="all")
    with pytest.raises(InputError, match=r"bare: its text \(kind 'grammar'\) has no tagged words: label"):
        fit_part_of_speech(untagged, progress=False)
    no_test = PlantedText(text.documents, [0] * 60 + [1] * 50, TAGSET)
    without = write_store(tmp_path / "test", no_test, every_byte(text), _cells(text), rows="all")
    with pytest.raises(InputError, match="no row in split 'test'"):
        fit_part_of_speech(without, progress=False)
    with pytest.raises(InputError, match="expected a store of the untrained model"):
        fit_part_of_speech(store, untrained=store, progress=False)
