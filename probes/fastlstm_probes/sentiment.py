"""The sentiment fit: is there a sentiment neuron, and how good is it alone?

The protocol of Radford et al. 2017 on the Stanford Sentiment Treebank, as in the code they released: the
feature is the raw cell state c after a document's last byte (no tanh, no scaling); L1 logistic regression for
C = 2^-8..2^0; C by validation accuracy, ties to the smallest; fitted on train only, validation never added.

"One neuron" has three published meanings, and all three are reported. In each the neuron is the cell of the
largest |w| of the fit on all cells:

- Radford et al. 2017: a threshold on its value. Here the threshold and the side that is positive are those of
  the best train accuracy.
- NVIDIA (sentiment-discovery): the same nine-value L1 sweep on that one column.
- Carvalho 2018: threshold 0 on its raw value; the side that is positive is that of the better train accuracy.

|w| depends on the scale of the cells, which are not standardised, and L1 splits a concept that several cells hold.
So a fourth row ranks apart from the probe (Antverg & Belinkov 2022): the cell whose best threshold on train is the
most accurate there. The untrained model's cell is chosen in the same way. The neuron that the result names and
shows is that of the row, this one or Radford's, with the better validation accuracy (ties: the largest |w|).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from fastlstm.errors import InputError
from fastlstm.states import States
from fastlstm_probes.l1 import MAX_ITER, L1Fit, L1Sweep, Solver, best_strength, sweep_l1, warn_unconverged
from fastlstm_probes.metrics import accuracy, histogram_by_class, wilson
from fastlstm_probes.results import Example, Score, SentimentResult, SweepPoint, provenance_of
from fastlstm_probes.splits import NAMES, check_untrained, read_rows, split_rows

ALL_CELLS = "all cells"
ONE_NEURON_RADFORD = "one neuron: best train threshold (Radford et al. 2017)"
ONE_NEURON_NVIDIA = "one neuron: L1 sweep on it (NVIDIA)"
ONE_NEURON_CARVALHO = "one neuron: threshold 0 (Carvalho 2018)"
BEST_CELL = "one neuron: the best of all cells on train"
TFIDF = "TF-IDF, word 1-2-grams"
MAJORITY = "majority class"
UNTRAINED_ALL_CELLS = "untrained LSTM: all cells"
UNTRAINED_BEST_CELL = "untrained LSTM: the best of all cells on train"

L1_STRENGTHS = tuple(2.0**power for power in range(-8, 1))
# With scikit-learn's default words, liblinear and this grid, SST gives C = 8, 79.9 % validation, 81.5 % test.
TFIDF_STRENGTHS = tuple(2.0**power for power in range(-2, 6))

_EXAMPLES = 20

Parts = dict[str, NDArray[np.bool_]]  # by NAMES: labels or predictions


@dataclass(frozen=True)
class Threshold:
    """Positive where `sign * (value - cut) > 0`."""

    cut: float
    sign: int

    def __str__(self) -> str:
        return f"{'>' if self.sign > 0 else '<'} {self.cut:.4g}"

    def predict(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        # A cut between two neighbouring float32 values exists in float64 only.
        exact = values.astype(np.float64)
        return exact > self.cut if self.sign > 0 else exact < self.cut


@dataclass(frozen=True)
class _Documents:
    """The labelled documents of a store: their rows and labels by part, and how many had no label."""

    rows: dict[str, NDArray[np.int64]]
    labels: Parts
    unlabelled: int


@dataclass(frozen=True)
class _Neuron:
    column: int
    detail: str
    values: dict[str, NDArray[np.float32]]
    threshold: Threshold


def fit_sentiment(
    store: States,
    *,
    untrained: States | None = None,
    seed: int = 42,
    max_iter: int = MAX_ITER,
    solver: Solver = "joint",
    progress: bool = True,
) -> SentimentResult:
    """Fit sentiment (document label 0 or 1) on a store of one row per document.

    `untrained` is a store of the same rows by the same architecture with its initial weights: the row that
    says what training brought. Documents without a label are left out and counted. A fit that runs out of
    `max_iter` is marked in the result and warned of once;
    `solver` "liblinear" repeats the published runs. The protocol is float32: a store of float16 is warned of.

    Raises:
        InputError: the store's rows are not one per document, no or other labels, an empty part, a train part
            of one class, or an untrained store of something else. The message says what to do.
    """
    started = time.perf_counter()
    documents = _labelled_documents(store)
    labels = documents.labels
    if untrained is not None:
        check_untrained(store, untrained)
    if store.attributes.dtype != "float32":
        warnings.warn(
            f"{store.path}: its states are {store.attributes.dtype}, the sentiment protocol is float32: dump the text "
            "again with --dtype float32",
            stacklevel=2,
        )

    cells = {part: read_rows(store, documents.rows[part]) for part in NAMES}
    sweep = _sweep(cells, labels, seed, max_iter, solver, progress, ALL_CELLS)
    largest = _largest_weight(cells, labels, sweep.best)
    best = _best_cell(cells, labels)
    unit = int(store.units[largest.column])
    alone = _sweep(
        {part: cells[part][:, [largest.column]] for part in NAMES},
        labels,
        seed,
        max_iter,
        solver,
        progress,
        "one neuron",
    )
    at_zero = _side_of_zero(largest.values["train"], labels["train"])

    scores = [
        _score(ALL_CELLS, labels, _predict(sweep.best, cells), _describe(sweep.best)),
        _score(
            ONE_NEURON_RADFORD,
            labels,
            _apply(largest.threshold, largest.values),
            f"cell {unit} {largest.threshold}{largest.detail}",
        ),
        _score(
            ONE_NEURON_NVIDIA,
            labels,
            {part: alone.best.margin(largest.values[part][:, None]) > 0 for part in NAMES},
            f"cell {unit}, {_describe(alone.best)}",
        ),
        _score(
            ONE_NEURON_CARVALHO,
            labels,
            _apply(at_zero, largest.values),
            f"cell {unit} {at_zero}",
        ),
        _best_cell_score(BEST_CELL, store, labels, best),
        _tfidf_score(store, documents, progress),
        _majority_score(labels),
    ]
    sweeps = [(ALL_CELLS, sweep), ("one neuron", alone)]
    if untrained is not None:
        cells_0 = {part: read_rows(untrained, documents.rows[part]) for part in NAMES}
        sweep_0 = _sweep(cells_0, labels, seed, max_iter, solver, progress, "untrained")
        sweeps.append(("untrained", sweep_0))
        scores += [
            _score(UNTRAINED_ALL_CELLS, labels, _predict(sweep_0.best, cells_0), _describe(sweep_0.best)),
            _best_cell_score(UNTRAINED_BEST_CELL, untrained, labels, _best_cell(cells_0, labels)),
        ]
    by_name = {score.name: score for score in scores}
    shown, row = (
        (best, BEST_CELL)
        if (by_name[BEST_CELL].valid or 0) > (by_name[ONE_NEURON_RADFORD].valid or 0)
        else (largest, ONE_NEURON_RADFORD)
    )
    warn_unconverged(((name, fit) for name, one in sweeps for fit in (*one.fits, one.best)), max_iter)
    return SentimentResult(
        provenance=provenance_of(
            store, untrained=untrained, seed=seed, split="document", max_iter=max_iter, solver=solver
        ),
        counts={part: len(labels[part]) for part in NAMES} | {"unlabelled": documents.unlabelled},
        C=sweep.best.C,
        sweep=[
            SweepPoint(fit.C, valid, fit.nonzero, fit.converged)
            for fit, valid in zip(sweep.fits, sweep.valid_accuracy, strict=True)
        ],
        weights=sweep.best.weights.tolist(),
        intercept=sweep.best.intercept,
        units=store.units.tolist(),
        neuron=int(store.units[shown.column]),
        neuron_score=row,
        sign=shown.threshold.sign,
        threshold=shown.threshold.cut,
        scores=scores,
        histogram=histogram_by_class(shown.values["train"], labels["train"]),
        misclassified=_misclassified(store, documents, shown),
        converged=sweep.best.converged,
        gap=sweep.best.gap,
        seconds=time.perf_counter() - started,
    )


def best_threshold(values: NDArray[np.float32], labels: NDArray[np.bool_]) -> Threshold:
    """The threshold on `values` (n,) and the side that is positive with the best accuracy on `labels` (n,).

    Cuts are half-way between neighbouring values, or beyond them all. Ties: positive above, the lowest cut.
    """
    order = np.argsort(values, kind="stable")
    value, label = values[order].astype(np.float64), labels[order]
    cuts = np.concatenate(
        [[np.nextafter(value[0], -np.inf)], (value[:-1] + value[1:]) / 2, [np.nextafter(value[-1], np.inf)]]
    )
    # correct[i]: right answers when the i lowest are called negative and the rest positive.
    correct = np.concatenate([[0], np.cumsum(~label)]) + label.sum() - np.concatenate([[0], np.cumsum(label)])
    possible = np.concatenate([[True], value[:-1] < value[1:], [True]])
    cuts, correct = cuts[possible], correct[possible]
    above, below = int(correct.argmax()), int(correct.argmin())
    if correct[above] >= label.size - correct[below]:
        return Threshold(float(cuts[above]), +1)
    return Threshold(float(cuts[below]), -1)


def _labelled_documents(store: States) -> _Documents:
    attributes = store.attributes
    if attributes.rows != "document":
        raise InputError(
            f"{store.path}: the sentiment fit reads one row per document (the cell after its last byte), this "
            f"store has rows {attributes.rows!r}: dump the text again with rows 'document'"
        )
    labels = store.document_label[store.document_of_row]
    labelled = ~np.isnan(labels)
    if not labelled.any():
        raise InputError(
            f"{store.path}: no document of its text (kind {attributes.text.kind!r}) has a label: label text "
            "with `fastlstm-probes label sst` or `label reviews`, and dump that"
        )
    found = np.unique(labels[labelled])
    if not np.isin(found, (0, 1)).all():
        raise InputError(
            f"{store.path}: expected sentiment labels 0 and 1, found {found[:5].tolist()} (meaning "
            f"{attributes.text.label_meaning!r}): turn them into classes with `fastlstm-probes label reviews`"
        )
    split = split_rows(store, "document")
    rows = {
        part: part_rows[labelled[part_rows]]
        for part, part_rows in zip(NAMES, (split.train, split.valid, split.test), strict=True)
    }
    for part in NAMES:
        if rows[part].size == 0:
            raise InputError(
                f"{store.path}: no labelled document in split {part!r}: the fit needs train, valid and test; "
                "label more documents, or dump all splits"
            )
    if np.unique(labels[rows["train"]]).size == 1:
        raise InputError(
            f"{store.path}: all {rows['train'].size} train documents have the label "
            f"{labels[rows['train'][0]]:g}: expected both 0 and 1; label more documents"
        )
    return _Documents(rows, {part: labels[rows[part]] == 1 for part in NAMES}, int((~labelled).sum()))


def _sweep(
    cells: dict[str, NDArray[np.float32]],
    labels: Parts,
    seed: int,
    max_iter: int,
    solver: Solver,
    progress: bool,
    name: str,
) -> L1Sweep:
    return sweep_l1(
        cells["train"],
        labels["train"],
        cells["valid"],
        labels["valid"],
        Cs=L1_STRENGTHS,
        seed=seed,
        max_iter=max_iter,
        solver=solver,
        progress=progress,
        name=name,
    )


def _largest_weight(cells: dict[str, NDArray[np.float32]], labels: Parts, fit: L1Fit) -> _Neuron:
    """The cell of the largest |w|; where every weight is zero, the first that would get one as C grows."""
    train = cells["train"]
    if fit.nonzero:
        column, detail = int(fit.top(1)[0]), ""
    else:
        # At w = 0 the loss falls fastest along the column of the largest |X^T (y - p)|.
        slope = (labels["train"] - labels["train"].mean()) @ train
        column, detail = int(np.abs(slope).argmax()), " (all weights zero: the first cell of the L1 path)"
    values = {part: cells[part][:, column] for part in NAMES}
    return _Neuron(column, detail, values, best_threshold(values["train"], labels["train"]))


def _best_cell(cells: dict[str, NDArray[np.float32]], labels: Parts) -> _Neuron:
    """The cell whose best threshold has the highest train accuracy; ties: the lower cell."""
    train = cells["train"]
    thresholds = [best_threshold(train[:, column], labels["train"]) for column in range(train.shape[1])]
    right = [accuracy(labels["train"], cut.predict(train[:, column])) for column, cut in enumerate(thresholds)]
    column = int(np.argmax(right))
    return _Neuron(column, "", {part: cells[part][:, column] for part in NAMES}, thresholds[column])


def _best_cell_score(name: str, store: States, labels: Parts, neuron: _Neuron) -> Score:
    detail = f"cell {int(store.units[neuron.column])} {neuron.threshold}"
    return _score(name, labels, _apply(neuron.threshold, neuron.values), detail)


def _side_of_zero(values: NDArray[np.float32], labels: NDArray[np.bool_]) -> Threshold:
    above, below = Threshold(0.0, +1), Threshold(0.0, -1)
    better_above = accuracy(labels, above.predict(values)) >= accuracy(labels, below.predict(values))
    return above if better_above else below


def _predict(fit: L1Fit, cells: dict[str, NDArray[np.float32]]) -> Parts:
    return {part: fit.margin(cells[part]) > 0 for part in NAMES}


def _apply(threshold: Threshold, values: dict[str, NDArray[np.float32]]) -> Parts:
    return {part: threshold.predict(values[part]) for part in NAMES}


def _describe(fit: L1Fit) -> str:
    weights = f"C={fit.C:g}, {fit.nonzero} of {fit.weights.size} weights"
    return weights if fit.converged else f"{weights}, not converged in {fit.iterations} iterations"


def _score(name: str, labels: Parts, predicted: Parts, detail: str) -> Score:
    train, valid, test = (accuracy(labels[part], predicted[part]) for part in NAMES)
    correct = int((labels["test"] == predicted["test"]).sum())
    low, high = wilson(correct, labels["test"].size)
    return Score(name, train, valid, test, low, high, detail)


def _majority_score(labels: Parts) -> Score:
    positive = bool(labels["train"].mean() >= 0.5)
    return _score(
        MAJORITY,
        labels,
        {part: np.full(labels[part].size, positive) for part in NAMES},
        f"always {int(positive)}, the more frequent in train",
    )


def _texts(store: States, documents: _Documents) -> dict[str, list[str]]:
    """The documents as people wrote them: the white space that the model reads around them is taken off."""

    def decoded(part: str) -> Iterator[str]:
        for document in store.document_of_row[documents.rows[part]].tolist():
            yield store.document_text(document).decode("utf-8", errors="replace").strip()

    return {part: list(decoded(part)) for part in NAMES}


def _tfidf_score(store: States, documents: _Documents, progress: bool) -> Score:
    """L2 logistic regression on TF-IDF of words and word pairs: what counting words can do."""
    texts, labels = _texts(store, documents), documents.labels
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    try:
        vectorizer.fit(texts["train"])
    except ValueError as error:  # scikit-learn's word for it: empty vocabulary
        raise InputError(f"{store.path}: its train documents have no words for the TF-IDF row: {error}") from error
    features = {part: vectorizer.transform(texts[part]) for part in NAMES}
    fits: list[Parts] = []
    for C in tqdm(TFIDF_STRENGTHS, desc="TF-IDF", unit="fit", disable=not progress):
        model = LogisticRegression(C=C, solver="liblinear", random_state=0)
        model.fit(features["train"], labels["train"])
        fits.append({part: model.predict(features[part]) for part in NAMES})
    valid = [accuracy(labels["valid"], fit["valid"]) for fit in fits]
    C = best_strength(TFIDF_STRENGTHS, valid)
    detail = f"L2, C={C:g}, {len(vectorizer.vocabulary_):,} words and pairs"
    return _score(TFIDF, labels, fits[TFIDF_STRENGTHS.index(C)], detail)


def _misclassified(store: States, documents: _Documents, neuron: _Neuron) -> list[Example]:
    """Test documents on the wrong side of the neuron's threshold, the furthest from it first."""
    values, labels = neuron.values["test"], documents.labels["test"]
    predicted = neuron.threshold.predict(values)
    wrong = np.flatnonzero(predicted != labels)
    order = np.argsort(-np.abs(values[wrong] - neuron.threshold.cut), kind="stable")
    texts = _texts(store, documents)["test"]
    of_row = store.document_of_row[documents.rows["test"]]
    return [
        Example(texts[i], int(labels[i]), int(predicted[i]), float(values[i]), int(of_row[i]))
        for i in wrong[order][:_EXAMPLES].tolist()
    ]
