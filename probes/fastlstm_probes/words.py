"""The words of a tagged text, and which of them each row of its states belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlstm.errors import InputError
from fastlstm.states import States


def word_bounds(store: States) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each word begins and ends (half-open) in the text, (W,) each.

    Raises:
        InputError: the text has no words.
    """
    if store.word_start is None or store.word_end is None:
        raise InputError(f"{store.path}: the text has no annotated words")
    return store.word_start, store.word_end


def word_of_row(store: States) -> NDArray[np.int64]:
    """(N,): number of the word that covers each row's byte, -1 where none does."""
    start, end = word_bounds(store)
    word = np.full(len(store.text), -1, np.int64)
    lengths = end - start
    before = np.cumsum(lengths) - lengths
    covered = np.arange(lengths.sum()) + np.repeat(start - before, lengths)
    word[covered] = np.repeat(np.arange(start.size), lengths)
    return np.asarray(word[store.position])


def word_types(store: States) -> NDArray[np.int64]:
    """(W,): number of each word's type, its bytes as they are written, counted from 0 in the order of the text."""
    text = store.text.tobytes()
    numbers: dict[bytes, int] = {}
    start, end = word_bounds(store)
    return np.array(
        [
            numbers.setdefault(text[first:last], len(numbers))
            for first, last in zip(start.tolist(), end.tolist(), strict=True)
        ],
        dtype=np.int64,
    )
