"""Loss and accuracy of a model over whole shards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm import tqdm

from fastlstm.corpus.batches import EvaluationWindows, Reset
from fastlstm.corpus.shards import Shard
from fastlstm.model import ByteLM
from fastlstm.module import State


@dataclass(frozen=True)
class Evaluation:
    """``loss`` in bits per byte, ``accuracy`` as a share, over ``bytes`` predicted bytes."""

    loss: float
    accuracy: float
    bytes: int


@torch.no_grad()
def evaluate(
    model: ByteLM,
    shard: Shard,
    *,
    batch_size: int = 128,
    window: int = 128,
    reset: Reset = "shard",
    progress: bool = True,
) -> Evaluation:
    """Predict every byte of ``shard`` but its first.

    The shard is read as ``batch_size`` contiguous streams, each from a zero state; ``reset="document"`` zeroes the
    state at every document's start as well.
    """
    device = model.head.weight.device
    windows = EvaluationWindows(shard, batch_size=batch_size, window=window, reset=reset)
    nats = torch.zeros((), dtype=torch.float64, device=device)
    right = torch.zeros((), dtype=torch.int64, device=device)
    state: State | None = None
    bar = tqdm(total=windows.predicted, unit="B", unit_scale=True, desc="evaluate", disable=not progress)
    for index in range(windows.count):
        (inputs, targets, resets), counts = windows[index]
        flags = None if resets is None else torch.from_numpy(resets).to(device)
        logits, state = model(torch.from_numpy(inputs).to(device), state, flags)
        wanted = torch.from_numpy(targets).to(device).flatten().long()
        counted = torch.from_numpy(counts).to(device).flatten()
        flat = logits.flatten(0, 1).float()
        losses = F.cross_entropy(flat, wanted, reduction="none")
        nats += losses[counted].double().sum()
        right += (flat.argmax(1) == wanted)[counted].sum()
        bar.update(int(counts.sum()))
    bar.close()
    return Evaluation(
        nats.item() / windows.predicted / math.log(2), right.item() / windows.predicted, windows.predicted
    )
