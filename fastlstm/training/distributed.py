"""Several processes, one for each GPU, as ``torchrun`` starts them: who reads which streams, and sums over all.

Every process holds the whole model and the same number of the batch's streams. Gradients are summed over the processes
in one all-reduce, so that an update is that of one process with the whole batch; NCCL carries it between GPUs (also
inside a captured step), gloo between CPUs. Process 0 writes the run folder; on several nodes all must see it.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastlstm.errors import InputError

ALIGNMENT = 64  # elements: parts of the summed block begin at addresses that wide loads can have


@dataclass(frozen=True)
class World:
    """This process among ``size``; alone it communicates with nobody."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def streams(self, batch_size: int) -> slice:
        """The streams of the batch that this process reads; ``InputError`` if they cannot be divided evenly."""
        if batch_size % self.size:
            raise InputError(
                f"data.batch_size: expected a multiple of the {self.size} processes, got {batch_size} streams"
            )
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up ``tensor`` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest ``number`` that any process has; waits for all."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def joined(self, tensor: Tensor) -> Tensor:
        """``tensor`` (1, B, H) of all processes side by side along B; waits for all."""
        if self.size == 1:
            return tensor
        part = tensor.float().contiguous()  # gloo has no bfloat16; exact either way
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part)
        return torch.cat(parts, 1).to(tensor.dtype)

    def wait(self) -> None:
        """Until all processes are here."""
        self.largest(0)


ALONE = World()


class GradientSum:
    """Gradients of ``weights`` summed over the processes: copied to one block in ``dtype``, one all-reduce."""

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype, world: World) -> None:
        self._world = world
        if world.size == 1:
            return
        sizes = [-(-weight.numel() // ALIGNMENT) * ALIGNMENT for weight in weights]
        self._block = torch.zeros(sum(sizes), dtype=dtype, device=weights[0].device)
        pairs = zip(torch.split(self._block, sizes), weights, strict=True)
        self._parts = [part[: weight.numel()].view_as(weight) for part, weight in pairs]

    def __call__(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The sums, which the next call overwrites; alone, ``gradients`` themselves."""
        if self._world.size == 1:
            return gradients
        torch._foreach_copy_(self._parts, list(gradients))
        self._world.sum_(self._block)
        return self._parts


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started, with this one's device; alone where it started none, or one.

    A plain "cuda" becomes the GPU of this process's number on its node (LOCAL_RANK).
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE, device
        return
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        device = device if device.index is not None else torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        yield World(dist.get_rank(), size), device
    finally:
        gc.collect()  # a captured all-reduce must be gone before its communicator is
        dist.destroy_process_group()
