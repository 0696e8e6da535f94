"""Does a probe read a concept from the cells, or learn it word by word? (Hewitt and Liang 2019)

In the control task every word type of train has a class of its own, drawn at random, that all its occurrences share. A
probe can only learn it by telling words apart. Selectivity is the accuracy on the true classes less that on the control
task, on the same test rows: those of words whose type train has, since no other has a control class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fastlstm_probes.classifiers import Part, TagFits, predict
from fastlstm_probes.control_fits import ControlFits
from fastlstm_probes.metrics import accuracy, bootstrap_by_group
from fastlstm_probes.results import Selectivity
from fastlstm_probes.single_cells import Codes


def control_classes(types: NDArray[np.int64], word: NDArray[np.int64], code: Codes, seed: int) -> dict[int, int]:
    """The control class of every word type of the rows, drawn from the classes of their words.

    Each type takes the class of a word drawn from all words with replacement, so that frequent classes are frequent in
    the control task too.

    Args:
        types: (W,) type of each word. word: (n,) of each row, -1 for none. code: (n,) the rows' true classes.
    """
    inside = np.flatnonzero(word >= 0)
    words, first = np.unique(word[inside], return_index=True)
    known = np.unique(types[words])
    drawn = np.random.default_rng(seed).choice(code[inside[first]], known.size) if known.size else known
    return dict(zip(known.tolist(), drawn.tolist(), strict=True))


def control_codes(
    types: NDArray[np.int64], word: NDArray[np.int64], code: Codes, classes: Mapping[int, int]
) -> tuple[Codes, NDArray[np.bool_]]:
    """The rows' classes in the control task (n,), and which rows it has a class for (n,): those of words it knows.

    Rows that no word covers (white space and what is between words) keep their true class: a probe must tell them from
    words in both tasks.
    """
    table = np.full(int(types.max(initial=-1)) + 1, -1, dtype=np.int16)
    table[list(classes)] = list(classes.values())
    of_row = np.full(word.size, -1, dtype=np.int16)
    of_row[word >= 0] = table[types[word[word >= 0]]]
    return np.where(of_row >= 0, of_row, code).astype(np.int16), of_row >= 0


def selectivity(
    fits: ControlFits,
    true: Sequence[TagFits],
    train: Part,
    test: Part,
    train_word: NDArray[np.int64],
    test_word: NDArray[np.int64],
    types: NDArray[np.int64],
    top: Sequence[int],
) -> list[Selectivity]:
    """For all cells and the k best of `top`; empty where no test row is of a word whose type train has.

    Args:
        true: classifiers of the true classes, fitted on the same train rows; those of the control task have their C.
        train_word, test_word: the word of each row, -1 for none. types: the type of each word.
    """
    strength = {fit.code: fit.full.C for fit in true}
    classes = control_classes(types, train_word, train.code, fits.seed)
    labels, _ = control_codes(types, train_word, train.code, classes)
    test_labels, counted = control_codes(types, test_word, test.code, classes)
    if not counted.any():
        return []
    control = fits.fit_top("control task", train.X, labels, strength, top)
    judged = test.take(counted)
    found = []
    for k in ("all", *map(str, top)):
        right = predict(true, k, judged.X) == judged.code
        control_right = predict(control, k, judged.X) == test_labels[counted]
        low, high = bootstrap_by_group(right.astype(np.int64) - control_right, judged.document, fits.seed)
        found.append(
            Selectivity(
                k=k,
                accuracy=accuracy(np.ones_like(right), right),
                control_accuracy=accuracy(np.ones_like(right), control_right),
                selectivity=float(right.mean() - control_right.mean()),
                low=low,
                high=high,
                rows=int(counted.sum()),
                train_rows=train.code.size,
                word_types=len(classes),
            )
        )
    return found
