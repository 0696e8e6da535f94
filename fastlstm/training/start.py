"""A run ready for its first update: schedule, model, update and feed, from a configuration and a corpus."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastlstm.corpus.batches import Schedule, TrainReader
from fastlstm.corpus.shards import Corpus
from fastlstm.errors import InputError
from fastlstm.model import ByteLM
from fastlstm.training.config import ModelConfig, TrainConfig, learning_rate
from fastlstm.training.distributed import ALONE, World
from fastlstm.training.feed import Feed, Packet
from fastlstm.training.step import TrainStep


def build_model(config: ModelConfig) -> ByteLM:
    return ByteLM(config.hidden_size, init=config.init, forget_bias=config.forget_bias, seed=config.seed)


@dataclass(frozen=True)
class Training:
    """The update, what feeds it, and of how many updates the whole run is."""

    step: TrainStep
    feed: Feed
    steps: int


def start(config: TrainConfig, corpus: Corpus, device: torch.device, world: World = ALONE) -> Training:
    """Build what ``config`` (resolved) describes, untrained; this process reads its share of the streams."""
    step = TrainStep(build_model(config.model).to(device), config, world)
    feed, steps = feed_of(config, corpus, step.packet, world)
    return Training(step, feed, steps)


def feed_of(config: TrainConfig, corpus: Corpus, packet: Packet, world: World = ALONE) -> tuple[Feed, int]:
    """What fills ``packet`` with this process's streams, and the number of updates of the run."""
    data = config.data
    cut = {"batch_size": data.batch_size, "window": data.window}
    schedule = Schedule.of(corpus.shards("train"), epochs_per_shard=data.epochs_per_shard, passes=data.passes, **cut)
    steps = min(schedule.steps, config.optimizer.steps or schedule.steps)
    reader = TrainReader(corpus, schedule, reset=data.reset, streams=world.streams(data.batch_size), **cut)
    return Feed(reader, packet, lambda number: learning_rate(config.optimizer, number, steps)), steps


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
