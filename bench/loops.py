"""Who is timed by the `train` suite: an update of fastlstm, and the same update as one writes it around torch.nn.LSTM.

Both read the same packets, keep float32 weights and moments, clip, and run Adam; a loop is a call that queues one
update with what is in its packet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bench.contestants import DTYPES, cudnn_version
from bench.timing import captured
from fastlstm.corpus.shards import Corpus
from fastlstm.model import ByteLM
from fastlstm.training.config import TrainConfig
from fastlstm.training.distributed import ALONE, World
from fastlstm.training.feed import Feed, Packet
from fastlstm.training.start import build_model, feed_of, start
from fastlstm.version import __version__
from tolerance import assert_as_good_as

GATE_UPDATES = 5
FLOAT16_SCALE = 2.0**12  # of the loss: float16 gradients are too small without


@dataclass(eq=False)
class Loop:
    """A contestant: ``update`` queues one update, ``feed`` fills its packet; columns that say who it is."""

    contestant: str
    dtype: str
    input: str
    mode: str
    version: str
    update: Any
    packet: Packet
    feed: Feed | None = None
    taken: int = field(default=0)

    def fed(self) -> None:
        """An update with the next window of the corpus."""
        assert self.feed is not None
        self.feed.load(self.taken)
        self.taken += 1
        self.update()

    def columns(self) -> dict[str, object]:
        names = ("contestant", "dtype", "input", "mode", "version")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        return f"{self.contestant} {self.dtype} {self.mode}"


def ours(config: TrainConfig, corpus: Corpus, device: torch.device, world: World = ALONE) -> Loop:
    """``fastlstm``'s update as `fastlstm train` runs it; ``config`` is resolved."""
    training = start(config, corpus, device, world)
    mode = "graph" if device.type == "cuda" and config.run.graph else "eager"
    version = f"{__version__} {training.step.choice().backend}"
    dtype = config.optimizer.precision
    return Loop("fastlstm", dtype, "ids", mode, version, training.step, training.step.packet, training.feed)


class PlainUpdate:
    """One-hot bytes, torch.nn.LSTM and head in ``dtype``, cross-entropy in float32, clip_grad_norm_, fused AdamW.

    Weights start as ``model``'s. ``capturable`` prepares it for a CUDA graph.
    """

    def __init__(
        self, model: ByteLM, packet: Packet, dtype: torch.dtype, *, clip: float, rate: float, capturable: bool = False
    ) -> None:
        device, H = packet.block.device, model.hidden_size
        self.packet = packet
        self.lstm = nn.LSTM(256, H, device=device, dtype=dtype)
        self.head = nn.Linear(H, 256, device=device, dtype=dtype)
        self.lstm.load_state_dict({name: tensor.to(dtype) for name, tensor in model.lstm.state_dict().items()})
        self.head.load_state_dict(model.head.state_dict())
        self.lstm.bias_hh_l0.requires_grad_(False)
        modules = (*self.lstm.named_parameters(), *self.head.named_parameters())
        self.weights = [parameter for _, parameter in modules if parameter.requires_grad]
        source = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.masters = [nn.Parameter(weight.detach().to(device, _master(dtype), copy=True)) for weight in source]
        self.dtype = dtype
        self.clip = clip
        self.scale = FLOAT16_SCALE if dtype == torch.float16 else 1.0
        B = packet.ids.shape[1]
        self.h, self.c = (torch.zeros(1, B, H, device=device, dtype=dtype) for _ in range(2))
        self.adam = torch.optim.AdamW(self.masters, lr=rate, weight_decay=0.0, fused=True, capturable=capturable)
        # It warns that capturable costs time outside a capture; the updates before one are not timed.
        self.adam._warned_capturable_if_run_uncaptured = True
        self.loss = torch.zeros((), device=device)

    def __call__(self) -> None:
        x = F.one_hot(self.packet.ids[:-1].long(), 256).to(self.dtype)
        output, (h, c) = self.lstm(x, (self.h, self.c))
        logits = self.head(output).flatten(0, 1)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        loss = F.cross_entropy(wide, self.packet.ids[1:].flatten().long())
        for weight in self.weights:
            weight.grad = None
        torch.autograd.backward(loss * self.scale if self.scale != 1 else loss)
        with torch.no_grad():
            for master, weight in zip(self.masters, self.weights, strict=True):
                gradient = weight.grad
                assert gradient is not None
                master.grad = gradient.to(master.dtype) / self.scale if self.scale != 1 else gradient.to(master.dtype)
            torch.nn.utils.clip_grad_norm_(self.masters, self.clip)
            self.adam.step()
            torch._foreach_copy_(self.weights, self.masters)
            self.h.copy_(h)
            self.c.copy_(c)
            self.loss.copy_(loss)


def _master(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def plain(config: TrainConfig, corpus: Corpus, device: torch.device, dtype: str, *, graph: bool = False) -> Loop:
    """The loop around torch.nn.LSTM from ``config``'s weights, captured as a CUDA graph with ``graph``."""
    packet = Packet(config.data.window, config.data.batch_size, False, device)
    feed, _ = feed_of(config, corpus, packet)
    feed.load(0)
    optimizer = config.optimizer
    update = PlainUpdate(
        build_model(config.model),
        packet,
        DTYPES[dtype],
        clip=optimizer.clip,
        rate=optimizer.learning_rate,
        capturable=graph,
    )
    run = captured(update) if graph else update
    return Loop("nn.LSTM", dtype, "dense", "graph" if graph else "eager", cudnn_version(device.type), run, packet, feed)


def gate(config: TrainConfig, corpus: Corpus, device: torch.device) -> None:
    """Raise AssertionError unless the losses of our first updates are as good as the plain loop's in the same dtype.

    The same windows, weights and constant rate; the truth is the plain loop in float64.
    """
    training = start(config, corpus, device)
    dtype = DTYPES[config.optimizer.precision]
    model = build_model(config.model)
    rate, clip = config.optimizer.learning_rate, config.optimizer.clip
    plains = [PlainUpdate(model, training.step.packet, kind, clip=clip, rate=rate) for kind in (dtype, torch.float64)]
    losses: list[list[float]] = [[], [], []]
    for number in range(GATE_UPDATES):
        training.feed.load(number)
        training.step.packet.rate.fill_(rate)
        for update, into in zip(plains, losses[1:], strict=True):
            update()
            into.append(update.loss.item())
        training.step()
        losses[0].append(training.step.take_totals().loss)
    got = torch.tensor(losses[0], dtype=torch.float64) * torch.tensor(2.0).log().double()
    naive, truth = (torch.tensor(each, dtype=torch.float64) for each in losses[1:])
    # Means over a whole window in float32: one rounding of the products' dtype is allowed as everywhere.
    assert_as_good_as(f"losses of {GATE_UPDATES} updates in {dtype}", got.to(dtype), naive, truth)
