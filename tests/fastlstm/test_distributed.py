"""Two processes with gloo: the loss of one process with the joint batch, and the same bits after a restart."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
import torch
from corpora import random_text, write_corpus
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm import InputError
from fastlstm.config import load_config
from fastlstm.training.checkpoint import checkpoints
from fastlstm.training.config import TrainConfig, resolved
from fastlstm.training.distributed import GradientSum, World
from fastlstm.training.loop import train
from fastlstm.training.optimizer import Adam
from fastlstm.training.start import build_model
from fastlstm.training.step import TrainStep
from fastlstm_kernels import gradients, reference
from tolerance import assert_as_good_as, relative_error

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


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@pytest.mark.parametrize(("backend", "H"), [("triton", 16), ("hopper", 256)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_two_gpus_sum_in_a_graph_as_outside(tmp_path: Path, backend: str, H: int, precision: str) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(30, 37), "valid": random_text(3, 37, seed=1)})
    how = ["run.device=cuda", f"run.backend={backend}", f"model.hidden_size={H}", f"optimizer.precision={precision}"]
    for graph in ("true", "false"):
        launch(corpus.folder, tmp_path / graph, *how, f"run.graph={graph}")
    files = [checkpoints(tmp_path / run)[-1] / "weights.safetensors" for run in ("true", "false")]
    assert files[0].read_bytes() == files[1].read_bytes()
    train(load_config(TrainConfig, "demo", [*SETTINGS, *how]), corpus.folder, tmp_path / "one", progress=False)
    # A sum that is missing or made twice: 0.5 and more, of these gradients that are clipped together.
    weights, alone = (load_file(checkpoints(tmp_path / run)[-1] / "weights.safetensors") for run in ("true", "one"))
    assert weights.keys() == alone.keys()
    for name, tensor in weights.items():
        assert relative_error(tensor, alone[name]) < 0.05, name


def test_streams_are_divided_evenly_or_not_at_all() -> None:
    assert [World(rank, 3).streams(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with pytest.raises(InputError, match=r"data\.batch_size: expected a multiple of the 5 processes, got 12 streams"):
        World(0, 5).streams(12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_gradient_keeps_its_place_in_the_block(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = [torch.randn(shape).to(torch.bfloat16) for shape in ((3, 5), (1,), (130,))]
    monkeypatch.setattr("torch.distributed.all_reduce", lambda block: block.mul_(2))
    sums = GradientSum(gradients, dtype, World(0, 2), head=gradients[0])(gradients)
    for got, gradient in zip(sums, gradients, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got.float(), 2 * gradient.float())
        assert got.data_ptr() % 64 == 0


class Twin:
    """A second process with the same streams, so that a sum is twice what this one has; it arrives when waited for."""

    def __init__(self) -> None:
        self.summed: list[Tensor] = []
        self.under_way: list[Tensor] = []
        self.most_under_way = 0

    def all_reduce(self, tensor: Tensor, *, async_op: bool = False) -> Twin | None:
        assert tensor.is_contiguous()
        self.summed.append(tensor)
        self.under_way.append(tensor)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        if async_op:
            return self
        assert self.under_way == [tensor], "sums that the backward began have ended"
        self.wait()
        return None

    def wait(self) -> None:
        for tensor in self.under_way:
            tensor.mul_(2)
        self.under_way.clear()


class Update:
    """One update on ``world``'s share of six streams, the last three the same as the first."""

    def __init__(self, world: World, *settings: str) -> None:
        sizes = ["model.hidden_size=16", "data.window=8", "data.batch_size=6", "run.backend=torch"]
        config = resolved(load_config(TrainConfig, None, [*sizes, *settings]), torch.device("cpu"))
        self.model = build_model(config.model)
        self.step = TrainStep(self.model, config, world)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, 256, (9, 3), dtype=torch.uint8, generator=generator)
        self.step.packet.ids.copy_(ids.repeat(1, 2 // world.size))
        if self.step.packet.resets is not None:
            resets = torch.rand((8, 3), generator=generator) < 0.3
            self.step.packet.resets.copy_(resets.repeat(1, 2 // world.size))

    def gradients(self) -> dict[str, Tensor]:
        """What the optimizer is given, less the scale of the loss."""
        optimizer, given = self.step.optimizer, []

        def update(sums: Sequence[Tensor], rate: Tensor) -> tuple[Tensor, Tensor]:
            given.extend(gradient / optimizer.scale for gradient in sums)
            return Adam.update(optimizer, sums, rate)

        with mock.patch.object(optimizer, "update", update):
            self.step.run()
        return dict(zip(self.step.names, given, strict=True))

    def true_gradients(self) -> dict[str, Tensor]:
        """In float64 by autograd alone."""
        packet, model = self.step.packet, copy.deepcopy(self.model).double()
        logits, _ = model(packet.ids[:-1], None, packet.resets)
        F.cross_entropy(logits.flatten(0, 1), packet.ids[1:].flatten().long()).backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("reset", ["document", "shard"])
@pytest.mark.parametrize("all_reduce", ["auto", "fp32"])
def test_sums_are_the_joint_batch_s_each_made_once(
    precision: str, reset: str, all_reduce: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = (f"optimizer.precision={precision}", f"data.reset={reset}", f"optimizer.all_reduce={all_reduce}")
    twin = Twin()
    monkeypatch.setattr("torch.distributed.all_reduce", twin.all_reduce)
    truth = Update(World(), *how).true_gradients()
    alone = Update(World(), *how).gradients()
    assert not twin.summed, "alone nothing is summed"
    joint = Update(World(0, 2), *how).gradients()
    for name, gradient in joint.items():
        assert_as_good_as(name, gradient, alone[name], truth[name])

    ranges = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in twin.summed)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ranges)), "summed twice"
    # On a CPU the layer's own gradients are made in float32, whatever the precision.
    early = precision == "fp32"
    shapes = [tuple(tensor.shape) for tensor in twin.summed]
    assert shapes[:-1] == ([(256, 16), *[(16, 16)] * 4] if early else [])
    assert twin.most_under_way == len(shapes) - early
    padded = sum(-(-gradient.numel() // 64) * 64 for gradient in joint.values())
    assert sum(tensor.numel() for tensor in twin.summed) == padded


def test_a_backward_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, update = Twin(), Update(World(0, 2))
    monkeypatch.setattr("torch.distributed.all_reduce", twin.all_reduce)
    with monkeypatch.context() as broken:
        broken.setattr(gradients, "weight_gradient", mock.Mock(side_effect=RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            update.step.run()
    assert gradients.current_exchange() is None
    model = update.step.working
    model(update.step.packet.ids[:-1])[0].sum().backward()
    assert not twin.summed
    truth = update.true_gradients()
    for name, gradient in update.gradients().items():
        assert_as_good_as(name, gradient, Update(World()).gradients()[name], truth[name])


def test_every_backward_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, weight, head = Twin(), torch.ones(2, 3), torch.ones(4, requires_grad=True)
    monkeypatch.setattr("torch.distributed.all_reduce", twin.all_reduce)
    sums = GradientSum([weight, head], torch.float32, World(0, 2), head=head)

    def fail() -> None:
        with sums.beside_products():
            torch.autograd.grad(head.sum(), head)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    of_weight, of_head = torch.rand(2, 3), torch.rand(4)
    expected = 2 * of_weight, 2 * of_head
    with sums.beside_products():
        sums.start(weight, of_weight)
        sums.wait()
    assert twin.summed == [of_weight], "nothing of the backward that failed"
    assert all(map(torch.equal, sums([of_weight, of_head]), expected))
    with sums.beside_products():
        pass
    assert all(map(torch.equal, sums([of_weight, of_head]), (2 * expected[0], expected[1]))), "nothing was begun"


@pytest.mark.parametrize("given", ["h0", "no h0", "resets", "one step"])
def test_a_part_is_handed_over_before_the_next_is_multiplied(given: str) -> None:
    T, B, H = (1 if given == "one step" else 5), 3, 6
    d_gates, h, h0 = torch.randn(T, B, 4 * H), torch.randn(T, B, H), torch.randn(B, H)
    resets = torch.rand(T, B) < 0.3 if given == "resets" else None
    events: list[tuple[str, int]] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
                events.append(("multiplied", result.data_ptr()))
            return result

    with Products():
        factors = gradients.weight_factors(d_gates, h, None if given == "no h0" else h0, resets)
        made = gradients.weight_gradient(factors, lambda rows: events.append(("finished", rows.data_ptr())))
    starts = [rows.data_ptr() for rows in made.tensor_split(gradients.PARTS)]
    each = ["multiplied", "multiplied", "finished"] if given == "h0" else ["multiplied", "finished"]
    assert events == [(event, start) for start in starts for event in each]
    first = torch.zeros_like(h0) if given == "no h0" else h0
    truth = reference.weight_gradient(d_gates.double(), h.double(), first.double(), resets)
    assert_as_good_as("weight", made, reference.weight_gradient(d_gates, h, first, resets), truth)
