"""Two processes with gloo: the loss of one process with the joint batch, and the same bits after a restart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpora import random_text, write_corpus
from safetensors.torch import load_file

from fastlstm import InputError
from fastlstm.config import load_config
from fastlstm.training.checkpoint import checkpoints
from fastlstm.training.config import TrainConfig
from fastlstm.training.distributed import GradientSum, World
from fastlstm.training.loop import train
from tolerance import relative_error

SETTINGS = [
    *("model.hidden_size=16", "data.batch_size=6", "data.window=8", "data.reset=document", "data.passes=9"),
    *("optimizer.learning_rate=0.02", "optimizer.clip=0.1", "optimizer.steps=40", "run.device=cpu"),
    *("run.log_every=10", "run.checkpoint_every=15", "run.keep_checkpoints=9", "run.health_every=20"),
]


def launch(folder: Path, run: Path, *more: str) -> None:
    """Train with two processes of torchrun, on one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fastlstm", "train", "demo", *SETTINGS, *more, "--data", str(folder), "--out", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("40 steps") == 1, "one process speaks"


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    texts = {"train": random_text(30, 37), "valid": random_text(3, 37, seed=1)}
    corpus = write_corpus(tmp_path / "corpus", texts, documents_per_shard=16)
    train(load_config(TrainConfig, "demo", SETTINGS), corpus.folder, tmp_path / "one", progress=False)
    launch(corpus.folder, tmp_path / "two")

    def losses(run: Path) -> list[float]:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["event"] in ("train", "valid")]

    assert len(losses(tmp_path / "two")) == 5
    # Sums in another order: the tenth of a rounding of the loss grows a little in forty updates.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)

    newest = checkpoints(tmp_path / "two")
    assert [folder.name[-2:] for folder in newest] == ["15", "30", "40"]
    state, alone = (load_file(checkpoints(tmp_path / run)[-1] / "training.safetensors") for run in ("two", "one"))
    assert state["state.c"].shape == alone["state.c"].shape == (1, 6, 16)
    assert relative_error(state["state.c"], alone["state.c"]) < 0.01

    shutil.copytree(tmp_path / "two", tmp_path / "again")
    for folder in checkpoints(tmp_path / "again")[1:]:
        shutil.rmtree(folder)
    launch(corpus.folder, tmp_path / "again")
    for name in ("weights.safetensors", "training.safetensors", "checkpoint.json"):
        files = [checkpoints(tmp_path / run)[-1] / name for run in ("two", "again")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_streams_are_divided_evenly_or_not_at_all() -> None:
    assert [World(rank, 3).streams(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(InputError, match=r"data\.batch_size: expected a multiple of the 5 processes, got 12 streams"):
        World(0, 5).streams(12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_gradient_keeps_its_place_in_the_block(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = [torch.randn(shape).to(torch.bfloat16) for shape in ((3, 5), (1,), (130,))]
    monkeypatch.setattr("torch.distributed.all_reduce", lambda block: block.mul_(2))
    sums = GradientSum(gradients, dtype, World(0, 2))(gradients)
    for got, gradient in zip(sums, gradients, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got.float(), 2 * gradient.float())
        assert got.data_ptr() % 64 == 0
