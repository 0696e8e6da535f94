"""What a training run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from fastlstm.corpus.batches import Reset
from fastlstm.errors import InputError
from fastlstm.model import Initialisation

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelConfig:
    """The language model."""

    hidden_size: int = 2048
    init: Initialisation = "glorot"  # "glorot": Carvalho's; "uniform": torch.nn.LSTM's
    forget_bias: float = 0.0  # added to the forget gate's bias; 0 as in Carvalho's study
    seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """How shards are read."""

    batch_size: int = 128  # contiguous streams of a shard, over all processes
    window: int = 128  # bytes back-propagated through
    epochs_per_shard: int = 1
    passes: int = 1  # over all shards
    reset: Reset = "shard"  # the state is zeroed at each shard and epoch, or at every document's start as well


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam (AdamW with weight decay) with a linear decay to zero over the whole run, after an optional warm-up.

    The rate is the recipe's at any batch size: rates in proportion to the batch diverged (Puri et al. 2018 cap theirs
    at 3e-3). Weights and moments are kept in float32 whatever ``precision`` the products are made in.
    """

    learning_rate: float = 5e-4
    warmup_steps: int = 0
    weight_decay: float = 0.0  # decoupled, per unit of learning rate
    clip: float = 5.0  # largest norm of the gradient over all parameters
    steps: int | None = None  # stop (and reach zero) after so many updates; none: all windows of the data
    precision: Precision = "auto"  # "auto": bf16 on a GPU, fp32 on a CPU; fp16 scales its loss
    all_reduce: Precision = "auto"  # in what gradients are summed over processes; "auto": as precision


@dataclass(frozen=True)
class RunConfig:
    """What changes the weights by roundings at most."""

    device: str = "auto"  # "auto": a GPU if there is one
    backend: Literal["auto", "hopper", "triton", "cudnn", "torch"] = "auto"  # of the LSTM, see fastlstm.explain
    graph: bool = True  # on a GPU, replay the update as one CUDA graph
    log_every: int = 100  # steps between lines of the log
    health_every: int = 500  # steps between looks at the cells
    validate_every: int = 2000  # steps between validations; also validated at the end
    checkpoint_every: int = 2000
    keep_checkpoints: int = 2
    time_limit: float | None = None  # seconds after which the run is checkpointed and ends well; none: no limit


@dataclass(frozen=True)
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        positive = {
            "model.hidden_size": self.model.hidden_size,
            "data.batch_size": self.data.batch_size,
            "data.window": self.data.window,
            "data.epochs_per_shard": self.data.epochs_per_shard,
            "data.passes": self.data.passes,
            "optimizer.learning_rate": self.optimizer.learning_rate,
            "optimizer.clip": self.optimizer.clip,
            "run.log_every": self.run.log_every,
            "run.health_every": self.run.health_every,
            "run.validate_every": self.run.validate_every,
            "run.checkpoint_every": self.run.checkpoint_every,
            "run.keep_checkpoints": self.run.keep_checkpoints,
        }
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise InputError(f"{name}: expected a positive number, got {value}")
        if self.model.hidden_size > 65_536:
            raise InputError(f"model.hidden_size: expected at most 65536, got {self.model.hidden_size}")
        if not 0 <= self.model.seed < 2**63:
            raise InputError(f"model.seed: expected 0 to 2^63 - 1, got {self.model.seed}")
        if self.optimizer.steps is not None and self.optimizer.steps < 1:
            raise InputError(f"optimizer.steps: expected a positive number or none, got {self.optimizer.steps}")
        if self.run.time_limit is not None and not 0 < self.run.time_limit < float("inf"):
            raise InputError(f"run.time_limit: expected a positive number or none, got {self.run.time_limit}")
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= getattr(self.optimizer, name) < float("inf"):
                raise InputError(f"optimizer.{name}: expected >= 0, got {getattr(self.optimizer, name)}")


def resolved(config: TrainConfig, device: torch.device) -> TrainConfig:
    """``config`` with the precisions that "auto" stands for on ``device``, as they are saved with the run."""
    optimizer = config.optimizer
    if optimizer.precision == "auto":
        optimizer = replace(optimizer, precision="bf16" if device.type == "cuda" else "fp32")
    if optimizer.all_reduce == "auto":
        optimizer = replace(optimizer, all_reduce=optimizer.precision)
    return replace(config, optimizer=optimizer)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of update ``step`` (0-based) of ``steps``: linear warm-up, then linearly to 0 over the whole run."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.learning_rate * warm * (1 - step / steps)
