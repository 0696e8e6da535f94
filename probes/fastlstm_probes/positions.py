"""Where in a word its class is known: at the first byte, where much of the word is still to come, or at the last.

Labels cover all bytes of a word, so that one number for all of them mixes both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastlstm.states import States
from fastlstm_probes.classifiers import Part, TagFits, predict
from fastlstm_probes.control_fits import ControlFits, control_part
from fastlstm_probes.metrics import accuracy, bootstrap_by_group
from fastlstm_probes.results import PositionScore
from fastlstm_probes.words import word_bounds

FIRST, LAST, MEAN = "first byte", "last byte", "word mean"
_COLUMNS = 256  # summed at a time


def position_scores(
    fits: ControlFits,
    found: Sequence[TagFits],
    store: States,
    train: Part,
    test: Part,
    word: NDArray[np.int64],
    top: Sequence[int],
    split: str,
) -> list[PositionScore]:
    """All classes together on test rows at the first and at the last byte of words, and on means over words.

    First and last byte are judged by the classifiers `found`. Those of word means (a word's cells averaged over its
    rows) are fitted anew on the words of at most 20,000 of train, of whole documents. Rows that are only the last bytes
    of words have no other position, and the parts of a split by byte have no whole words.

    Args:
        word: (N,) of every row of the store, -1 for none.
    """
    start, end = word_bounds(store)
    if start.size == 0:
        return []
    of_row = word[test.index]
    position = store.position[test.index]
    places = {LAST: (of_row >= 0) & (position == end[of_row] - 1)}
    only_last = store.attributes.rows == "word"
    if not only_last:
        places = {FIRST: (of_row >= 0) & (position == start[of_row]), **places}
    scores: list[PositionScore] = []
    for name, there in places.items():
        if there.any():
            scores += _scores(name, found, test.take(there), top, fits.seed, fitted_rows=train.code.size)
    if only_last or split == "byte":
        return scores
    words, test_words = word_means(train, word[train.index]), word_means(test, of_row)
    if words.code.size and test_words.code.size:
        words = control_part(store, words, fits.seed)
        strength: Mapping[int, float] = {fit.code: fit.full.C for fit in found}
        means = fits.fit_top("word means", words.X, words.code, strength, top)
        scores += _scores(MEAN, means, test_words, top, fits.seed, fitted_rows=words.code.size)
    return scores


def word_means(part: Part, word: NDArray[np.int64]) -> Part:
    """A row for each word, its cells averaged over the word's rows; index is that of its first row.

    word: (n,) of each row, -1 for none; the rows of a word follow one another.
    """
    inside = np.flatnonzero(word >= 0)
    if inside.size == 0:
        return part.take(inside)
    begins = np.flatnonzero(np.append(True, np.diff(word[inside]) != 0))
    counts = np.diff(np.append(begins, inside.size)).astype(np.float32)
    X = np.empty((begins.size, part.X.shape[1]), dtype=np.float32)
    for column in range(0, X.shape[1], _COLUMNS):
        some = slice(column, column + _COLUMNS)
        X[:, some] = np.add.reduceat(part.X[inside, some], begins, axis=0) / counts[:, None]
    first = inside[begins]
    return replace(part, index=part.index[first], X=X, code=part.code[first], document=part.document[first])


def _scores(
    name: str, fits: Sequence[TagFits], judged: Part, top: Sequence[int], seed: int, *, fitted_rows: int
) -> list[PositionScore]:
    scores = []
    for k in ("all", *map(str, top)):
        predicted = predict(fits, k, judged.X)
        low, high = bootstrap_by_group(predicted == judged.code, judged.document, seed)
        scores.append(
            PositionScore(
                position=name,
                k=k,
                accuracy=accuracy(judged.code, predicted),
                low=low,
                high=high,
                rows=judged.code.size,
                train_rows=fitted_rows,
            )
        )
    return scores
