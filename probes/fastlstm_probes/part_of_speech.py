"""The part-of-speech fit: one L1 classifier per tag, on all cells and on the one, two and three best.

The protocol of Carvalho 2018 (`concept_neuron.py`). The class of a row is the class of its byte: the tag of the
word that covers it, SPACE for white space that no word covers, OTHER for any other byte without a word. Each
class gets a one-vs-all L1 classifier on all cells, then classifiers on the k = 1, 2, 3 cells of its largest |w|.
All classes together are judged by the largest normalised margin (`classifiers.py`). Apart from the classifiers, each
class gets the cell that ranks its rows best alone (`single_cells.py`), and so does the untrained model. Baselines and
controls (`controls.py`) say what the numbers are worth.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from fastlstm.errors import InputError
from fastlstm.states import States
from fastlstm_probes.baselines import (
    UNTRAINED_ALL,
    UNTRAINED_ONE,
    Rows,
    current_byte_score,
    majority_score,
    score_of,
)
from fastlstm_probes.classifiers import Part, TagFits, margins_of, on_cells, predict, refit_top
from fastlstm_probes.concepts.penn import OTHER, SPACE, group_tag
from fastlstm_probes.control_fits import ControlFits
from fastlstm_probes.controls import CONTROLS, check_controls
from fastlstm_probes.l1 import MAX_ITER, L1Fit, Solver, best_strength, fit_tags, margins, warn_unconverged
from fastlstm_probes.l1.stored import stored_fits
from fastlstm_probes.metrics import (
    accuracy,
    binary_scores,
    bootstrap_by_group,
    histogram_by_class,
    weighted_precision_recall,
)
from fastlstm_probes.results import (
    BestCell,
    KResult,
    PartOfSpeechResult,
    Stability,
    TagRow,
    TagScore,
    provenance_of,
)
from fastlstm_probes.run_controls import run_controls
from fastlstm_probes.single_cells import Codes, best_f1_threshold, judge_cell, rank_cells, ranking_rows
from fastlstm_probes.splits import NAMES, SplitRule, check_untrained, limit_rows, read_rows, split_rows

SWEEP_STRENGTHS = tuple(2.0**power for power in range(-4, 1))
TOP = (1, 2, 3)

Cells = dict[str, NDArray[np.float32]]  # (rows of a part, U)


@dataclass(frozen=True)
class _Settings:
    """How every classifier of a run is fitted."""

    seed: int
    max_iter: int
    solver: Solver
    device: str | None
    progress: bool
    top: tuple[int, ...]
    partial_fits: Path | None


def fit_part_of_speech(
    store: States,
    *,
    untrained: States | None = None,
    group: bool = True,
    C: float | None = 0.25,
    split: SplitRule = "document",
    max_rows: int | None = None,
    seed: int = 42,
    max_iter: int = MAX_ITER,
    solver: Solver = "joint",
    device: str | None = None,
    top: tuple[int, ...] = TOP,
    partial_fits: Path | None = None,
    controls: Collection[str] = CONTROLS,
    progress: bool = True,
) -> PartOfSpeechResult:
    """Fit every part of speech of a store whose text has tagged words.

    Args:
        untrained: a store of the same rows by the same architecture with its initial weights: two baselines, and
            per tag the best cell of a model that was never trained.
        group: group the tags as Carvalho 2018 does (every verb is VB, ...; rare tags are OTHER).
        C: inverse L1 strength of every classifier; None: per tag, the one of 2^-4..2^0 with the best accuracy on
            the validation rows (ties: the smallest).
        split: "document", or "byte" for the random byte split of Carvalho 2018.
        max_rows: train on at most so many rows, those of whole documents drawn by `seed`; None: on all.
        solver: "joint", all tags at once, or scikit-learn's "liblinear", "saga" or "sgd", tag by tag.
        device: where the joint solver computes; None: on the CPU.
        top: numbers of cells k that classifiers are fitted on besides all.
        partial_fits: folder for the fits on all cells as they are made: the same call again goes on from them.
        controls: names of the statistics to add, see `controls.py`. They are fitted by the joint solver on at most
            20,000 of the train rows, those of whole documents drawn by `seed`.

    The best cells are chosen on at most 20,000 of the train rows, drawn by `seed`; their thresholds on all of them.
    Classes that the train rows lack have no classifier; test rows of them count as wrong. The intervals of the
    baselines take rows as independent, which the bytes of one word are not: the true ones are wider.

    Raises:
        InputError: text without tags, rows of whole documents, an empty part, fewer than two classes in train, an
            untrained store of something else, an unknown control.
    """
    started = time.perf_counter()
    chosen = check_controls(controls)
    settings = _Settings(seed, max_iter, solver, device, progress, top, partial_fits)
    if untrained is not None:
        check_untrained(store, untrained)
    rows, available = _choose_rows(store, group, split, max_rows, seed, needs_valid=C is None)
    X = _read_cells(store, rows)
    fits = _fit_tags(store, X, rows, C, settings, "tags")
    best = _best_cells(store, X, rows, fits, seed, progress, "best cells")
    untrained_best: list[BestCell] | list[None] = [None] * len(fits)
    baselines = [majority_score(rows), current_byte_score(store, rows)]
    control_fits = ControlFits(rows.classes, seed, max_iter, device, partial_fits, progress)
    train, test = (
        Part(rows.index[part], X[part], rows.code[part], store.document_of_row[rows.index[part]])
        for part in ("train", "test")
    )
    found = run_controls(control_fits, store, rows, train, test, fits, chosen, top, split)
    baselines += found.baselines
    named_fits = _named(fits, "") + control_fits.made
    if untrained is not None:
        X_0 = _read_cells(untrained, rows)
        fits_0 = _fit_tags(untrained, X_0, rows, C, settings, "untrained")
        untrained_best = _best_cells(untrained, X_0, rows, fits_0, seed, progress, "best untrained cells")
        named_fits += _named(fits_0, "untrained ")
        for k, name in (("all", UNTRAINED_ALL), ("1", UNTRAINED_ONE)):
            if k in ("all", *map(str, top)):
                baselines.append(score_of(name, rows, {"test": predict(fits_0, k, X_0["test"])}, "normalised margins"))
    warn_unconverged(named_fits, max_iter)
    by_k = [_tag_scores(fits, rows, X, k) for k in ("all", *map(str, top))]
    return PartOfSpeechResult(
        provenance=provenance_of(
            store,
            untrained=untrained,
            seed=seed,
            split=split,
            max_iter=max_iter,
            solver=solver,
            controls=chosen,
        ),
        group=group,
        C=C,
        rows={part: rows.index[part].size for part in NAMES} | {"train_available": available},
        ranking_rows=ranking_rows(rows.index["train"].size, seed).size,
        overall=[
            _overall(store, fits, rule, k, X["test"], rows, seed)
            for rule in ("norm", "probability")
            for k in ("all", *map(str, top))
        ],
        baselines=baselines,
        selectivity=found.selectivity,
        description_length=found.description_length,
        positions=found.positions,
        tags=[
            _tag_row(fit, rows, X, store.units, cell, cell_0, p_value, rate, stable, list(scores))
            for fit, cell, cell_0, p_value, rate, stable, scores in zip(
                fits, best, untrained_best, found.p, found.q, found.stability, zip(*by_k, strict=True), strict=True
            )
        ],
        units=store.units.tolist(),
        seconds=time.perf_counter() - started,
    )


def row_classes(store: States, group: bool) -> tuple[tuple[str, ...], Codes]:
    """The classes of a tagged text, sorted, and each row's: an index into them, int16 (N,)."""
    tagset = store.attributes.text.tagset
    if store.word_tag is None or tagset is None:
        raise InputError(
            f"{store.path}: its text (kind {store.attributes.text.kind!r}) has no tagged words: label text with "
            "`fastlstm-probes label treebank`, `label lines`, or `label reviews --tags nltk`, and dump that"
        )
    class_of_tag = [group_tag(tag, group) for tag in tagset]
    classes = tuple(sorted({*class_of_tag, SPACE, OTHER}))
    code_of_tag = np.array([classes.index(name) for name in class_of_tag], dtype=np.int16)
    tag = store.byte_tags()[store.position]
    white = np.isin(store.byte, np.frombuffer(b" \t\n\r\v\f", dtype=np.uint8))
    uncovered = np.where(white, classes.index(SPACE), classes.index(OTHER))
    return classes, np.where(tag >= 0, code_of_tag[tag], uncovered).astype(np.int16)


def _choose_rows(
    store: States, group: bool, split: SplitRule, max_rows: int | None, seed: int, *, needs_valid: bool
) -> tuple[Rows, int]:
    """The rows to use, and how many train rows there were before the limit."""
    if store.attributes.rows == "document":
        raise InputError(
            f"{store.path}: its rows are the last bytes of documents, which belong to no word: dump the text again "
            "with rows 'all', 'word' or 'every:K'"
        )
    classes, code = row_classes(store, group)
    parts = split_rows(store, split)
    index = {
        "train": limit_rows(store, parts.train, max_rows, seed),
        "valid": parts.valid,
        "test": parts.test,
    }
    for part in NAMES:
        if index[part].size == 0 and (part != "valid" or needs_valid):
            raise InputError(
                f"{store.path}: no row in split {part!r}: the fit needs it; label more documents, or dump all splits"
            )
    if np.unique(code[index["train"]]).size < 2:
        only = classes[code[index["train"][0]]]
        raise InputError(f"{store.path}: every train row is {only}: expected at least two classes")
    return Rows(classes, index, {part: code[index[part]] for part in NAMES}), parts.train.size


def _read_cells(store: States, rows: Rows) -> Cells:
    """The cells by part; the validation rows, which choose C and thresholds, where there are any."""
    return {part: read_rows(store, rows.index[part]) for part in NAMES if rows.index[part].size}


def _fit_tags(store: States, X: Cells, rows: Rows, C: float | None, settings: _Settings, name: str) -> list[TagFits]:
    """The fits of every class of the train rows, the most frequent first."""
    counts = np.bincount(rows.code["train"], minlength=len(rows.classes))
    codes = [int(code) for code in np.argsort(-counts, kind="stable") if counts[code]]
    targets = rows.code["train"][:, None] == np.array(codes)
    sweep: list[list[L1Fit]] = []
    for one in SWEEP_STRENGTHS if C is None else (C,):
        before = sweep[-1] if sweep and settings.solver == "joint" else None
        make = partial(
            fit_tags,
            X["train"],
            targets,
            C=one,
            seed=settings.seed,
            max_iter=settings.max_iter,
            solver=settings.solver,
            device=settings.device,
            start=before,
            progress=settings.progress,
        )
        key = {
            "store": store.identity,
            "rows": hashlib.sha256(rows.index["train"].tobytes()).hexdigest(),
            "classes": [rows.classes[code] for code in codes],
            "C": one,
            "started": before is not None,
            "seed": settings.seed,
            "max_iter": settings.max_iter,
            "solver": settings.solver,
            "device": settings.device,
        }
        sweep.append(stored_fits(settings.partial_fits, key, make))
    full: list[L1Fit] = []
    others: list[tuple[L1Fit, ...]] = []
    said_yes = [margins(one, X["valid"]) > 0 for one in sweep] if C is None else []
    for place, code in enumerate(codes):
        of_tag = [one[place] for one in sweep]
        strength = of_tag[0].C
        if C is None:
            truth = rows.code["valid"] == code
            right = [accuracy(truth, yes[:, place]) for yes in said_yes]
            strength = best_strength(SWEEP_STRENGTHS, right)
        full.append(next(fit for fit in of_tag if strength == fit.C))
        others.append(tuple(fit for fit in of_tag if strength != fit.C))
    tops = refit_top(
        X["train"],
        targets,
        full,
        settings.top,
        name=name,
        progress=settings.progress,
        seed=settings.seed,
        max_iter=settings.max_iter,
        solver=settings.solver,
        device=settings.device,
    )
    return [
        TagFits(rows.classes[code], code, best, top, rest)
        for code, best, top, rest in zip(codes, full, tops, others, strict=True)
    ]


def _best_cells(
    store: States, X: Cells, rows: Rows, fits: list[TagFits], seed: int, progress: bool, name: str
) -> list[BestCell]:
    """Each fitted class's best single cell, in the order of `fits`."""
    code = rows.code["train"]
    taken = ranking_rows(code.size, seed)
    chosen = rank_cells(X["train"][taken], code[taken], [fit.code for fit in fits], progress=progress, name=name)
    return [
        judge_cell(
            ranked,
            int(store.units[ranked.column]),
            (X["train"][:, ranked.column], code == fit.code),
            (X["test"][:, ranked.column], rows.code["test"] == fit.code),
        )
        for fit, ranked in zip(fits, chosen, strict=True)
    ]


def _overall(
    store: States, fits: list[TagFits], rule: str, k: str, X: NDArray[np.float32], rows: Rows, seed: int
) -> KResult:
    code = rows.code["test"]
    predicted = predict(fits, k, X, rule)
    precision, recall = weighted_precision_recall(code, predicted)
    low, high = bootstrap_by_group(predicted == code, store.document_of_row[rows.index["test"]], seed)
    return KResult(k, accuracy(code, predicted), precision, recall, rule, low, high)


def _tag_scores(fits: list[TagFits], rows: Rows, X: Cells, k: str) -> list[TagScore]:
    """Of every class's classifier on k cells."""
    margin = {part: margins_of(on_cells(fits, k), X[part]) for part in ("valid", "test") if part in X}
    found = []
    for place, fit in enumerate(fits):
        of_tag = {part: (rows.code[part] == fit.code, values[:, place]) for part, values in margin.items()}
        scores = binary_scores(*of_tag["test"])
        found.append(
            TagScore(
                k=k,
                accuracy=scores.accuracy,
                precision=scores.precision,
                recall=scores.recall,
                average_precision=scores.average_precision,
                roc_auc=scores.roc_auc,
                mcc=scores.mcc,
                tuned_f1=_tuned_f1(*of_tag["valid"], *of_tag["test"]) if "valid" in of_tag else None,
            )
        )
    return found


def _tuned_f1(
    valid: NDArray[np.bool_],
    valid_margin: NDArray[np.float64],
    test: NDArray[np.bool_],
    test_margin: NDArray[np.float64],
) -> float | None:
    """F1 on test at the threshold of the best F1 on the validation rows; None if either lacks the class."""
    if not valid.any() or not test.any():
        return None
    return float(f1_score(test, test_margin > best_f1_threshold(valid_margin, valid), zero_division=0))


def _tag_row(
    fits: TagFits,
    rows: Rows,
    X: Cells,
    units: NDArray[np.int32],
    best: BestCell,
    untrained_best: BestCell | None,
    p: float | None,
    q: float | None,
    stable: Stability | None,
    by_k: list[TagScore],
) -> TagRow:
    positive = {part: rows.code[part] == fits.code for part in NAMES}
    count = sum(int(of_part.sum()) for of_part in positive.values())
    top = fits.full.top(3)
    shown = X["train"][:, int(np.flatnonzero(units == best.unit)[0])]
    return TagRow(
        tag=fits.tag,
        positive=count,
        negative=sum(of_part.size for of_part in positive.values()) - count,
        features_used=fits.full.nonzero,
        top=units[top].tolist(),
        by_k=by_k,
        C=fits.full.C,
        weights=fits.full.weights.tolist(),
        intercept=fits.full.intercept,
        best=best,
        untrained_best=untrained_best,
        histogram=histogram_by_class(shown, positive["train"]),
        converged=fits.full.converged,
        gap=fits.full.gap,
        p=p,
        q=q,
        stability=stable,
    )


def _named(fits: list[TagFits], prefix: str) -> list[tuple[str, L1Fit]]:
    """Every fit with a name, for the warning of those that did not converge."""
    named: list[tuple[str, L1Fit]] = []
    for fit in fits:
        named += [(f"{prefix}{fit.tag}", one) for one in (*fit.others, fit.full)]
        named += [(f"{prefix}{fit.tag} k={one.k}", one.fit) for one in fit.top if one.columns.size]
    return named
