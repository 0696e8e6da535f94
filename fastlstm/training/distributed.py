"""Several processes, one for each GPU, as ``torchrun`` starts them: who reads which streams, and sums over all.

Every process holds the whole model and the same number of the batch's streams. Gradients are summed over the processes,
so that an update is that of one process with the whole batch; NCCL carries them between GPUs (also inside a captured
step), gloo between CPUs. The product of weight_hh's gradient, the last of the backward, is made in parts, and what is
finished is summed while the next part is multiplied. Process 0 writes the run folder; on several nodes all must see it.
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
from fastlstm_kernels.gradients import exchanged

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
    """Gradients of ``weights`` summed over the processes in ``dtype``.

    Where that is the dtype of the gradients, those of the layer's matrices and that of ``head`` are summed in place
    during the backward (``beside_products``). The others are copied to one block for one all-reduce after it; so is
    every gradient when the sum is made in another dtype, or the layer's backward is none of fastlstm's.
    """

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype, world: World, *, head: Tensor) -> None:
        self._world = world
        self._dtype = dtype
        self._head = head
        self._place = {weight.data_ptr(): place for place, weight in enumerate(weights)}
        self._in_place = world.size > 1 and all(weight.dtype == dtype for weight in weights)
        self._ready: list[Tensor] = []
        self._works: list[dist.Work] = []
        self._summed: set[int] = set()

    @contextmanager
    def beside_products(self) -> Iterator[None]:
        """A backward within begins the sums of its large gradients."""
        self._summed.clear()
        if not self._in_place:
            yield
            return
        hook = None
        if self._head.requires_grad:
            hook = self._head.register_hook(self._keep)  # type: ignore[no-untyped-call]
        try:
            with exchanged(self):
                yield
        finally:
            if hook is not None:
                hook.remove()
            self._ready.clear()
            self._works.clear()

    def _keep(self, gradient: Tensor) -> Tensor:
        # Not summed yet: beside the recurrence, whose blocks wait for each other, both could wait for multiprocessors.
        self._ready.append(gradient.contiguous())
        return self._ready[-1]

    def start(self, weight: Tensor, rows: Tensor) -> None:
        place = self._place.get(weight.data_ptr())
        if place is None or rows.dtype != self._dtype:
            return
        if self._ready:
            self.start(self._head, self._ready.pop())
        self._summed.add(place)
        work = dist.all_reduce(rows, async_op=True)
        assert work is not None
        self._works.append(work)

    def wait(self) -> None:
        for work in self._works:
            work.wait()
        self._works.clear()

    def __call__(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """The sums of the last backward's ``gradients``, contiguous; alone, ``gradients`` themselves."""
        if self._world.size == 1:
            return gradients
        rest = {place: gradient for place, gradient in enumerate(gradients) if place not in self._summed}
        if not rest:
            return gradients
        sizes = [-(-gradient.numel() // ALIGNMENT) * ALIGNMENT for gradient in rest.values()]
        block = gradients[0].new_empty(sum(sizes), dtype=self._dtype)
        pairs = zip(torch.split(block, sizes), rest.values(), strict=True)
        parts = [part[: gradient.numel()].view_as(gradient) for part, gradient in pairs]
        torch._foreach_copy_(parts, list(rest.values()))
        self._world.sum_(block)
        sums = dict(zip(rest, parts, strict=True))
        return [sums.get(place, gradient) for place, gradient in enumerate(gradients)]


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
