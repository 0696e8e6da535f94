"""The `states` suite's own machinery, without a GPU: small, whole, and with states that are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from corpora import random_text, write_corpus
from torch import Tensor

from bench import records, states
from fastlstm.states.packing import Packed, Window
from fastlstm.states.shards import GroupBuffer
from fastlstm_kernels import reductions

SMALL = ["--device", "cpu", "--hidden-size", "16", "--turns", "1", "--commit", "abc"]
SMALL += ["--stored", "0.01", "--reduced", "0.01"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(states, "READ_ROWS", 1 << 17)
    monkeypatch.setattr(reductions, "_interpreted", lambda: False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", {"train": random_text(40, 50)}).folder


def test_runs_whole_on_the_cpu(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "states.csv"
    (tmp_path / "disk").mkdir()
    (tmp_path / "memory").mkdir()
    folders = ["--folder", str(tmp_path / "disk"), "--tmpfs", str(tmp_path / "memory")]
    assert states.main([*SMALL, *folders, "--data", str(corpus), "--out", str(path)]) == 0
    rows = records.load(path)
    found = {(row["case"], row["contestant"], row["metric"]) for row in rows}
    assert found >= {
        ("extract", "fastlstm", "throughput"),
        *((case, who, "throughput") for case in ("write", "write_tmpfs") for who in ("fastlstm", "raw")),
        *((case, "fastlstm", "wall_ratio") for case in ("write", "write_tmpfs", "writer")),
        *((case, "fastlstm", "throughput") for case in ("units_16", "last_state", "document_mean", "statistics")),
        *(("scan", who, "rate") for who in ("fastlstm", "zarr", "raw")),
        *((case, who, "time") for case in ("unit", "documents") for who in ("fastlstm", "zarr")),
    }
    for row in rows:
        assert (row["suite"], row["H"], row["device"]) == ("states", "16", "cpu")
        assert 0 < float(row["p20"]) <= float(row["median"]) <= float(row["p80"])
    assert not any((tmp_path / "disk").iterdir())
    assert not any((tmp_path / "memory").iterdir())


def test_wrong_states_are_not_timed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = GroupBuffer.take

    def wrong(buffer: GroupBuffer, cells: Tensor, packed: Packed, window: Window) -> None:
        right(buffer, cells.roll(1, 0), packed, window)

    monkeypatch.setattr(GroupBuffer, "take", wrong)
    with pytest.raises(AssertionError, match="states: relative error"):
        states.main([*SMALL, "--data", str(corpus), "--folder", str(tmp_path), "--out", str(tmp_path / "states.csv")])
    assert not (tmp_path / "states.csv").exists()
