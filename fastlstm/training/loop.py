"""The training loop: windows of bytes in, checkpoints and a log out, resumable at any kill to the same bits.

run/
  config.json        the resolved configuration
  log.jsonl          one event a line: start, train, valid, checkpoint, end
  checkpoints/       see checkpoint.py
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastlstm.config import config_to_dict
from fastlstm.corpus.batches import Schedule, TrainReader
from fastlstm.corpus.shards import Corpus, Shard
from fastlstm.errors import InputError
from fastlstm.files import only_writer, write_whole
from fastlstm.model import next_byte_loss
from fastlstm.module import State
from fastlstm.training.checkpoint import (
    TrainingState,
    build_model,
    checkpoints,
    load_training,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from fastlstm.training.config import TrainConfig, learning_rate
from fastlstm.training.evaluate import evaluate
from fastlstm.training.log import RunLog


@dataclass(frozen=True)
class TrainSummary:
    """Updates done in all; bytes and seconds of this call; the last validation in bits per byte, if there was one."""

    steps: int
    bytes: int
    seconds: float
    valid_loss: float | None
    checkpoint: Path


def train(config: TrainConfig, corpus_folder: Path, run: Path, *, progress: bool = True) -> TrainSummary:
    """Train on the "train" shards of ``corpus_folder`` and keep everything in ``run``.

    A run folder with checkpoints is resumed: the weights are then bit-equal to those of a run that never stopped (on
    the same machine and number of threads). Raises ``InputError`` when the folder belongs to another configuration
    or corpus.
    """
    with only_writer(run):
        return _train(config, Corpus(corpus_folder), run, progress)


def _train(config: TrainConfig, corpus: Corpus, run: Path, progress: bool) -> TrainSummary:
    device = choose_device(config.run.device)
    data = config.data
    schedule = Schedule.of(
        corpus.shards("train"),
        batch_size=data.batch_size,
        window=data.window,
        epochs_per_shard=data.epochs_per_shard,
        passes=data.passes,
    )
    steps = min(schedule.steps, config.optimizer.steps or schedule.steps)
    reader = TrainReader(corpus, schedule, batch_size=data.batch_size, window=data.window, reset=data.reset)
    valid = _validation_shard(corpus)

    model = build_model(config.model)
    found = checkpoints(run)
    resumed = load_training(found[-1]) if found else None
    if resumed is not None:
        _check_same_run(run, resumed, config, corpus)
        load_weights(model, found[-1])
    model.to(device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        fused=True,
    )
    H = config.model.hidden_size
    state = _zero_state(data.batch_size, H, device)
    step = 0
    if resumed is not None:
        restore_optimizer(optimizer, model, resumed.optimizer)
        state = resumed.state[0].to(device), resumed.state[1].to(device)
        step = resumed.step

    if step == steps:
        return TrainSummary(step, 0, 0.0, None, found[-1])
    run.mkdir(parents=True, exist_ok=True)
    _write_config(run, config)
    started = time.monotonic()
    first_step = step
    bytes_per_step = data.batch_size * data.window
    meter = _Meter(device)
    last_valid: float | None = None
    checkpoint = run
    bar = tqdm(
        total=steps * bytes_per_step,
        initial=step * bytes_per_step,
        unit="B",
        unit_scale=True,
        desc=f"train H={H} on {device}",
        disable=not progress,
    )
    with RunLog(run, step) as log, bar:
        log(
            "resume" if first_step else "start", step,
            steps=steps, device=str(device), torch=torch.__version__, corpus=corpus.sha256,
            train_bytes=sum(entry.bytes for entry in corpus.shards("train")),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )  # fmt: skip
        while step < steps:
            window, from_zero = reader(step)
            if from_zero:
                state = _zero_state(data.batch_size, H, device)
            rate = learning_rate(config.optimizer, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            resets = None if window.resets is None else torch.from_numpy(window.resets).to(device)
            logits, state = model(torch.from_numpy(window.inputs).to(device), state, resets)
            state = state[0].detach(), state[1].detach()
            loss, accuracy = next_byte_loss(logits, torch.from_numpy(window.targets).to(device))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
            optimizer.step()
            step += 1
            meter.add(loss, accuracy, norm)
            bar.update(bytes_per_step)

            last = step == steps
            if step % config.run.log_every == 0 or last:
                values = meter.take(bytes_per_step)
                _check_finite(model, step, run)
                log("train", step, bytes=step * bytes_per_step, learning_rate=rate, **values)
                bar.set_postfix_str(f"{values['loss']:.3f} bits/byte", refresh=False)
            if valid is not None and (step % config.run.validate_every == 0 or last):
                with meter.paused():
                    result = evaluate(
                        model, valid, batch_size=data.batch_size, window=data.window, reset=data.reset, progress=False
                    )
                last_valid = result.loss
                log("valid", step, loss=result.loss, accuracy=result.accuracy, bytes=result.bytes)
            if step % config.run.checkpoint_every == 0 or last:
                with meter.paused():
                    _check_finite(model, step, run)
                    training = TrainingState(step, corpus.sha256, config, state, optimizer_tensors(optimizer, model))
                    checkpoint = save_checkpoint(run, model, training, keep=config.run.keep_checkpoints)
                log("checkpoint", step, path=checkpoint.name)
        seconds = time.monotonic() - started
        log("end", step, seconds=seconds)
    return TrainSummary(step, (step - first_step) * bytes_per_step, seconds, last_valid, checkpoint)


def choose_device(name: str) -> torch.device:
    """The torch device of ``name``; "auto" is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"run.device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"run.device: {name} was asked for, but torch sees no GPU")
    return device


class _Meter:
    """Sums on the device; the host waits for it only when a line of the log is written."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, device=device)
        self._count = 0
        self._seconds = 0.0
        self._since = time.monotonic()

    def add(self, loss: Tensor, accuracy: Tensor, norm: Tensor) -> None:
        self._sums += torch.stack((loss.detach(), accuracy, norm))
        self._count += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the rate what is not training."""
        self._seconds += time.monotonic() - self._since
        yield
        self._since = time.monotonic()

    def take(self, bytes_per_step: int) -> dict[str, float]:
        loss, accuracy, norm = (self._sums / self._count).tolist()
        seconds = self._seconds + time.monotonic() - self._since
        values = {
            "loss": loss / math.log(2),
            "accuracy": accuracy,
            "gradient_norm": norm,
            "bytes_per_second": self._count * bytes_per_step / seconds,
        }
        self._sums.zero_()
        self._count = 0
        self._seconds = 0.0
        self._since = time.monotonic()
        return values


def _zero_state(B: int, H: int, device: torch.device) -> State:
    return torch.zeros(1, B, H, device=device), torch.zeros(1, B, H, device=device)


def _validation_shard(corpus: Corpus) -> Shard | None:
    """The first shard of the "valid" split, as the reference validates on one shard."""
    entries = corpus.shards("valid")
    return corpus.open_shard(entries[0]) if entries else None


def _check_same_run(run: Path, resumed: TrainingState, config: TrainConfig, corpus: Corpus) -> None:
    if resumed.corpus_sha256 != corpus.sha256:
        raise InputError(f"run {run}: its checkpoint was trained on another corpus than {corpus.folder}")
    before = config_to_dict(replace(resumed.config, run=config.run))
    now = config_to_dict(config)
    for group in now:
        for key in sorted(before[group] | now[group]):
            old, new = before[group].get(key, "none"), now[group].get(key, "none")
            if old != new:
                raise InputError(
                    f"run {run}: holds a run with {group}.{key}={old}, asked for {new}; "
                    "give the same value to resume it, or another folder to start anew"
                )


def _check_finite(model: torch.nn.Module, step: int, run: Path) -> None:
    """Before a checkpoint is written, so that a run that diverged keeps its good ones."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(
                f"training diverged: {name} is not finite at step {step}; the checkpoints of {run} are from before. "
                "Start in another folder with a lower optimizer.learning_rate or optimizer.clip"
            )


def _write_config(run: Path, config: TrainConfig) -> None:
    write_whole(run / "config.json", (json.dumps(config_to_dict(config), indent=2) + "\n").encode())
