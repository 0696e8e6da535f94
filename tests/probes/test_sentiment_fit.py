"""The sentiment fit on stores whose truth is planted, and its TF-IDF row on the real SST."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from fastlstm.corpus.shards import Document
from fastlstm.errors import InputError
from fastlstm.states import States
from fastlstm_probes import sentiment
from fastlstm_probes.results import Score, SentimentResult
from fastlstm_probes.sentiment import Threshold, best_threshold, fit_sentiment
from planted_store import PlantedText, last_bytes, write_store

UNITS = tuple(range(5, 5 + 3 * 12, 3))
PLANTED = 4  # the column that knows
PARTS = (240, 120, 240)


def _text(labels: np.ndarray, parts: tuple[int, int, int] = PARTS) -> PlantedText:
    """Documents whose words say nothing about their label."""
    rng = np.random.default_rng(7)
    words = ["camera", "works", "every", "day", "lens", "battery", "screen", "room"]
    documents = [
        Document(f"d{i}", f"\n {' '.join(rng.choice(words, 6))} ".encode(), None if np.isnan(label) else label)
        for i, label in enumerate(labels.tolist())
    ]
    return PlantedText(documents, np.repeat([0, 1, 2], parts).tolist())


def _labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, sum(PARTS)).astype(np.float64)


def _cells(labels: np.ndarray, *, slope: float, offset: float = 0.0, seed: int = 1) -> np.ndarray:
    """Noise in every cell; in the planted one also slope * (-1 or 1) + offset."""
    cells = np.random.default_rng(seed).standard_normal((len(labels), len(UNITS)))
    cells[:, PLANTED] = 0.3 * cells[:, PLANTED] + slope * (2 * np.nan_to_num(labels) - 1) + offset
    return cells


def _store(path: Path, labels: np.ndarray, cells: np.ndarray, **options: object) -> States:
    text = _text(labels)
    return write_store(path, text, last_bytes(text), cells, rows="document", units=UNITS, **options)


def _score(result: SentimentResult, name: str) -> Score:
    (score,) = (score for score in result.scores if score.name == name)
    return score


@pytest.mark.parametrize("sign", [+1, -1])
def test_planted_neuron_is_found_with_its_id_and_sign(sign, tmp_path):
    labels = _labels()
    store = _store(tmp_path / "store", labels, _cells(labels, slope=float(sign)))
    untrained = _store(tmp_path / "untrained", labels, _cells(labels, slope=0.0, seed=2), untrained=True)
    result = fit_sentiment(store, untrained=untrained, progress=False)

    assert (result.neuron, result.sign) == (UNITS[PLANTED], sign)
    assert np.argmax(np.abs(result.weights)) == PLANTED
    assert len(result.weights) == len(result.units) == len(UNITS)
    assert result.converged
    # 1 / 0.3 standard deviations from the threshold: one noise value in 1,200 is beyond.
    for name in (
        sentiment.ALL_CELLS,
        sentiment.ONE_NEURON_RADFORD,
        sentiment.ONE_NEURON_NVIDIA,
        sentiment.ONE_NEURON_CARVALHO,
        sentiment.BEST_CELL,
    ):
        score = _score(result, name)
        assert score.test > 0.98
        assert score.test_low < score.test < score.test_high or score.test == score.test_high == 1
    # What knows nothing is at chance: 1/2 is within 4 standard deviations of a test accuracy.
    for name in (sentiment.TFIDF, sentiment.UNTRAINED_ALL_CELLS, sentiment.UNTRAINED_BEST_CELL):
        assert abs(_score(result, name).test - 0.5) < 4 * 0.5 / np.sqrt(PARTS[2])
    majority = _score(result, sentiment.MAJORITY)
    test = labels[-PARTS[2] :]
    assert majority.test in (test.mean(), 1 - test.mean())
    assert result.provenance.untrained_store == untrained.identity
    assert result.provenance.synthetic


def test_threshold_is_fitted_on_train_and_zero_is_zero(tmp_path):
    labels = _labels()
    result = fit_sentiment(_store(tmp_path / "store", labels, _cells(labels, slope=1.0, offset=2.0)), progress=False)
    assert 1 < result.threshold < 3
    assert _score(result, sentiment.ONE_NEURON_RADFORD).test > 0.98
    # Every value is above 0, so that "threshold 0" calls all documents one class.
    test = labels[-PARTS[2] :]
    assert _score(result, sentiment.ONE_NEURON_CARVALHO).test in (test.mean(), 1 - test.mean())


def test_histogram_and_misclassified_documents(tmp_path):
    labels = _labels()
    cells = _cells(labels, slope=0.3)
    store = _store(tmp_path / "store", labels, cells)
    result = fit_sentiment(store, progress=False)
    train = labels[: PARTS[0]]
    assert sum(result.histogram.positive) == train.sum()
    assert sum(result.histogram.negative) == (1 - train).sum()
    assert result.misclassified
    distances = []
    for example in result.misclassified:
        assert store.document_split[example.document] == 2
        assert example.label == labels[example.document] != example.predicted
        assert example.value == store.column(result.neuron)[example.document]
        assert example.predicted == int(result.sign * (example.value - result.threshold) > 0)
        assert example.text == store.document_text(example.document).decode().strip()
        distances.append(abs(example.value - result.threshold))
    assert distances == sorted(distances, reverse=True)


def test_noise_is_chance(tmp_path):
    labels = _labels()
    result = fit_sentiment(_store(tmp_path / "store", labels, _cells(labels, slope=0.0)), progress=False)
    for name in (sentiment.ALL_CELLS, sentiment.ONE_NEURON_RADFORD, sentiment.ONE_NEURON_NVIDIA):
        score = _score(result, name)
        assert score.test_low < 0.5 < score.test_high


def test_neuron_of_cells_too_small_for_any_weight_is_the_first_of_the_path(tmp_path):
    labels = _labels()
    store = _store(tmp_path / "store", labels, 1e-4 * _cells(labels, slope=-1.0))
    result = fit_sentiment(store, progress=False)
    assert not np.any(result.weights)
    assert (result.neuron, result.sign) == (UNITS[PLANTED], -1)
    assert "all weights zero" in _score(result, sentiment.ONE_NEURON_RADFORD).detail


def test_documents_without_label_are_left_out_and_counted(tmp_path):
    labels = _labels()
    labels[[3, 50, 250, 400, 401]] = np.nan
    result = fit_sentiment(_store(tmp_path / "store", labels, _cells(labels, slope=1.0)), progress=False)
    assert result.counts == {"train": 238, "valid": 119, "test": 238, "unlabelled": 5}


def test_sweep_is_the_protocols(tmp_path):
    labels = _labels()
    result = fit_sentiment(_store(tmp_path / "store", labels, _cells(labels, slope=0.3)), progress=False)
    assert [point.C for point in result.sweep] == [2.0**power for power in range(-8, 1)]
    best = max(point.valid for point in result.sweep)
    assert min(point.C for point in result.sweep if point.valid == best) == result.C


def test_fits_out_of_iterations_are_said(tmp_path):
    labels = _labels()
    store = _store(tmp_path / "store", labels, _cells(labels, slope=0.3))
    with pytest.warns(UserWarning, match="L1 fits did not converge in 1 iterations: all cells"):
        result = fit_sentiment(store, max_iter=1, solver="liblinear", progress=False)
    assert not result.converged
    assert "not converged" in _score(result, sentiment.ALL_CELLS).detail


def test_half_precision_is_warned_of_and_recorded(tmp_path):
    labels = _labels()
    store = _store(tmp_path / "store", labels, _cells(labels, slope=1.0), dtype="float16")
    with pytest.warns(UserWarning, match=r"store: its states are float16, the sentiment protocol is float32"):
        result = fit_sentiment(store, progress=False)
    assert (result.provenance.dtype, result.provenance.batch_size, result.provenance.tags) == ("float16", 1, "none")


def test_mistakes_are_named(tmp_path):
    labels = _labels()
    cells = _cells(labels, slope=1.0)
    text = _text(labels)
    other_rows = write_store(tmp_path / "word", text, last_bytes(text), cells, rows="word")
    with pytest.raises(InputError, match=r"word: .* this store has rows 'word': dump the text again"):
        fit_sentiment(other_rows, progress=False)
    with pytest.raises(InputError, match=r"no document of its text .* has a label: label text with"):
        fit_sentiment(_store(tmp_path / "none", np.full(len(labels), np.nan), cells), progress=False)
    with pytest.raises(InputError, match="expected sentiment labels 0 and 1, found"):
        fit_sentiment(_store(tmp_path / "stars", 1 + 4 * labels, cells), progress=False)
    one_class = labels.copy()
    one_class[: PARTS[0]] = 1
    with pytest.raises(InputError, match="all 240 train documents have the label 1: expected both"):
        fit_sentiment(_store(tmp_path / "one", one_class, cells), progress=False)
    no_valid = labels.copy()
    no_valid[PARTS[0] : PARTS[0] + PARTS[1]] = np.nan
    with pytest.raises(InputError, match="no labelled document in split 'valid'"):
        fit_sentiment(_store(tmp_path / "valid", no_valid, cells), progress=False)


def test_text_without_words_is_named(tmp_path):
    labels = _labels()
    documents = [Document(f"d{i}", b"\n * ! ", label) for i, label in enumerate(labels.tolist())]
    text = PlantedText(documents, np.repeat([0, 1, 2], PARTS).tolist())
    store = write_store(tmp_path / "store", text, last_bytes(text), _cells(labels, slope=1.0), rows="document")
    with pytest.raises(InputError, match="store: its train documents have no words for the TF-IDF row"):
        fit_sentiment(store, progress=False)


def test_best_threshold_beats_every_other():
    rng = np.random.default_rng(3)
    for n in (1, 2, 3, 17):
        for _ in range(20):
            values = rng.integers(-3, 4, n).astype(np.float32)  # many ties
            labels = rng.integers(0, 2, n).astype(bool)
            found = best_threshold(values, labels)
            tried = [
                (Threshold(cut, sign).predict(values) == labels).mean()
                for cut in np.arange(-4.25, 5.0, 0.5)
                for sign in (+1, -1)
            ]
            assert (found.predict(values) == labels).mean() == max(tried)


def test_best_threshold_separates_neighbouring_float32_values():
    low = np.float32(1.0)
    values = np.array([low, np.nextafter(low, np.float32(2))], np.float32)
    assert best_threshold(values, np.array([False, True])).predict(values).tolist() == [False, True]
    assert best_threshold(values, np.array([True, False])).predict(values).tolist() == [True, False]


def test_tfidf_on_the_real_sst(data_folder: Path, tmp_path: Path):
    """About 79.9 % dev, 81.5 % test; the cells are noise here, two of them."""
    if not (data_folder / "sst").is_dir():
        pytest.skip(f"no SST at {data_folder / 'sst'}: set FASTLSTM_DATA")
    documents: list[Document] = []
    sizes: list[int] = []
    for name in ("train", "dev", "test"):
        with (data_folder / "sst" / f"{name}_binary_sent.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        sizes.append(len(rows))
        documents += [
            Document(f"{name}-{i:05d}", f"\n {row['sentence'].strip()} ".encode(), float(row["label"]))
            for i, row in enumerate(rows)
        ]
    text = PlantedText(documents, np.repeat([0, 1, 2], sizes).tolist(), kind="sst")
    cells = np.random.default_rng(0).standard_normal((len(documents), 2))
    store = write_store(tmp_path / "store", text, last_bytes(text), cells, rows="document")
    result = fit_sentiment(store, progress=False)
    assert result.counts == {"train": 6920, "valid": 872, "test": 1821, "unlabelled": 0}
    score = _score(result, sentiment.TFIDF)
    assert "C=8," in score.detail
    # The published figures have one decimal; three documents of dev, five of test for other library versions.
    assert score.valid == pytest.approx(0.799, abs=0.003)
    assert score.test == pytest.approx(0.815, abs=0.003)
