"""Statistics and means of a dump, against the states that the same dump stores."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from test_dump import SMALL, H, dump, endless, livelier, write_checkpoint, write_corpus

from fastlstm.corpus.shards import Document, Word
from fastlstm.errors import InputError
from fastlstm.states import open_states, open_statistics
from fastlstm.states.gather import largest
from fastlstm.states.statistics import BINS, CONTEXT, LOW, TOP, WIDTH
from fastlstm_kernels import reductions

TAGSET = ("A", "B", "C")
ROUNDING = 1e5 * np.finfo(np.float64).eps  # of sums of some 3,000 values below 8 squared


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are held against it in tests/kernels/test_reductions.py, where the interpreter has less to do."""
    monkeypatch.setattr(reductions, "_interpreted", lambda: False)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for (module, name), value in SMALL.items():
        monkeypatch.setattr(module, name, value)


def documents() -> list[tuple[str, Document]]:
    """Forty of 1 to 90 bytes, one of 700; every third without a label, all with tagged words."""
    rng = np.random.default_rng(1)
    given = []
    for i in range(40):
        size = 700 if i == 20 else int(rng.integers(1, 90))
        text = bytes(rng.choice(list(b"ab c\n"), size).tolist())
        words, start = [], 0
        while start + 2 < size:
            stop = min(size, start + int(rng.integers(1, 8)))
            words.append(Word(start, stop, TAGSET[int(rng.integers(0, 2))]))
            start = stop + int(rng.integers(0, 3))
        given.append(("train", Document(f"d{i}", text, label=[0.0, 1.0, None][i % 3], words=tuple(words))))
    return given


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"), change=livelier)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "tagged", documents(), TAGSET)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(("rows", "units"), [("all", None), ("every:3", [7, 2]), ("word", None), ("document", None)])
def test_statistics_are_those_of_the_stored_rows(
    checkpoint: Path, tagged: Path, tmp_path: Path, rows: str, units: list[int] | None
) -> None:
    options = {"rows": rows, "units": units, "batch_size": 4}
    dump(checkpoint, tagged, tmp_path / "both", keep=["statistics", "states"], **options)
    store, found = open_states(tmp_path / "both"), open_statistics(tmp_path / "both")
    x = store.read(0, store.rows).astype(np.float64)
    y = store.document_label[store.document_of_row].astype(np.float64)
    known = ~np.isnan(y)
    tag = store.byte_tags()[store.position]
    assert found.count == store.rows
    np.testing.assert_array_equal(found.units, store.units)
    for sums, expected in (
        (found.sum, x.sum(0)),
        (found.sum_squares, (x * x).sum(0)),
        (found.label_sums, [known.sum(), y[known].sum(), (y[known] ** 2).sum()]),
        (found.labelled_sum, x[known].sum(0)),
        (found.labelled_sum_squares, (x[known] ** 2).sum(0)),
        (found.labelled_cross, (x[known] * y[known, None]).sum(0)),
        (found.tag_sum, [x[tag == k].sum(0) for k in range(len(TAGSET))]),
        (found.mean, x.mean(0)),
        (found.std, x.std(0)),
        (found.label_correlation(), [np.corrcoef(column[known], y[known])[0, 1] for column in x.T]),
        (found.label_difference(), x[y == 1].mean(0) - x[y == 0].mean(0)),
    ):
        assert np.abs(sums - np.array(expected)).max() < ROUNDING
    np.testing.assert_array_equal(found.tag_count, [(tag == k).sum() for k in range(len(TAGSET))])
    assert np.abs(found.tag_difference()[0] - (x[tag == 0].mean(0) - x[tag != 0].mean(0))).max() < ROUNDING
    np.testing.assert_array_equal(found.minimum, x.min(0))
    np.testing.assert_array_equal(found.maximum, x.max(0))
    assert len(found.edges) == BINS + 1
    for histogram, column in zip(found.histogram, x.T, strict=True):
        np.testing.assert_array_equal(histogram[1:-1], np.histogram(column, found.edges)[0])
        assert histogram[[0, -1]].tolist() == [(column < LOW).sum(), (column >= LOW + WIDTH * BINS).sum()]
    assert_top(store, found, x)

    dump(checkpoint, tagged, tmp_path / "alone", keep=["statistics"], **options)
    alone = tmp_path / "alone"
    for path in (path for path in (tmp_path / "both" / "statistics").rglob("*") if path.is_file()):
        assert (alone / path.relative_to(tmp_path / "both")).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in alone.iterdir()) == ["statistics", "units", "zarr.json"]
    with pytest.raises(InputError, match=r"holds statistics alone, which .*open_statistics reads"):
        open_states(alone)


def assert_top(store, found, x) -> None:  # type: ignore[no-untyped-def]
    """The largest row of each document, the largest documents first; the text before it."""
    for unit in range(x.shape[1]):
        best = [
            (-x[first:last, unit].max(), first + x[first:last, unit].argmax(), document)
            for document, (first, last) in enumerate(zip(store.row_offset, store.row_offset[1:], strict=False))
            if last > first
        ]
        expected = sorted(best)[:TOP]
        there = len(expected)
        np.testing.assert_array_equal(found.top_value[:there, unit], [-value for value, _, _ in expected])
        np.testing.assert_array_equal(found.top_position[:there, unit], store.position[[r for _, r, _ in expected]])
        np.testing.assert_array_equal(found.top_document[:there, unit], [document for _, _, document in expected])
        for i, (_, row, document) in enumerate(expected):
            text = store.document_text(document)[: store.position[row] + 1 - store.document_offset[document]]
            assert found.top_context[i, unit].tobytes() == text[-CONTEXT:].rjust(CONTEXT, b"\0")


def test_few_documents_leave_places_empty(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", [("train", Document("a", b"ab")), ("train", Document("b", b"c"))])
    dump(checkpoint, folder, tmp_path / "store", keep=["statistics"])
    found = open_statistics(tmp_path / "store")
    assert np.isfinite(found.top_value[:2]).all()
    assert np.isnan(found.top_value[2:]).all()
    assert (found.top_position[2:] == -1).all()
    assert (found.top_document[2:] == -1).all()
    assert not found.top_context[2:].any()
    assert found.tag_sum.shape == (0, H)
    assert np.isnan(found.label_correlation()).all()


def test_of_equal_states_the_first_and_no_document_twice() -> None:
    value = np.array([[1.0], [3.0], [3.0], [2.0], [-np.inf]])
    row = np.array([[5], [9], [4], [1], [0]])
    document = np.array([[2], [3], [1], [3], [-1]])
    value, row, document = largest(value, row, document)
    assert row[:3].flatten().tolist() == [4, 9, 5]
    assert document.flatten().tolist() == [1, 3, 2, -1, -1]


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    run = write_checkpoint(tmp_path / "run", change=endless)
    folder = write_corpus(tmp_path / "corpus", [("train", Document("d", b"x"))])
    with pytest.raises(InputError, match="documents 'd' to 'd', unit 5: a cell state is not finite"):
        dump(run, folder, tmp_path / "store", keep=["statistics"])
    with pytest.raises(InputError, match="unfinished"):
        open_statistics(tmp_path / "store")


def test_a_store_without_statistics_says_so(checkpoint: Path, tagged: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a states store"):
        open_statistics(tmp_path / "store")
    dump(checkpoint, tagged, tmp_path / "store", rows="document")
    with pytest.raises(InputError, match="has no statistics: fastlstm dump --keep statistics makes them"):
        open_statistics(tmp_path / "store")
    dump(checkpoint, tagged, tmp_path / "other", rows="document", keep=["statistics"])
    (tmp_path / "other" / "statistics" / "sum" / "zarr.json").unlink()
    with pytest.raises(InputError, match="array sum is missing"):
        open_statistics(tmp_path / "other")


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("rows", ["document", "word"])
@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("state", ["document", "running"])
def test_means_are_over_the_bytes_of_a_document_or_word(
    checkpoint: Path, tagged: Path, tmp_path: Path, rows: str, annotated: bool, state: str
) -> None:
    folder = tagged
    if not annotated:
        plain = [(split, Document(document.id, document.text)) for split, document in documents()]
        folder = write_corpus(tmp_path / "plain", plain)
    options = {"batch_size": 3, "dtype": "float32", "state": state}
    dump(checkpoint, folder, tmp_path / "every", rows="all", **options)
    dump(checkpoint, folder, tmp_path / "last", rows=rows, **options)
    dump(checkpoint, folder, tmp_path / "mean", rows=f"{rows}-mean", **options)
    every, last, mean = (open_states(tmp_path / name) for name in ("every", "last", "mean"))
    np.testing.assert_array_equal(mean.position, last.position)
    np.testing.assert_array_equal(mean.row_offset, last.row_offset)
    x = every.read(0, every.rows).astype(np.float64)
    found = mean.read(0, mean.rows)
    start_of = dict(zip(every.word_end, every.word_start, strict=True)) if annotated else {}
    longest = 0
    for row, position in enumerate(mean.position.tolist()):
        document = int(mean.document_of_row[row])
        begin = int(mean.document_offset[document])
        if rows == "word":
            run = every.text[begin : position + 1].tobytes()
            begin = start_of[position + 1] if annotated else position + 1 - len(run.split()[-1])
        expected = x[begin : position + 1].mean(0)
        assert np.abs(found[row] - expected).max() < 1000 * np.finfo(np.float32).eps
        longest = max(longest, position + 1 - begin)
    assert longest > (300 if rows == "document" else 5)
