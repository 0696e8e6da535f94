"""Baselines and controls against naive computations and planted truths; their names."""

from __future__ import annotations

import numpy as np
import pytest

from fastlstm.errors import InputError
from fastlstm_probes.baselines import RANDOM_DRAWS, ngram_classes, random_cells, random_cells_scores
from fastlstm_probes.classifiers import Part, predict
from fastlstm_probes.control_fits import ControlFits
from fastlstm_probes.controls import CONTROLS, check_controls, parse_controls


def test_names_of_controls():
    assert parse_controls("all") == CONTROLS
    assert parse_controls("none") == ()
    assert parse_controls("mdl, ngram  mdl") == ("ngram", "mdl")  # each once, in one order
    assert check_controls({"positions"}) == ("positions",)
    for text in ("mdl,colour", "all,mdl", "none mdl"):
        with pytest.raises(InputError, match=r"controls: expected names of ngram, random, .*, got '(colour|all|none)'"):
            parse_controls(text)
    with pytest.raises(InputError, match="controls: expected 'all', 'none', or names of"):
        parse_controls(" , ")


def test_a_control_of_one_class_names_it_with_any_number_of_cells():
    X = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    found = ControlFits(("a", "b")).fit_top("word means", X, np.ones(30, dtype=np.int16), {1: 0.25}, (1, 2))
    for k in ("all", "1", "2"):
        assert predict(found, k, X).tolist() == [1] * 30


def _naive_ngram(
    text: bytes, begin: list[int], position: list[int], train: list[int], code: list[int], longest: int
) -> list[int]:
    tables: list[dict[bytes, list[int]]] = [{} for _ in range(longest + 1)]
    for row, of_row in zip(train, code, strict=True):
        for length in range(longest + 1):
            first = position[row] + 1 - length
            if first >= begin[row]:
                tables[length].setdefault(text[first : position[row] + 1], []).append(of_row)
    found = []
    for b, p in zip(begin, position, strict=True):
        known = [
            seen
            for length in range(longest, -1, -1)
            if p + 1 - length >= b and (seen := tables[length].get(text[p + 1 - length : p + 1]))
        ]
        found.append(max(sorted(set(known[0])), key=known[0].count))
    return found


@pytest.mark.parametrize("longest", [1, 2, 4])
def test_the_byte_ngram_is_that_of_a_dictionary(longest: int):
    rng = np.random.default_rng(longest)
    text = rng.choice(np.frombuffer(b"ab\xff\x00 ", np.uint8), 1500)
    offset = np.array([0, 1, 3, 400, 402, 900, 1500])  # documents shorter than a context too
    position = np.sort(rng.choice(1500, 900, replace=False))
    begin = offset[np.searchsorted(offset, position, side="right") - 1]
    train = np.sort(rng.choice(900, 300, replace=False))
    code = rng.integers(0, 4, 300).astype(np.int16)
    found, contexts = ngram_classes(text, begin, position, train, code, longest)
    naive = _naive_ngram(text.tobytes(), begin.tolist(), position.tolist(), train.tolist(), code.tolist(), longest)
    assert found.tolist() == naive
    substrings = {
        text[p + 1 - length : p + 1].tobytes()
        for b, p in zip(begin[train], position[train], strict=True)
        for length in range(1, longest + 1)
        if p + 1 - length >= b
    }
    assert contexts == len(substrings)


def _planted(rows: int, cells: int, classes: int, seed: int) -> Part:
    """Cell i is high where the class is i, for each class; all other cells are noise."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, classes, rows).astype(np.int16)
    X = rng.standard_normal((rows, cells)).astype(np.float32)
    X[:, :classes] += 8 * (code[:, None] == np.arange(classes))
    return Part(np.arange(rows), X, code, np.arange(rows) // 20)


def test_random_cells_know_less_than_chosen_ones_and_all_of_them_as_much():
    train, test = _planted(1200, 40, 6, 0), _planted(600, 40, 6, 1)
    fits = ControlFits(tuple("abcdef"))
    tags = fits.fit_top("tags", train.X, train.code, dict.fromkeys(range(6), 0.25), (1,))
    full = {tag.code: tag.full for tag in tags}
    one, everything = random_cells_scores(fits, train, test, full, (1, 40))
    assert [one.name, everything.name] == [random_cells(1), "40 random cells per tag"]
    chosen = (predict(tags, "1", test.X) == test.code).mean()
    assert chosen > 0.98
    assert one.test < 0.45  # six draws of 40 cells, of which six know something
    # All cells in another order: the optimum is the same up to the tolerance, whatever was drawn.
    assert everything.test == pytest.approx((predict(tags, "all", test.X) == test.code).mean(), abs=0.005)
    assert one.detail.startswith(f"mean of {RANDOM_DRAWS} draws")
    assert one.test_low < one.test < one.test_high
    again = random_cells_scores(fits, train, test, full, (1,))
    assert again == [one]
