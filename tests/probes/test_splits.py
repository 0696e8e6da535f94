from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from fastlstm.corpus.shards import Document
from fastlstm.errors import InputError
from fastlstm.states import States
from fastlstm_probes.splits import check_untrained, limit_rows, read_rows, split_rows
from planted_store import PlantedText, every_byte, write_store


def _text(documents: int = 120) -> PlantedText:
    rng = np.random.default_rng(1)
    return PlantedText(
        [Document(f"d{i}", b"\n " + b"x" * int(rng.integers(40, 120))) for i in range(documents)],
        [0] * (documents - 40) + [1] * 20 + [2] * 20,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> States:
    """Every byte of 120 documents: more rows than one chunk."""
    text = _text()
    position = every_byte(text)
    states = position[:, None] * 1.0 + np.array([0.0, 0.25])
    store = write_store(tmp_path_factory.mktemp("splits") / "store", text, position, states, rows="all")
    assert store.rows > 2 * 4096
    return store


def test_document_split_is_the_stores_and_shares_no_document(store):
    split = split_rows(store, "document")
    parts = [set(store.document_of_row[rows].tolist()) for rows in (split.train, split.valid, split.test)]
    assert [len(part) for part in parts] == [80, 20, 20]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    np.testing.assert_array_equal(np.concatenate([split.train, split.valid, split.test]), np.arange(store.rows))


def test_byte_split_is_carvalhos(store):
    split = split_rows(store, "byte")
    rest, test = train_test_split(np.arange(store.rows), test_size=0.1, random_state=1)
    train, valid = train_test_split(rest, test_size=0.1, random_state=1)
    for ours, theirs in ((split.train, train), (split.valid, valid), (split.test, test)):
        np.testing.assert_array_equal(ours, np.sort(theirs))
    shares = [round(100 * len(part) / store.rows) for part in (split.train, split.valid, split.test)]
    assert shares == [81, 9, 10]
    np.testing.assert_array_equal(
        np.sort(np.concatenate([split.train, split.valid, split.test])), np.arange(store.rows)
    )
    assert np.intersect1d(store.document_of_row[split.train], store.document_of_row[split.test]).size


def test_unknown_split_is_refused(store):
    with pytest.raises(InputError, match="split: expected 'document' or 'byte', got 'word'"):
        split_rows(store, "word")


def test_limit_takes_whole_documents_and_the_same_again(store):
    train = split_rows(store).train
    limited = limit_rows(store, train, 2000, seed=3)
    np.testing.assert_array_equal(limited, limit_rows(store, train, 2000, seed=3))
    assert not np.array_equal(limited, limit_rows(store, train, 2000, seed=4))
    longest = np.diff(store.row_offset).max()
    assert 2000 - longest < limited.size <= 2000
    for document in np.unique(store.document_of_row[limited]):
        rows = np.arange(store.row_offset[document], store.row_offset[document + 1])
        assert np.isin(rows, limited).all()


def test_limit_above_the_rows_and_none_change_nothing(store):
    train = split_rows(store).train
    assert limit_rows(store, train, None, seed=0) is train
    assert limit_rows(store, train, train.size, seed=0) is train


def test_limit_below_one_document_is_refused(store):
    with pytest.raises(InputError, match=r"max_rows: 3 rows are less than one document \(\d+ rows\)"):
        limit_rows(store, split_rows(store).train, 3, seed=0)


def test_read_rows_gives_each_row_its_states_across_chunks(store):
    rows = np.array([0, 1, 4095, 4096, 4097, 8191, 8192, store.rows - 1])
    np.testing.assert_array_equal(read_rows(store, rows), rows[:, None] + np.array([0.0, 0.25], np.float32))
    assert read_rows(store, rows[:0]).shape == (0, 2)


def test_untrained_store_must_be_of_the_same_rows(store, tmp_path: Path):
    text = _text(100)
    position = every_byte(text)
    other = write_store(tmp_path / "u", text, position, np.zeros((len(position), 2)), rows="all", untrained=True)
    with pytest.raises(InputError, match="expected the number of rows of"):
        check_untrained(store, other)
    with pytest.raises(InputError, match="expected a store of the untrained model"):
        check_untrained(store, store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 8}, r"expected the hidden size of .*store \(2\), got 8"),
        ({"units": (0, 5), "hidden_size": 2}, r"expected the cells of .*store \(\[0, 1\]\), got \[0, 5\]"),
        ({"dtype": "float16"}, r"expected the dtype of .*store \(float32\), got float16"),
    ],
)
def test_untrained_store_must_be_of_the_same_architecture(store, tmp_path: Path, changes, message):
    text = _text()
    position = every_byte(text)
    zeros = np.zeros((len(position), 2))
    other = write_store(tmp_path / "u", text, position, zeros, rows="all", untrained=True, **changes)
    with pytest.raises(InputError, match=message):
        check_untrained(store, other)
    check_untrained(store, write_store(tmp_path / "same", text, position, zeros, rows="all", untrained=True))
