"""Which rows of a states store are trained on, chosen by, and tested on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from textwrap import shorten
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from fastlstm.errors import InputError
from fastlstm.states import States, TextAttributes
from fastlstm.states.schema import BLOCK_ROWS

SplitRule = Literal["document", "byte"]

NAMES = ("train", "valid", "test")  # the values 0, 1, 2 of the store's document_split


@dataclass(frozen=True)
class Split:
    """Row indices of a store, int64, sorted, without repeats; every row is in at most one part."""

    rule: SplitRule
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]


def split_rows(store: States, rule: SplitRule = "document") -> Split:
    """The rows of `store` as train, valid and test.

    "document" is the store's own split: all rows of a document are in one part. "byte" is the split of
    Carvalho 2018 (`train_test_split` with 10 % test and seed 1, then 10 % of the rest: 81/9/10): bytes of one
    word are in both train and test, so its scores are too good; it is there for comparison.

    Raises:
        InputError: an unknown rule, or a store with too few rows for a random split.
    """
    if rule == "document":
        of_row = store.document_split[store.document_of_row]
        train, valid, test = (np.flatnonzero(of_row == part) for part in range(len(NAMES)))
        return Split(rule, train, valid, test)
    if rule == "byte":
        if store.rows < 10:
            raise InputError(f"split 'byte': expected a store of at least 10 rows, this one has {store.rows}")
        rest, test = train_test_split(np.arange(store.rows), test_size=0.1, random_state=1)
        train, valid = train_test_split(rest, test_size=0.1, random_state=1)
        return Split(rule, np.sort(train), np.sort(valid), np.sort(test))
    raise InputError(f"split: expected 'document' or 'byte', got {rule!r}")


def limit_rows(store: States, rows: NDArray[np.int64], max_rows: int | None, seed: int) -> NDArray[np.int64]:
    """At most `max_rows` of `rows`, the rows of whole documents, drawn by `seed`; None: all of them.

    Documents are drawn without replacement until the next would be too much.

    Raises:
        InputError: `max_rows` is smaller than the first document drawn.
    """
    if max_rows is None or rows.size <= max_rows:
        return rows
    document = store.document_of_row[rows]
    documents, counts = np.unique(document, return_counts=True)
    order = np.random.default_rng(seed).permutation(documents.size)
    taken = np.searchsorted(np.cumsum(counts[order]), max_rows, side="right")
    if taken == 0:
        raise InputError(
            f"max_rows: {max_rows} rows are less than one document ({counts[order[0]]} rows): expected more"
        )
    return rows[np.isin(document, documents[order[:taken]])]


def read_rows(store: States, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The cell states (len(rows), U) of sorted `rows`, read chunk by chunk, skipping chunks without a row."""
    out = np.empty((rows.size, store.units.size), dtype=np.float32)
    cuts = np.searchsorted(rows, np.arange(0, store.rows + BLOCK_ROWS, BLOCK_ROWS))
    for block, (first, last) in enumerate(pairwise(cuts)):
        if first < last:
            start = block * BLOCK_ROWS
            states = store.read(start, min(start + BLOCK_ROWS, store.rows))
            out[first:last] = states[rows[first:last] - start]
    return out


def check_untrained(store: States, untrained: States) -> None:
    """The untrained store is the same rows of the same text by the same architecture: only the weights differ.

    Raises:
        InputError: it is of a trained model, of a model of another size, of another text, or has other rows, cells or
            precision.
    """
    if not untrained.attributes.model.untrained:
        raise InputError(f"{untrained.path}: expected a store of the untrained model, this one's is trained")
    trained, other = store.attributes, untrained.attributes
    for name, expected, got in (
        ("hidden size", trained.model.hidden_size, other.model.hidden_size),
        *(
            (f"text's {field.name}", getattr(trained.text, field.name), getattr(other.text, field.name))
            for field in dataclasses.fields(TextAttributes)
        ),
        ("rows rule", trained.rows, other.rows),
        ("state rule", trained.state, other.state),
        ("dtype", trained.dtype, other.dtype),
        ("number of rows", store.rows, untrained.rows),
        ("cells", store.units.tolist(), untrained.units.tolist()),
    ):
        if expected != got:
            raise InputError(
                f"{untrained.path}: expected the {name} of {store.path} ({shorten(str(expected), 60)}), "
                f"got {shorten(str(got), 60)}"
            )
