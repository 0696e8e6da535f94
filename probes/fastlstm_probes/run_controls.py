"""The controls of one part-of-speech fit, those that were chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastlstm.states import States
from fastlstm_probes.baselines import Rows, byte_ngram_score, random_cells_scores
from fastlstm_probes.chance import best_cell_p_values, false_discovery
from fastlstm_probes.classifiers import Part, TagFits
from fastlstm_probes.control_fits import ControlFits, control_part
from fastlstm_probes.description_length import online_code
from fastlstm_probes.positions import position_scores
from fastlstm_probes.results import DescriptionLength, PositionScore, Score, Selectivity, Stability
from fastlstm_probes.selectivity import selectivity
from fastlstm_probes.single_cells import ranking_rows
from fastlstm_probes.stability import stability
from fastlstm_probes.words import word_of_row, word_types


@dataclass
class Found:
    """What the controls found; what was not chosen is empty, or None for each class (p, q and stability)."""

    p: Sequence[float | None]
    q: Sequence[float | None]
    stability: Sequence[Stability | None]
    baselines: list[Score] = field(default_factory=list)
    selectivity: list[Selectivity] = field(default_factory=list)
    description_length: DescriptionLength | None = None
    positions: list[PositionScore] = field(default_factory=list)


def run_controls(
    fits: ControlFits,
    store: States,
    rows: Rows,
    train: Part,
    test: Part,
    tags: list[TagFits],
    chosen: Collection[str],
    top: Sequence[int],
    split: str,
) -> Found:
    """Judge the fits `tags` of all train rows by the controls named in `chosen`."""
    nothing = [None] * len(tags)
    found = Found(nothing, nothing, nothing)
    if "chance" in chosen:
        taken = ranking_rows(train.code.size, fits.seed)
        p = best_cell_p_values(
            train.X[taken],
            train.code[taken][:, None] == np.array([tag.code for tag in tags]),
            train.document[taken],
            seed=fits.seed,
            progress=fits.progress,
        )
        found.p, found.q = p.tolist(), false_discovery(p).tolist()
    if "ngram" in chosen:
        found.baselines.append(byte_ngram_score(store, rows))
    full = {tag.code: tag.full for tag in tags}
    strength = {code: fit.C for code, fit in full.items()}
    some = control_part(store, train, fits.seed)
    if "random" in chosen:
        found.baselines += random_cells_scores(fits, some, test, full, top)
    if "selectivity" in chosen:
        word = word_of_row(store)
        # Of as many rows as the control task's, or the accuracies would differ by what more rows bring.
        true = tags if some is train else fits.fit_top("true task", some.X, some.code, strength, top, start=full)
        found.selectivity = selectivity(
            fits, true, some, test, word[some.index], word[test.index], word_types(store), top
        )
    if "mdl" in chosen:
        found.description_length = online_code(fits, some, strength)
    if "stability" in chosen:
        found.stability = stability(fits, tags, some, top)
    if "positions" in chosen:
        found.positions = position_scores(fits, tags, store, train, test, word_of_row(store), top, split)
    return found
