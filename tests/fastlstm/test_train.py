"""Training: the loss falls, a kill changes nothing, and wrong folders are refused."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from corpora import random_text, write_corpus
from safetensors.torch import load_file

from fastlstm import ByteLM, InputError
from fastlstm.cli import main
from fastlstm.config import load_config
from fastlstm.corpus.shards import Corpus
from fastlstm.files import only_writer
from fastlstm.generate import sample
from fastlstm.model import next_byte_loss
from fastlstm.training.checkpoint import (
    CheckpointWriter,
    TrainingState,
    checkpoints,
    load_model,
    save_checkpoint,
)
from fastlstm.training.config import TrainConfig
from fastlstm.training.evaluate import evaluate
from fastlstm.training.loop import train
from fastlstm.training.step import PARTS

SMALL = [
    "model.hidden_size=12",
    "data.batch_size=4",
    "data.window=8",
    "data.epochs_per_shard=2",
    "data.reset=document",
    "optimizer.learning_rate=0.02",
    "run.device=cpu",
    "run.log_every=5",
    "run.validate_every=20",
    "run.checkpoint_every=10",
]


def small(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, None, [*SMALL, *overrides])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    sentence = [b"\n the cat sat on the mat .\n", b"\n the dog sat on the cat .\n"]
    texts = {"train": sentence * 20, "valid": sentence * 3}
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", texts, documents_per_shard=20)


def events(run: Path, kind: str) -> list[dict[str, float]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[-1] / "weights.safetensors")


def test_the_loss_falls_and_the_log_says_so(corpus: Corpus, tmp_path: Path) -> None:
    summary = train(small("data.passes=3"), corpus.folder, tmp_path / "run", progress=False)
    losses = [event["loss"] for event in events(tmp_path / "run", "train")]
    counts = Counter(b"".join(document.text for document in corpus.documents("train")))
    entropy = -sum(n / counts.total() * math.log2(n / counts.total()) for n in counts.values())
    assert losses[0] > entropy > losses[-1]
    assert summary.valid_loss is not None
    assert summary.valid_loss < entropy
    assert events(tmp_path / "run", "train")[-1]["bytes"] == summary.steps * 32


def test_kill_9_and_resume_gives_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastlstm", "train", "demo", *SMALL, "optimizer.steps=none", "data.passes=10",
               "--quiet", "--data", str(corpus.folder), "--out"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)

    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, str(killed)], env=environment)
    while len(checkpoints(killed)) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    stopped_at = load_model(killed)[1].step
    subprocess.run([*command, str(killed)], check=True, env=environment)

    whole = checkpoints(tmp_path / "whole")[-1]
    resumed = checkpoints(killed)[-1]
    assert 0 < stopped_at < int(whole.name.removeprefix("step-"))
    for name in ("weights.safetensors", "training.safetensors", "checkpoint.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    steps = [event["step"] for event in events(killed, "train")]
    assert steps == sorted(set(steps)), "a step is logged twice"


def same_checkpoints(one: Path, other: Path) -> bool:
    names = ("weights.safetensors", "training.safetensors", "checkpoint.json")
    folders = [checkpoints(run)[-1] for run in (one, other)]
    return all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)


def told_to_stop(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look at the cells but the first sends ``number`` to this process."""
    looks = []

    def look(*_: object) -> dict[str, float]:
        looks.append(1)
        if len(looks) == 2:
            os.kill(os.getpid(), number)
        return {}

    monkeypatch.setattr("fastlstm.training.loop.cell_health", look)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_checkpoints_and_the_run_goes_on_to_the_same_bits(
    number: signal.Signals, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("optimizer.steps=25", "run.health_every=7")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    whole = train(config, corpus.folder, tmp_path / "whole", progress=False)
    assert whole.stopped is None
    told_to_stop(number, monkeypatch)
    stopped = train(config, corpus.folder, tmp_path / "run", progress=False)
    assert (stopped.steps, stopped.stopped, stopped.checkpoint.name) == (8, number.name, "step-00000008")
    assert events(tmp_path / "run", "stop")[0]["step"] == 8
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == handlers
    train(config, corpus.folder, tmp_path / "run", progress=False, resume="required")
    assert same_checkpoints(tmp_path / "run", tmp_path / "whole")


def test_a_time_limit_ends_well(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ["train", "demo", *SMALL, "run.time_limit=1e-9", "--data", str(corpus.folder), "--out", str(run)]
    for steps in (1, 2):  # at least one update each time
        assert main([*command, "--quiet"]) == 0
        assert "stopped by the time limit before the last step" in capsys.readouterr().out
        assert [int(folder.name[-8:]) for folder in checkpoints(run)] == list(range(1, steps + 1))


def test_a_slow_cpu_says_how_slow(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for slow, said in ((1e9, False), (0.0, True)):
        monkeypatch.setattr("fastlstm.training.loop.SLOW", slow)
        train(small("optimizer.steps=10"), corpus.folder, tmp_path / f"{said}", progress=True)
        words = "".join(capsys.readouterr())
        assert (
            bool(re.search(r"no GPU: an update took \d+ s, [\d,]+ bytes/s on \d+ threads; the other 9", words)) == said
        )


def test_resuming_can_be_refused_or_required(corpus: Corpus, tmp_path: Path) -> None:
    run, config = tmp_path / "run", small("optimizer.steps=10")
    with pytest.raises(InputError, match="expected a folder with a checkpoint to go on from, found none"):
        train(config, corpus.folder, run, progress=False, resume="required")
    train(config, corpus.folder, run, progress=False, resume="never")
    with pytest.raises(InputError, match="expected a folder without checkpoints, found step-00000010"):
        train(config, corpus.folder, run, progress=False, resume="never")


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(tmp_path: Path) -> None:
    model, state = ByteLM(12), torch.zeros(1, 2, 12)
    training = TrainingState(5, "c" * 64, small(), (state, state.clone()), {"step.head.bias": torch.tensor(5.0)})
    expected = save_checkpoint(tmp_path / "now", model, training, keep=1)
    writer = CheckpointWriter(tmp_path / "later", keep=1)
    writer.save(model, training)
    with torch.no_grad():
        for tensor in (*model.parameters(), state, training.optimizer["step.head.bias"]):
            tensor.fill_(torch.nan)
    later = writer.wait()
    assert later is not None
    for name in ("weights.safetensors", "training.safetensors", "checkpoint.json"):
        assert (later / name).read_bytes() == (expected / name).read_bytes(), name
    writer.save(model, replace(training, step=6))
    with pytest.raises(InputError, match=r"training diverged: lstm\.weight_ih_l0 is not finite at step 6"):
        writer.wait()
    assert [folder.name for folder in checkpoints(tmp_path / "later")] == ["step-00000005"]


def test_a_profile_adds_up(corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "demo", *SMALL, "--data", str(corpus.folder), "--out", str(run), "--profile"]) == 0
    profile = json.loads((run / "profile.json").read_text())
    assert tuple(profile["parts"]) == PARTS
    assert all(milliseconds > 0 for milliseconds in profile["parts"].values())
    assert any(kernel["name"] == "aten::mm" and kernel["calls"] >= 8 for kernel in profile["kernels"])
    printed = capsys.readouterr().out
    shares = [float(share) for share in re.findall(rf"^(?:{'|'.join(PARTS)}) .* (\S+)%$", printed, re.MULTILINE)]
    assert len(shares) == len(PARTS)
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(PARTS))
    assert not checkpoints(run)


def test_evaluation_equals_one_long_stream(corpus: Corpus) -> None:
    model = ByteLM(12, seed=3)
    shard = corpus.open_shard(corpus.shards("valid")[0])
    ids = torch.from_numpy(shard.bytes.copy())[:, None]
    with torch.no_grad():
        logits, _ = model(ids[:-1])
        loss, accuracy = next_byte_loss(logits, ids[1:])
    result = evaluate(model, shard, batch_size=1, window=16, progress=False)
    assert result.loss == pytest.approx(loss.item() / math.log(2), rel=1e-5)  # float32 sums in another order
    assert result.accuracy == pytest.approx(accuracy.item(), rel=1e-6)
    assert result.bytes == len(shard.bytes) - 1


def test_another_configuration_or_corpus_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small("optimizer.steps=10"), corpus.folder, run, progress=False)
    with pytest.raises(InputError, match=r"holds a run with model\.hidden_size=12, asked for 13"):
        train(small("optimizer.steps=10", "model.hidden_size=13"), corpus.folder, run, progress=False)
    other = write_corpus(tmp_path / "other", {"train": random_text(20, 30)})
    with pytest.raises(InputError, match="trained on another corpus"):
        train(small("optimizer.steps=10"), other.folder, run, progress=False)
    again = train(small("optimizer.steps=10", "run.log_every=1"), corpus.folder, run, progress=False)
    assert again.bytes == 0


def test_damaged_checkpoints_are_named(corpus: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small("optimizer.steps=10"), corpus.folder, run, progress=False)
    folder = checkpoints(run)[-1]
    path = folder / "weights.safetensors"
    whole = path.read_bytes()

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"weights\.safetensors: damaged or missing"):
        load_model(run)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"weights\.safetensors: sha256 differs"):
        load_model(run)
    path.write_bytes(whole)
    header = folder / "checkpoint.json"
    header.write_text(header.read_text().replace('"hidden_size": 12', '"hidden_size": 16'))
    with pytest.raises(InputError, match=r"expected shape \(256, 16\) for hidden size 16, got \(256, 12\)"):
        load_model(run)
    with pytest.raises(InputError, match="expected a checkpoint or a run folder with one, found neither"):
        load_model(tmp_path)


def test_a_damaged_optimizer_state_is_named(corpus: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small("optimizer.steps=10"), corpus.folder, run, progress=False)
    path = checkpoints(run)[-1] / "training.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"training\.safetensors: sha256 differs"):
        train(small("optimizer.steps=10"), corpus.folder, run, progress=False)


def test_a_run_that_diverges_keeps_its_good_checkpoints(corpus: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hopeless = small("optimizer.learning_rate=3e38", "run.log_every=1000", "run.checkpoint_every=1")
    with pytest.raises(InputError, match=r"training diverged: .* is not finite at step"):
        train(hopeless, corpus.folder, run, progress=False)
    for folder in checkpoints(run):
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "weights.safetensors").values())


def test_one_process_a_run(corpus: Corpus, tmp_path: Path) -> None:
    with only_writer(tmp_path / "run"), pytest.raises(InputError, match="another process is writing it"):
        train(small("optimizer.steps=10"), corpus.folder, tmp_path / "run", progress=False)


def test_a_finished_run_is_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small("optimizer.steps=10"), corpus.folder, run, progress=False)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(small("optimizer.steps=10"), corpus.folder, run, progress=False).bytes == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_shard_with_a_wrong_hash_stops_training(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"train": random_text(20, 30)})
    path = next(corpus.folder.glob("train-*.bytes"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match=path.name):
        train(small(), corpus.folder, tmp_path / "run", progress=False)


def test_untrained_weights_are_those_training_started_from(corpus: Corpus, tmp_path: Path) -> None:
    train(small("optimizer.steps=10"), corpus.folder, tmp_path / "run", progress=False)
    model, info = load_model(tmp_path / "run", untrained=True)
    trained, trained_info = load_model(tmp_path / "run")
    assert torch.equal(model.head.weight, ByteLM(12).head.weight)
    assert not torch.equal(model.head.weight, trained.head.weight)
    assert (info.step, trained_info.step) == (0, 10)
    assert info.sha256 != trained_info.sha256


def test_the_prime_is_read_byte_by_byte() -> None:
    class Recorder(ByteLM):
        def forward(self, ids, state=None, resets=None):  # type: ignore[no-untyped-def]
            self.seen = (self.seen if state is not None else b"") + bytes(ids[:, 0].tolist())
            return super().forward(ids, state, resets)

    model = Recorder(16, seed=1)
    drawn = sample(model, b"abcd", 30, temperature=1, seed=5)
    assert model.seen == b"abcd" + drawn[:-1], "every byte goes through the model once, the state carried"
    assert sample(model, b"abcd", 30, temperature=1, seed=5) == drawn
    assert sample(model, b"abcd", 30, temperature=1, seed=6) != drawn


def test_temperature_zero_takes_the_most_probable_byte() -> None:
    model = ByteLM(16, seed=1)
    drawn = sample(model, b"abcd", 3, temperature=0)
    with torch.no_grad():
        logits, _ = model(torch.frombuffer(bytearray(b"abcd" + drawn[:-1]), dtype=torch.uint8)[:, None])
    assert drawn == bytes(logits[3:, 0].argmax(1).tolist())


@pytest.mark.parametrize("temperature", [float("nan"), -1.0, float("inf")])
def test_a_wrong_temperature_is_named(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature: expected a number >= 0"):
        sample(ByteLM(4), b"a", 1, temperature=temperature)


def test_a_tiny_temperature_is_the_most_probable_byte() -> None:
    model = ByteLM(16, seed=1)
    assert sample(model, b"abc", 5, temperature=1e-40) == sample(model, b"abc", 5, temperature=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((b"", 5), "prime"), ((b"a", 0), "length")],
)
def test_wrong_sampling_arguments_are_named(arguments: tuple[bytes, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample(ByteLM(4), *arguments)
