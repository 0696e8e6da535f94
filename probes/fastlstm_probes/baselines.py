"""What names a row's class without the trained cells, or with cells that nobody chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastlstm.states import States
from fastlstm_probes.classifiers import Part, named_class
from fastlstm_probes.control_fits import ControlFits
from fastlstm_probes.l1 import L1Fit
from fastlstm_probes.metrics import accuracy, wilson
from fastlstm_probes.results import Score
from fastlstm_probes.single_cells import Codes
from fastlstm_probes.splits import NAMES

NGRAM = 4  # bytes of the longest context
RANDOM_DRAWS = 5

MAJORITY = "majority tag"
CURRENT_BYTE = "current byte: its most frequent tag in train"
BYTE_NGRAM = f"byte n-gram: most frequent tag of the last {NGRAM} bytes"
UNTRAINED_ALL = "untrained LSTM: all cells"
UNTRAINED_ONE = "untrained LSTM: one cell per tag"


def random_cells(k: int) -> str:
    """The name of the baseline on k random cells."""
    return f"{k} random cell{'s' if k > 1 else ''} per tag"


@dataclass(frozen=True)
class Rows:
    """The rows used, by part, and the code of each one's class (an index into `classes`)."""

    classes: tuple[str, ...]
    index: dict[str, NDArray[np.int64]]
    code: dict[str, Codes]


def score_of(name: str, rows: Rows, predicted: Mapping[str, Codes], detail: str) -> Score:
    """Accuracy by part, None for parts that were not predicted or are empty."""
    of_part = {
        part: accuracy(rows.code[part], predicted[part]) for part in NAMES if part in predicted and rows.code[part].size
    }
    correct = int((rows.code["test"] == predicted["test"]).sum())
    low, high = wilson(correct, rows.code["test"].size)
    return Score(name, of_part.get("train"), of_part.get("valid"), of_part["test"], low, high, detail)


def majority_score(rows: Rows) -> Score:
    majority = int(np.bincount(rows.code["train"]).argmax())
    predicted = {part: np.full(rows.code[part].size, majority, dtype=np.int16) for part in NAMES}
    return score_of(MAJORITY, rows, predicted, f"always {rows.classes[majority]}")


def current_byte_score(store: States, rows: Rows) -> Score:
    """What the byte alone gives away; a byte that train lacks gets the majority tag."""
    predicted, contexts = _by_context(store, rows, 1)
    return score_of(CURRENT_BYTE, rows, predicted, f"{contexts:,} byte values in train")


def byte_ngram_score(store: States, rows: Rows) -> Score:
    """What the last bytes give away: see `ngram_classes`."""
    predicted, contexts = _by_context(store, rows, NGRAM)
    return score_of(BYTE_NGRAM, rows, predicted, f"{contexts:,} contexts of 1 to {NGRAM} bytes in train")


def _by_context(store: States, rows: Rows, longest: int) -> tuple[dict[str, Codes], int]:
    used = np.concatenate([rows.index[part] for part in NAMES])
    train = np.arange(rows.index["train"].size)
    begin = store.document_offset[store.document_of_row[used]]
    found, contexts = ngram_classes(store.text, begin, store.position[used], train, rows.code["train"], longest)
    cuts = np.cumsum([rows.index[part].size for part in NAMES])[:-1]
    return dict(zip(NAMES, np.split(found, cuts), strict=True)), contexts


def ngram_classes(
    text: NDArray[np.uint8],
    begin: NDArray[np.int64],
    position: NDArray[np.int64],
    train: NDArray[np.int64],
    code: Codes,
    longest: int = NGRAM,
) -> tuple[Codes, int]:
    """The class that the bytes up to each row's own suggest, int16 (n,), and the number of contexts in train.

    It is the most frequent class in train (ties: the lower code) of the longest context, of at most `longest` bytes
    that end with the row's and do not begin before its document, that train has; without any it is the majority.

    Args:
        text: (M,). begin, position: (n,): where each row's document begins in it, and its byte. train: numbers of the
            rows (t,) whose class is known. code: (t,) their classes.
    """
    predicted = np.full(position.size, np.bincount(code).argmax(), dtype=np.int16)
    context = np.zeros(position.size, dtype=np.int64)
    contexts = 0
    for length in range(1, longest + 1):
        at = position - (length - 1)
        whole = at >= begin
        context += text[np.maximum(at, 0)].astype(np.int64) << (8 * (length - 1))
        known = whole[train]
        if not known.any():
            break
        keys, classes = _most_frequent(context[train][known], code[known])
        contexts += keys.size
        place = np.minimum(np.searchsorted(keys, context), keys.size - 1)
        seen = whole & (keys[place] == context)
        predicted[seen] = classes[place[seen]]
    return predicted, contexts


def _most_frequent(keys: NDArray[np.int64], code: Codes) -> tuple[NDArray[np.int64], Codes]:
    """The distinct keys, ascending, and the most frequent code of each; ties: the lower code."""
    span = int(code.max()) + 1
    pairs, counts = np.unique(keys * span + code, return_counts=True)
    key, of_key = pairs // span, pairs % span
    order = np.lexsort((of_key, -counts, key))
    distinct, first = np.unique(key[order], return_index=True)
    return distinct, of_key[order][first].astype(np.int16)


def random_cells_scores(
    fits: ControlFits, train: Part, test: Part, full: Mapping[int, L1Fit], top: Sequence[int]
) -> list[Score]:
    """For each k: every class's classifier on k cells of its own drawn by seed, all judged together; the mean of draws.

    full: the fits on all cells by code, whose C the classifiers have. The interval is the Wilson interval of the mean.
    """
    cells, size = train.X.shape[1], test.code.size
    codes = [one for one in full if 0 < (train.code == one).sum() < train.code.size]
    if not codes:
        return []
    targets, like = train.code[:, None] == np.array(codes), [full[one] for one in codes]
    accuracies = np.zeros((RANDOM_DRAWS, len(top)))
    for draw in tqdm(range(RANDOM_DRAWS), desc="random cells", unit="draw", disable=not fits.progress):
        rng = np.random.default_rng((fits.seed, draw))
        order = [rng.permutation(cells) for _ in codes]
        chosen = None
        for place, k in enumerate(top):
            chosen = fits.refit("random cells", train.X, targets, [one[:k] for one in order], k, like, chosen)
            accuracies[draw, place] = accuracy(test.code, named_class(codes, chosen, test.X))
    scores = []
    for place, k in enumerate(top):
        of_k = accuracies[:, place]
        low, high = wilson(round(float(of_k.mean()) * size), size)
        detail = (
            f"mean of {RANDOM_DRAWS} draws, {100 * of_k.min():.1f} to {100 * of_k.max():.1f}; "
            f"fitted on {train.code.size:,} rows"
        )
        scores.append(Score(random_cells(k), None, None, float(of_k.mean()), low, high, detail))
    return scores
