"""Published protocols from stores to finished tables, each in one call: JSON, CSV and a report of every result.

carvalho2018: every store of tagged text with tags grouped and as they are, by the study's random byte split and by
document, all cells and the k best, C per tag of 2^-4..2^0 by validation accuracy. radford2017: sentiment on SST.

A run that was killed goes on: finished results are kept if they are of the same stores and settings, and of an
unfinished one the fits on all cells are.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from fastlstm.errors import InputError
from fastlstm.files import write_whole
from fastlstm.states import States
from fastlstm_probes.controls import CONTROLS, check_controls
from fastlstm_probes.l1 import MAX_ITER, Solver
from fastlstm_probes.part_of_speech import fit_part_of_speech
from fastlstm_probes.report import write_report
from fastlstm_probes.results import (
    PartOfSpeechResult,
    Provenance,
    Result,
    SentimentResult,
    load_result,
    provenance_of,
    result_path,
    save_result,
)
from fastlstm_probes.sentiment import fit_sentiment
from fastlstm_probes.splits import SplitRule

TOP = (1, 2, 3, 5, 10, 20)

R = TypeVar("R", SentimentResult, PartOfSpeechResult)


@dataclass(frozen=True)
class Settings:
    """Of every fit of a recipe."""

    seed: int = 42
    max_iter: int = MAX_ITER
    solver: Solver = "joint"
    device: str | None = None
    allow_unconverged: bool = False
    progress: bool = True
    controls: tuple[str, ...] = CONTROLS  # of carvalho2018: see controls.py


def carvalho2018(
    stores: Sequence[States], out: Path, *, untrained: Sequence[States] = (), settings: Settings | None = None
) -> list[Path]:
    """Fit every store (the study's: 250 and 500 lines of WikiText-103, 1,000 sentences of the Treebank).

    Args:
        stores: states of tagged text, rows "all".
        out: folder: overall.csv, tags.csv, and per fit a folder with its JSON and report.
        untrained: none, or for each store that of the untrained model.

    Returns the files written.

    Raises:
        InputError: what `fit_part_of_speech` says, stores of the same text twice, or untrained stores that do not pair.
    """
    settings = settings or Settings()
    controls = check_controls(settings.controls)
    if untrained and len(untrained) != len(stores):
        raise InputError(f"untrained: expected one store for each of {len(stores)}, got {len(untrained)}")
    names = [f"{store.attributes.text.kind}-{store.attributes.text.sha256[:6]}-{store.documents}" for store in stores]
    if len(set(names)) < len(names):
        raise InputError(f"stores: expected each text once, got {', '.join(names)}")
    paired: Sequence[States | None] = untrained or [None] * len(stores)
    pairs = list(zip(stores, paired, names, strict=True))
    results: list[tuple[str, PartOfSpeechResult]] = []
    files: list[Path] = []
    for store, without_training, name in pairs:
        for split in get_args(SplitRule):
            for group in (True, False):
                folder = out / f"{name}-{split}-{'grouped' if group else 'ungrouped'}"
                result = _kept(folder, PartOfSpeechResult, store, without_training, split, settings, controls)
                if result is None:
                    result = fit_part_of_speech(
                        store,
                        untrained=without_training,
                        group=group,
                        C=None,
                        split=split,
                        seed=settings.seed,
                        max_iter=settings.max_iter,
                        solver=settings.solver,
                        device=settings.device,
                        top=TOP,
                        partial_fits=out / ".fits",
                        controls=controls,
                        progress=settings.progress,
                    )
                    save_result(folder, result)
                files += [result_path(folder, PartOfSpeechResult), _report(folder, settings)]
                results.append((name, result))
    files.append(_write_csv(out / "overall.csv", _overall_rows(results)))
    files.append(_write_csv(out / "tags.csv", _tag_rows(results)))
    return files


def radford2017(
    store: States, out: Path, *, untrained: States | None = None, settings: Settings | None = None
) -> list[Path]:
    """Fit sentiment on the last cells of SST: sentiment.json, sentiment.csv, report.html in `out`.

    Raises:
        InputError: what `fit_sentiment` says.
    """
    settings = settings or Settings()
    result = _kept(out, SentimentResult, store, untrained, "document", settings)
    if result is None:
        result = fit_sentiment(
            store,
            untrained=untrained,
            seed=settings.seed,
            max_iter=settings.max_iter,
            solver=settings.solver,
            progress=settings.progress,
        )
        save_result(out, result)
    rows = [
        {
            "row": score.name,
            "train": score.train,
            "valid": score.valid,
            "test": score.test,
            "low": score.test_low,
            "high": score.test_high,
            "detail": score.detail,
            **_origin(result.provenance),
        }
        for score in result.scores
    ]
    return [result_path(out, SentimentResult), _write_csv(out / "sentiment.csv", rows), _report(out, settings)]


def _kept(
    folder: Path,
    kind: type[R],
    store: States,
    untrained: States | None,
    split: str,
    settings: Settings,
    controls: Sequence[str] = (),
) -> R | None:
    """The finished result in the folder if a fit now would be of the same input and settings."""
    path = result_path(folder, kind)
    if not path.is_file():
        return None
    wanted = provenance_of(
        store,
        untrained=untrained,
        seed=settings.seed,
        split=split,
        max_iter=settings.max_iter,
        solver=settings.solver,
        controls=controls,
    )
    found: Result = load_result(path)
    if found.provenance != wanted or not isinstance(found, kind):
        raise InputError(f"{path}: is of other stores, settings or versions: choose another folder, or delete it")
    return found


def _report(folder: Path, settings: Settings) -> Path:
    page = folder / "report.html"
    write_report(
        page, run=None, results=folder, states=None, samples=None, allow_unconverged=settings.allow_unconverged
    )
    return page


def _origin(source: Provenance) -> dict[str, Any]:
    """The columns that trace a number."""
    return {
        "split": source.split,
        "seed": source.seed,
        "solver": source.solver,
        "store": source.store,
        "untrained_store": source.untrained_store or "",
        "model_sha256": source.model_sha256,
        "model_step": source.model_step,
        "text_sha256": source.text_sha256,
        "versions": " ".join(f"{name}={version}" for name, version in sorted(source.versions.items())),
    }


def _overall_rows(results: Iterable[tuple[str, PartOfSpeechResult]]) -> list[dict[str, Any]]:
    """All tags together: the classifiers, the baselines and the controls, each a row; what a row has not is empty."""
    rows: list[dict[str, Any]] = []
    for name, result in results:
        shared = {"text": name, "tags": result.provenance.tags, "grouped": result.group}
        size = {
            "train_rows": result.rows["train"],
            "test_rows": result.rows["test"],
            "largest_gap": max(row.gap for row in result.tags),
        }
        for found in _overall_scores(result):
            filled = {column: found.get(column, "") for column in _OVERALL_COLUMNS}
            sizes = {column: found.get(column, value) for column, value in size.items()}
            rows.append({**shared, **filled, **sizes, **_origin(result.provenance)})
    return rows


_OVERALL_COLUMNS = (
    *("row", "argmax", "accuracy", "precision", "recall", "low", "high"),
    *("selectivity", "selectivity_low", "selectivity_high", "bits_per_row", "compression"),
)


def _overall_scores(result: PartOfSpeechResult) -> Iterator[dict[str, Any]]:
    for one in result.overall:
        yield {
            "row": f"k={one.k}",
            "argmax": one.rule,
            "accuracy": one.accuracy,
            "precision": one.precision,
            "recall": one.recall,
            "low": one.low,
            "high": one.high,
        }
    for score in result.baselines:
        yield {
            "row": score.name,
            "accuracy": score.test,
            "recall": score.test,
            "low": score.test_low,
            "high": score.test_high,
        }
    for place in result.positions:
        yield {
            "row": f"k={place.k}, {place.position}",
            "argmax": "norm",
            "accuracy": place.accuracy,
            "recall": place.accuracy,
            "low": place.low,
            "high": place.high,
            "train_rows": place.train_rows,
            "test_rows": place.rows,
        }
    for task in result.selectivity:
        shown = {"argmax": "norm", "train_rows": task.train_rows, "test_rows": task.rows}
        yield {
            **shown,
            "row": f"k={task.k}, words of train",
            "accuracy": task.accuracy,
            "recall": task.accuracy,
            "selectivity": task.selectivity,
            "selectivity_low": task.low,
            "selectivity_high": task.high,
        }
        yield {
            **shown,
            "row": f"k={task.k}, control task",
            "accuracy": task.control_accuracy,
            "recall": task.control_accuracy,
        }
    code = result.description_length
    if code is not None:
        for row, bits in (
            ("online code", code.bits_per_row),
            ("online code, tag frequencies alone", code.frequency_bits_per_row),
        ):
            compression = code.uniform_bits_per_row / bits
            yield {
                "row": row,
                "bits_per_row": bits,
                "compression": compression,
                "train_rows": code.rows,
                "test_rows": "",
            }


def _tag_rows(results: Iterable[tuple[str, PartOfSpeechResult]]) -> list[dict[str, Any]]:
    return [
        {
            "text": name,
            "grouped": result.group,
            "tag": row.tag,
            "k": score.k,
            "positive": row.positive,
            "negative": row.negative,
            "C": row.C,
            "cells_used": row.features_used,
            "top_cells": " ".join(map(str, row.top)),
            "accuracy": score.accuracy,
            "precision": score.precision,
            "recall": score.recall,
            "average_precision": score.average_precision,
            "roc_auc": score.roc_auc,
            "mcc": score.mcc,
            "tuned_f1": score.tuned_f1,
            "best_cell": row.best.unit,
            "best_cell_average_precision": row.best.average_precision,
            "best_cell_p": row.p,
            "best_cell_q": row.q,
            "gap": row.gap,
            "halves_overlap": row.stability.halves.get(score.k) if row.stability else None,
            "resamples_same_top": row.stability.same_top if row.stability else None,
            **_origin(result.provenance),
        }
        for name, result in results
        for row in result.tags
        for score in row.by_k
    ]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    content = io.StringIO()
    writer = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, content.getvalue().encode())
    return path
