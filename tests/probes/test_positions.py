"""Scores at the first and last byte of words and of word means, on cells that know a word only once it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastlstm.corpus.shards import Document, Word
from fastlstm.states import States
from fastlstm_probes.classifiers import Part
from fastlstm_probes.part_of_speech import fit_part_of_speech
from fastlstm_probes.positions import word_means
from fastlstm_probes.results import PositionScore
from fastlstm_probes.words import word_of_row, word_types
from planted_store import PlantedText, every_byte, write_store

WORD, WORDS, DOCUMENTS = 4, 12, 45
TAGSET = ("ONE", "TWO")


def _text() -> PlantedText:
    """Words of four bytes that say nothing, of one of two tags drawn at random."""
    rng = np.random.default_rng(0)
    documents = []
    for number in range(DOCUMENTS):
        tags = rng.integers(0, 2, WORDS)
        words = tuple(Word(2 + 5 * i, 6 + 5 * i, TAGSET[tag]) for i, tag in enumerate(tags))
        text = b"\n " + b" ".join(rng.choice([b"abcd", b"efgh"], WORDS).tolist())
        documents.append(Document(f"d{number}", text, None, words))
    return PlantedText(documents, [0] * 25 + [1] * 5 + [2] * 15, TAGSET)


def _store(folder: Path, rows: str) -> States:
    """Cell 0 knows the tag at the last byte of a word, cell 1 whether a byte is in a word; the others are noise."""
    text = _text()
    size = len(text.documents[0].text)
    tags = np.array([[TAGSET.index(word.tag) for word in document.words or ()] for document in text.documents])
    inside = np.zeros((DOCUMENTS, size), bool)
    last = np.zeros((DOCUMENTS, size))
    for i in range(WORDS):
        inside[:, 2 + 5 * i : 6 + 5 * i] = True
        last[:, 5 + 5 * i] = 2.0 * tags[:, i] - 1
    cells = 0.1 * np.random.default_rng(1).standard_normal((DOCUMENTS * size, 6))
    cells[:, 0] += 4 * last.ravel()
    cells[:, 1] += 4 * inside.ravel() - 2
    position = every_byte(text)
    if rows == "word":
        position = position[(last != 0).ravel()]
    return write_store(folder / rows, text, position, cells[position], rows=rows)


def _scores(store: States, **settings: object) -> dict[tuple[str, str], PositionScore]:
    result = fit_part_of_speech(store, group=False, C=1.0, controls=("positions",), progress=False, **settings)
    return {(one.position, one.k): one for one in result.positions}


def test_a_tag_that_is_known_at_the_end_is_not_known_at_the_beginning(tmp_path: Path):
    scores = _scores(_store(tmp_path, "all"))
    assert {place for place, _ in scores} == {"first byte", "last byte", "word mean"}
    assert {k for _, k in scores} == {"all", "1", "2", "3"}
    assert {one.rows for one in scores.values()} == {15 * WORDS}
    assert scores["last byte", "all"].accuracy > 0.98
    assert scores["word mean", "all"].accuracy > 0.98
    assert scores["word mean", "all"].train_rows == 25 * WORDS  # refitted on words
    assert scores["first byte", "all"].accuracy < 0.65  # of two tags as frequent as one another
    for one in scores.values():
        assert one.low <= one.accuracy <= one.high


def test_rows_of_last_bytes_have_no_other_position(tmp_path: Path):
    assert {place for place, _ in _scores(_store(tmp_path, "word"))} == {"last byte"}


def test_parts_of_bytes_have_no_whole_words(tmp_path: Path):
    assert {place for place, _ in _scores(_store(tmp_path, "all"), split="byte")} == {"first byte", "last byte"}


def test_words_of_rows_and_their_types_are_the_texts(tmp_path: Path):
    store = _store(tmp_path, "all")
    expected = np.full(store.rows, -1)
    types = []
    for document, text in enumerate(_text().documents):
        for i, word in enumerate(text.words or ()):
            start = int(store.document_offset[document])
            expected[start + word.start : start + word.end] = document * WORDS + i
            types.append(text.text[word.start : word.end])
    np.testing.assert_array_equal(word_of_row(store), expected)
    numbers = word_types(store)
    assert len(numbers) == len(types)
    assert {(number, name) for number, name in zip(numbers.tolist(), types, strict=True)} in (
        {(0, b"abcd"), (1, b"efgh")},
        {(1, b"abcd"), (0, b"efgh")},
    )


def test_word_means_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    word = np.array([-1, 3, 3, 3, -1, 4, 5, 5, -1, -1, 9])
    X = rng.standard_normal((11, 300)).astype(np.float32)  # more columns than are summed at a time
    part = Part(np.arange(11) + 50, X, np.arange(11, dtype=np.int16), np.arange(11) // 4)
    means = word_means(part, word)
    for place, one in enumerate((3, 4, 5, 9)):
        rows = np.flatnonzero(word == one)
        np.testing.assert_allclose(means.X[place], X[rows].astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)
        assert (means.index[place], means.code[place], means.document[place]) == (50 + rows[0], rows[0], rows[0] // 4)
    assert word_means(part, np.full(11, -1)).code.size == 0
