"""One update of the weights, from a packet of bytes to the sums of the log, without a word between host and GPU.

    packet (ids, resets, rate) -> logits -> cross-entropy and its gradient -> gradients -> sum over processes
    -> norm, Adam -> weights; the state (h, c) and the totals stay on the device

On a GPU all of it is captured once as a CUDA graph and replayed for every update.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm.backends import HAS_TRITON, Choice
from fastlstm.model import ByteLM
from fastlstm.module import State
from fastlstm.training.config import DTYPES, TrainConfig
from fastlstm.training.distributed import ALONE, GradientSum, World
from fastlstm.training.feed import Packet
from fastlstm.training.optimizer import Adam
from fastlstm_kernels.losses import Scores, cross_entropy

WARM_UP = 3  # updates before the capture, undone: kernels are compiled and libraries set up in them
PARTS = ("forward", "loss", "backward", "all-reduce", "update", "state")


class Totals(NamedTuple):
    """Means since they were last taken: ``loss`` in bits per byte, ``accuracy`` as a share, ``norm`` of the gradient.

    ``skipped``: updates left out because a float16 gradient was not finite.
    """

    loss: float
    accuracy: float
    norm: float
    skipped: int


class TrainStep:
    """The update of ``model`` (float32, on its device) that ``config`` (resolved) describes.

    ``packet`` is what the next call reads, ``state`` what it starts from: h (1, B, H) in the precision of the products
    and c in float32, B this process's streams. ``working`` is the model in that precision.
    """

    def __init__(self, model: ByteLM, config: TrainConfig, world: World = ALONE) -> None:
        device = model.head.weight.device
        dtype = DTYPES[config.optimizer.precision]
        T, B = config.data.window, config.data.batch_size // world.size
        self.model = model
        model.lstm.backend = config.run.backend
        self.working = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self.packet = Packet(T, B, config.data.reset == "document", device)
        H = model.hidden_size
        self.state: State = (torch.zeros(1, B, H, dtype=dtype, device=device), torch.zeros(1, B, H, device=device))
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.names = tuple(trained)
        masters, copies = ([module.get_parameter(name) for name in trained] for module in (model, self.working))
        self.optimizer = Adam(
            [master.detach() for master in masters],
            None if dtype == torch.float32 else [copied.detach() for copied in copies],
            clip=config.optimizer.clip,
            weight_decay=config.optimizer.weight_decay,
            scaled=dtype == torch.float16,
        )
        self._parameters = copies
        self._sum = GradientSum(copies, DTYPES[config.optimizer.all_reduce], world, head=self.working.head.weight)
        self._world = world
        self._rows = T * B
        self._weight = torch.tensor(1 / (T * config.data.batch_size), device=device)  # of a byte in the mean loss
        self._scaled = dtype == torch.float16
        self._totals = torch.zeros(4, device=device)
        self._updates = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured = config.run.graph and device.type == "cuda"

    def __call__(self) -> None:
        """Queue one update with what is in ``packet``."""
        if self._captured and self._graph is None:
            self._graph = self._capture()
        if self._graph is None:
            self.run()
        else:
            self._graph.replay()
        self._updates += 1

    def run(self, mark: Callable[[str], None] = lambda part: None) -> None:
        """The update itself, kernel by kernel; ``mark`` is called after each of PARTS."""
        packet = self.packet
        logits, (h, c) = self.working(packet.ids[:-1], self.state, packet.resets)
        mark("forward")
        with torch.no_grad():
            weight = self._weight * self.optimizer.scale if self._scaled else self._weight
            scores = _score(logits.detach().flatten(0, 1), packet.ids[1:].flatten(), weight)
        mark("loss")
        with self._sum.beside_products():
            gradients: Sequence[Tensor] = torch.autograd.grad(logits, self._parameters, scores.gradient.view_as(logits))
        # A table's gradient comes transposed; the fused operators read memory in its order.
        gradients = [gradient.contiguous() for gradient in gradients]
        mark("backward")
        with torch.no_grad():
            sums = self._sum(gradients)
            mark("all-reduce")
            norm, left_out = self.optimizer.update(sums, packet.rate)
            mark("update")
            self.state[0].copy_(h)
            self.state[1].copy_(c)
            self._totals += torch.cat((scores.totals / self._rows, torch.stack((norm, left_out))))
            mark("state")

    def zero_state(self) -> None:
        for part in self.state:
            part.zero_()

    def set_state(self, state: State) -> None:
        """Go on from ``state`` (h, c), (1, B, H) each, of this process's streams."""
        for part, value in zip(self.state, state, strict=True):
            part.copy_(value)

    def take_totals(self) -> Totals:
        """Means over the updates since the last call, and over all processes; waits for the device."""
        loss, accuracy, norm, skipped = (self._world.sum_(self._totals.clone()) / self._world.size).tolist()
        counted = max(1, self._updates)
        made = max(1, counted - round(skipped))
        self._totals.zero_()
        self._updates = 0
        return Totals(loss / counted / math.log(2), accuracy / counted, norm / made, round(skipped))

    def choice(self) -> Choice:
        """The kernel that runs the LSTM, and why."""
        return self.working.lstm.choice(self.packet.ids[:-1], resets=self.packet.resets)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record the update; the warm-up before it is undone."""
        changed = [*self.optimizer.tensors(), *self.state, self._totals]
        before = [tensor.clone() for tensor in changed]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), warnings.catch_warnings():
            # Of autograd's thread when its first call is a product; it makes the context itself.
            warnings.filterwarnings("ignore", message="Attempting to run cuBLAS, but there was no current CUDA context")
            for _ in range(WARM_UP):
                self.run()
        torch.cuda.current_stream().wait_stream(stream)
        torch._foreach_copy_(changed, before)
        del before
        torch.cuda.empty_cache()  # the graph's memory is its own
        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog asks for events from another thread, which a stricter mode forbids.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.run()
        return graph


def _score(logits: Tensor, targets: Tensor, weight: Tensor) -> Scores:
    if logits.is_cuda and HAS_TRITON:
        from fastlstm_kernels.cross_entropy import cross_entropy_

        return cross_entropy_(logits, targets, weight)
    return cross_entropy(logits, targets, weight)
