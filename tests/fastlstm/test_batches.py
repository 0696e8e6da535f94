"""Windows of bytes: what is read, in which order, and where the state starts from zero."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpora import random_text, write_corpus

from fastlstm import InputError
from fastlstm.corpus.batches import EvaluationWindows, Position, Schedule, TrainReader, TrainWindows


def read_all(windows: TrainWindows, T: int, B: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and resets of all windows, one after another: (count * T, B)."""
    ids, resets = np.zeros((windows.count, T + 1, B), np.uint8), np.zeros((windows.count, T, B), np.bool_)
    for k in range(windows.count):
        windows.fill(k, ids[k], resets[k])
    return ids[:, :-1].reshape(-1, B), ids[:, 1:].reshape(-1, B), resets.reshape(-1, B)


def test_windows_are_contiguous_streams_with_the_next_byte_as_target(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(5, 20)})
    shard = corpus.open_shard(corpus.shards("train")[0])
    windows = TrainWindows(shard, batch_size=3, window=4, reset="shard")
    assert windows.count == 99 // 12
    text, stream = bytes(shard.bytes), 8 * 4
    inputs, targets, _ = read_all(windows, 4, 3)
    for b in range(3):
        assert inputs[:, b].tobytes() == text[b * stream : (b + 1) * stream]
        assert targets[:, b].tobytes() == text[b * stream + 1 : (b + 1) * stream + 1]


def test_resets_mark_every_document_s_first_byte(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(5, 20)})
    shard = corpus.open_shard(corpus.shards("train")[0])
    windows = TrainWindows(shard, batch_size=3, window=4, reset="document")
    flags = read_all(windows, 4, 3)[2]  # (32, 3)
    positions = {b * 32 + t for t, b in np.argwhere(flags).tolist()}
    assert positions == {0, 20, 40, 60, 80}


def test_schedule_goes_through_epochs_of_a_shard_before_the_next() -> None:
    schedule = Schedule(windows=(2, 0, 1), epochs_per_shard=2, passes=2)
    assert schedule.steps == 12
    one_pass = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (2, 0, 0), (2, 1, 0)]
    assert [schedule.position(step) for step in range(12)] == [Position(*where) for where in one_pass * 2]


def test_the_state_starts_from_zero_at_each_shard_and_epoch(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(4, 20)}, documents_per_shard=2)
    cut = {"batch_size": 2, "window": 8}
    schedule = Schedule.of(corpus.shards("train"), epochs_per_shard=2, passes=1, **cut)
    reader = TrainReader(corpus, schedule, reset="shard", **cut)
    ids = np.zeros((9, 2), np.uint8)
    assert [reader.fill(step, ids, None) for step in range(schedule.steps)] == [True, False] * 4


def test_processes_share_the_streams_between_them(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(6, 20)}, documents_per_shard=3)
    cut = {"batch_size": 4, "window": 3, "reset": "document"}
    schedule = Schedule.of(corpus.shards("train"), epochs_per_shard=1, passes=2, batch_size=4, window=3)
    readers = [TrainReader(corpus, schedule, **cut, streams=part) for part in (slice(None), slice(0, 2), slice(2, 4))]
    for step in [*range(schedule.steps), 2]:  # and back
        read = []
        for reader, B in zip(readers, (4, 2, 2), strict=True):
            ids, resets = np.zeros((4, B), np.uint8), np.zeros((3, B), np.bool_)
            read.append((reader.fill(step, ids, resets), ids, resets))
        assert read[0][0] == read[1][0] == read[2][0]
        for part in (1, 2):
            assert np.array_equal(read[0][part], np.concatenate((read[1][part], read[2][part]), axis=1))


def test_too_little_text_says_so(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(1, 20)})
    with pytest.raises(InputError, match=r"batch_size 4 x window 8 = 32 bytes \(largest shard: 20 bytes\)"):
        Schedule.of(corpus.shards("train"), batch_size=4, window=8, epochs_per_shard=1, passes=1)


@pytest.mark.parametrize(("batch_size", "window"), [(1, 7), (3, 4), (4, 100), (64, 8)])
def test_evaluation_predicts_every_byte_but_the_first_once(tmp_path: Path, batch_size: int, window: int) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"valid": random_text(3, 17)})
    shard = corpus.open_shard(corpus.shards("valid")[0])
    windows = EvaluationWindows(shard, batch_size=batch_size, window=window, reset="shard")
    pairs = []
    for index in range(windows.count):
        (inputs, targets, _), counts = windows[index]
        pairs += list(zip(inputs[counts].tolist(), targets[counts].tolist(), strict=True))
    text = bytes(shard.bytes)
    assert sorted(pairs) == sorted(pairwise(text))
