"""The training loop: windows of bytes in, checkpoints and a log out, resumable at any kill to the same bits.

run/
  config.json        the resolved configuration
  log.jsonl          one event a line: start, resume, train, health, valid, checkpoint, stop, end
  checkpoints/       see checkpoint.py
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from fastlstm.config import config_to_dict
from fastlstm.corpus.shards import Corpus, Shard
from fastlstm.errors import InputError
from fastlstm.files import only_writer, write_whole
from fastlstm.training.checkpoint import (
    CheckpointWriter,
    TrainingState,
    checkpoints,
    diverged,
    load_training,
    load_weights,
)
from fastlstm.training.config import TrainConfig, learning_rate, resolved
from fastlstm.training.distributed import World, processes
from fastlstm.training.evaluate import evaluate
from fastlstm.training.health import cell_health
from fastlstm.training.limits import limits
from fastlstm.training.log import RunLog
from fastlstm.training.start import choose_device, start
from fastlstm.training.step import TrainStep

Resume = Literal["auto", "never", "required"]
SLOW = 5.0  # seconds of an update that are worth a word


@dataclass(frozen=True)
class TrainSummary:
    """Updates done in all; bytes and seconds of this call; the last validation in bits per byte, if there was one.

    ``stopped``: what ended the run before its last step, a time limit or a signal; None if it is finished.
    """

    steps: int
    bytes: int
    seconds: float
    valid_loss: float | None
    checkpoint: Path
    stopped: str | None = None


def train(
    config: TrainConfig, corpus_folder: Path, run: Path, *, progress: bool = True, resume: Resume = "auto"
) -> TrainSummary:
    """Train on the "train" shards of ``corpus_folder`` and keep everything in ``run``.

    ``resume="auto"`` goes on from the newest checkpoint of the run folder, if it has one: the weights are then
    bit-equal to those of a run that never stopped (on the same machine, number of threads and of processes). "never"
    wants a folder without checkpoints, "required" one with them. Started by torchrun, the processes share the batch.
    Raises ``InputError`` when the folder belongs to another configuration or corpus.
    """
    with contextlib.ExitStack() as held:
        world, device = held.enter_context(processes(choose_device(config.run.device)))
        if world.first:
            held.enter_context(only_writer(run))
        return _train(resolved(config, device), Corpus(corpus_folder), run, world, device, progress, resume)


def _train(
    config: TrainConfig, corpus: Corpus, run: Path, world: World, device: torch.device, progress: bool, resume: Resume
) -> TrainSummary:
    _check_resume(run, resume)
    valid = _validation_shard(corpus) if world.first else None
    world.wait()  # nobody writes a checkpoint before all have read theirs
    training = start(config, corpus, device, world)
    update, feed, steps = training.step, training.feed, training.steps
    found = checkpoints(run)
    step = _go_on(update, found[-1], config, corpus, world) if found else 0
    world.wait()
    if step == steps:
        return TrainSummary(step, 0, 0.0, None, found[-1])
    data, settings = config.data, config.run
    if world.first:
        run.mkdir(parents=True, exist_ok=True)
        _write_config(run, config)
    started = time.monotonic()
    first_step = step
    bytes_per_step = data.batch_size * data.window
    meter = _Meter()
    writer = CheckpointWriter(run, keep=settings.keep_checkpoints)
    last_valid: float | None = None
    checkpoint = run
    stopped: str | None = None
    bar = tqdm(
        total=steps * bytes_per_step,
        initial=step * bytes_per_step,
        unit="B",
        unit_scale=True,
        desc=f"train H={config.model.hidden_size} on {device}",
        disable=not (progress and world.first),
    )
    with RunLog(run if world.first else None, step) as log, bar, limits(settings.time_limit, world) as limit:
        choice = update.choice()
        log(
            "resume" if first_step else "start", step,
            steps=steps, device=str(device), processes=world.size, torch=torch.__version__, corpus=corpus.sha256,
            train_bytes=sum(entry.bytes for entry in corpus.shards("train")),
            parameters=sum(parameter.numel() for parameter in update.model.parameters()),
            precision=config.optimizer.precision, kernel=choice.backend, because=choice.reason,
        )  # fmt: skip

        def note(path: Path | None) -> None:
            nonlocal checkpoint
            if path is not None:
                checkpoint = path
                log("checkpoint", int(path.name.rpartition("-")[2]), path=path.name)

        while step < steps and stopped is None:
            if feed.load(step):
                update.zero_state()
            if step % settings.health_every == 0 and world.first:
                with meter.paused():
                    ids, resets = update.packet.ids[:-1], update.packet.resets
                    log("health", step, **cell_health(update.working, ids, update.state, resets))
            update()
            step += 1
            meter.count += 1
            bar.update(bytes_per_step)
            if device.type == "cpu" and step == first_step + 1:
                _say_how_slow(bar, time.monotonic() - started, bytes_per_step, steps - step)

            stopped = limit.reached(step) if step < steps else None
            last = step == steps or stopped is not None
            if step % settings.log_every == 0 or last:
                totals = update.take_totals()
                if not math.isfinite(totals.loss + totals.norm):
                    writer.wait()
                    raise diverged("loss or gradient is", step, run)
                values = {
                    "loss": totals.loss,
                    "accuracy": totals.accuracy,
                    "gradient_norm": totals.norm,
                    "bytes_per_second": meter.take(bytes_per_step),
                }
                if config.optimizer.precision == "fp16":
                    values |= {"skipped": totals.skipped, "loss_scale": update.optimizer.scale.item()}
                rate = learning_rate(config.optimizer, step - 1, steps)
                log("train", step, bytes=step * bytes_per_step, learning_rate=rate, **values)
                bar.set_postfix_str(f"{values['loss']:.3f} bits/byte", refresh=False)
            if valid is not None and stopped is None and (step % settings.validate_every == 0 or last):
                with meter.paused():
                    result = evaluate(
                        update.working,
                        valid,
                        batch_size=data.batch_size,
                        window=data.window,
                        reset=data.reset,
                        progress=False,
                    )
                last_valid = result.loss
                log("valid", step, loss=result.loss, accuracy=result.accuracy, bytes=result.bytes)
            if step % settings.checkpoint_every == 0 or last:
                state = world.joined(update.state[0]), world.joined(update.state[1])
                if world.first:
                    note(writer.wait())
                    optimizer = update.optimizer.state_dict(update.names)
                    writer.save(update.model, TrainingState(step, corpus.sha256, config, state, optimizer))
            note(writer.written())
        note(writer.wait())
        seconds = time.monotonic() - started
        if stopped is not None:
            log("stop", step, because=stopped, seconds=seconds)
        else:
            log("end", step, seconds=seconds)
    world.wait()
    return TrainSummary(step, (step - first_step) * bytes_per_step, seconds, last_valid, checkpoint, stopped)


def _go_on(step: TrainStep, checkpoint: Path, config: TrainConfig, corpus: Corpus, world: World) -> int:
    """Bring ``step`` to where ``checkpoint`` was written; how many updates were made."""
    resumed = load_training(checkpoint)
    device, streams = step.packet.block.device, world.streams(config.data.batch_size)
    before = replace(resumed, config=resolved(resumed.config, device))
    _check_same_run(checkpoint.parents[1], before, config, corpus)
    load_weights(step.model, checkpoint)
    step.optimizer.load_state_dict(step.names, resumed.optimizer)
    step.optimizer.renew_copies()
    step.set_state((resumed.state[0][:, streams], resumed.state[1][:, streams]))
    return resumed.step


class _Meter:
    """The rate of training alone: what else is done is left out."""

    def __init__(self) -> None:
        self.count = 0
        self._seconds = 0.0
        self._since = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._seconds += time.monotonic() - self._since
        yield
        self._since = time.monotonic()

    def take(self, bytes_per_step: int) -> float:
        """Bytes per second since the last call; the device has been waited for."""
        rate = self.count * bytes_per_step / (self._seconds + time.monotonic() - self._since)
        self.count, self._seconds, self._since = 0, 0.0, time.monotonic()
        return rate


def _say_how_slow(bar: tqdm[Any], seconds: float, bytes_per_step: int, steps_left: int) -> None:
    """On a CPU, where the first update takes long: how long all of them will."""
    if not bar.disable and seconds > SLOW:
        bar.write(
            f"no GPU: an update took {seconds:.0f} s, {bytes_per_step / seconds:,.0f} bytes/s on "
            f"{torch.get_num_threads()} threads; the other {steps_left:,} will take about "
            f"{seconds * steps_left / 3600:,.0f} hours"
        )


def _check_resume(run: Path, resume: Resume) -> None:
    found = checkpoints(run)
    if resume == "never" and found:
        raise InputError(f"run {run}: expected a folder without checkpoints, found {found[-1].name}")
    if resume == "required" and not found:
        raise InputError(f"run {run}: expected a folder with a checkpoint to go on from, found none")


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


def _write_config(run: Path, config: TrainConfig) -> None:
    write_whole(run / "config.json", (json.dumps(config_to_dict(config), indent=2) + "\n").encode())
