"""How programs of one cooperative launch wait for each other's results.

Sequences never meet in an LSTM, so only programs that work on the same sequences wait for one another: each group has
a counter in global memory, zero at launch, that only grows. A program adds one when it has published a tile, and waits
until the counter has reached a target. Nothing is reset while the kernel runs, so no program can be overtaken.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# int32 counters from one group to the next: a cache line each, so that groups do not slow each other's polling.
COUNTER_STRIDE = tl.constexpr(32)


@triton.jit
def arrive(counter):
    """Publish what this program has written, and count it."""
    tl.debug_barrier()  # every thread's stores come before the release of the one that adds
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target):
    """Block until ``target`` arrivals; afterwards what they published can be read."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()


def zero_counters(groups: int, device: torch.device) -> Tensor:
    """Counters for ``groups`` groups: made on the current stream before the launch, so a CUDA graph replays it too."""
    return torch.zeros(groups * COUNTER_STRIDE.value, dtype=torch.int32, device=device)
