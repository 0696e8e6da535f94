"""Windows of bytes: what is read, in which order, and where the state starts from zero."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpora import random_text, write_corpus

from fastlstm import InputError
from fastlstm.corpus.batches import EvaluationWindows, Position, Schedule, TrainReader, TrainWindows


def test_windows_are_contiguous_streams_with_the_next_byte_as_target(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(5, 20)})
    shard = corpus.open_shard(corpus.shards("train")[0])
    windows = TrainWindows(shard, batch_size=3, window=4, reset="shard")
    assert windows.count == 99 // 12
    text, stream = bytes(shard.bytes), 8 * 4
    for b in range(3):
        read = b"".join(windows[k].inputs[:, b].tobytes() for k in range(8))
        wanted = b"".join(windows[k].targets[:, b].tobytes() for k in range(8))
        assert read == text[b * stream : (b + 1) * stream]
        assert wanted == text[b * stream + 1 : (b + 1) * stream + 1]


def test_resets_mark_every_document_s_first_byte(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(5, 20)})
    shard = corpus.open_shard(corpus.shards("train")[0])
    windows = TrainWindows(shard, batch_size=3, window=4, reset="document")
    flags = np.concatenate([windows[k].resets for k in range(8)])  # (32, 3)
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
    assert [reader(step)[1] for step in range(schedule.steps)] == [True, False] * 4


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
