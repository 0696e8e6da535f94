"""Other people's LSTM kernels on the work of contestants.py: TorchRL's ``lstm_triton`` and FlashRNN's two CUDA ones.

They need ``pip install torchrl flashrnn einops``, and FlashRNN a CUDA compiler. Each is first tried in a process of its
own, all of them at once, since a build can fail or take minutes:

    python bench/rivals.py NAME H B T CASE
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench.contestants import INPUT_SIZE, Contestant, Data, Shape, plain_layer, without_gradients  # noqa: E402
from bench.records import Row, complete  # noqa: E402
from bench.timing import Call  # noqa: E402

RIVALS = {"torchrl": "torchrl", "flashrnn-fused": "flashrnn", "flashrnn-alternating": "flashrnn"}  # and their package
SHAPES = (Shape(2048, 128, 128), Shape(1024, 128, 128))
# A bfloat16 cell state is off by this much at most; a layer that computes something else, by far more.
WRONG = 0.05

Layer = Callable[[], Tensor]  # every h_t, (B, T, H)
Failures = dict[tuple[str, Shape, str], str]  # a rival, shape and case, and why it has no number


def torchrl_layer(lstm: nn.LSTM, x: Tensor) -> Layer:
    """``lstm_triton`` in bfloat16; sequences first, (B, T, ...), as it wants them."""
    lstm_triton = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton").lstm_triton
    T, B, _ = x.shape
    zeros = x.new_zeros(B, T, lstm.hidden_size)
    no_resets = torch.zeros(B, T, dtype=torch.bool, device=x.device)
    return lambda: lstm_triton(x.transpose(0, 1), zeros, zeros, *lstm.parameters(), no_resets, x.dtype)[0]


def flashrnn_function() -> Callable[..., tuple[Tensor, Tensor]]:
    """``flashrnn.flashrnn`` with what keeps it from building with CUDA 13 taken out of the way."""
    function: Callable[..., tuple[Tensor, Tensor]] = importlib.import_module("flashrnn").flashrnn
    inner: Any = importlib.import_module("flashrnn.flashrnn.flashrnn")
    builder: Any = importlib.import_module("flashrnn.flashrnn.cuda_init")

    def gpu_info(device_id: int) -> dict[str, int]:
        # Its own query is C++ that reads fields CUDA 13 dropped; these four are all that it uses.
        about: Any = torch.cuda.get_device_properties(device_id)
        return {
            "maxThreadsPerBlock": 1024,
            "regsPerMultiprocessor": about.regs_per_multiprocessor,
            "multiProcessorCount": about.multi_processor_count,
            "sharedMemPerBlockOptin": about.shared_memory_per_block_optin,
        }

    inner.get_gpu_info = gpu_info
    # It waits up to 10 s before each build, at random, so that processes do not build one kernel at the same time.
    builder.time = types.SimpleNamespace(sleep=lambda seconds: None)
    return function


def flashrnn_layer(lstm: nn.LSTM, x: Tensor, backend: str) -> Layer:
    """One head; the input product is written in the layout that the backend reads, so that it copies nothing."""
    flashrnn = flashrnn_function()
    H = lstm.hidden_size
    (T, B, _), gates_last = x.shape, backend == "cuda_fused"
    dtype = str(x.dtype).removeprefix("torch.")

    def forward() -> Tensor:
        weight_ih, weight_hh, bias_ih, bias_hh = lstm.parameters()
        if gates_last:
            by_unit = weight_ih.view(4, H, INPUT_SIZE).transpose(0, 1).reshape(4 * H, INPUT_SIZE)
            inputs = F.linear(x, by_unit).view(T, B, 1, H, 4).permute(1, 0, 4, 2, 3)
        else:
            inputs = F.linear(x, weight_ih).view(T, B, 1, 4, H).permute(1, 0, 3, 2, 4)
        states, _ = flashrnn(
            inputs,  # (B, T, gates, heads, H)
            weight_hh.view(4, 1, H, H),
            (bias_ih + bias_hh).view(4, 1, H),
            function="lstm",
            backend=backend,
            dtype=dtype,
        )
        return states[0, :, :, 0]

    return forward


LAYERS: dict[str, Callable[[nn.LSTM, Tensor], Layer]] = {
    "torchrl": torchrl_layer,
    "flashrnn-fused": lambda lstm, x: flashrnn_layer(lstm, x, "cuda_fused"),
    "flashrnn-alternating": lambda lstm, x: flashrnn_layer(lstm, x, "cuda"),
}


def check(name: str, lstm: nn.LSTM, h: Tensor, x: Tensor) -> None:
    """Raise ValueError if a rival's h (B, T, H) is not that of an LSTM."""
    truth, _ = plain_layer(x.detach().double(), [parameter.detach().double() for parameter in lstm.parameters()])
    got = h.detach().double().transpose(0, 1)
    error = float((got - truth).norm() / truth.norm())
    if not error <= WRONG:
        raise ValueError(f"{name}: h is off by {error:.3f} of its norm")


def rival(name: str, shape: Shape, device: str, data: Data, cases: Sequence[str]) -> Contestant:
    """A rival in bfloat16, its result checked; every c_t is always part of what these return."""
    lstm = nn.LSTM(INPUT_SIZE, shape.H, device=device, dtype=torch.bfloat16)
    layer = LAYERS[name](lstm, data.dense)
    d_output = data.d_output.transpose(0, 1).contiguous()
    wanted = [data.dense, *lstm.parameters()]
    with torch.no_grad():
        check(name, lstm, layer(), data.dense)
    calls: dict[str, Call] = {
        "forward_infer": without_gradients(layer),
        "forward_cells": without_gradients(layer),
        "forward_train": layer,
        "forward_backward": lambda: torch.autograd.grad(layer(), wanted, d_output),
    }
    version = importlib.metadata.version(RIVALS[name])
    return Contestant(name, "bf16", "dense", version, {case: calls[case] for case in cases})


def attempt(name: str, shape: Shape, case: str) -> None:
    """Build a rival and run one case once; raises whatever goes wrong."""
    data = Data.draw(shape, torch.bfloat16, "cuda")
    rival(name, shape, "cuda", data, [case]).calls[case]()
    torch.cuda.synchronize()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once ``seconds`` have passed."""

    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"not built and run within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def first_line(error: Exception) -> str:
    """What an error says, cut to fit a row of results."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


def reason_in(log: Path) -> str:
    """The error that a failed attempt ended with, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|OutOfResources)\b", line)]
    return (errors or lines or ["no output"])[-1][:200]


def try_all(
    shapes: Sequence[Shape], cases: Sequence[str], seconds: float, logs: Path, names: Sequence[str] = tuple(RIVALS)
) -> Failures:
    """Try every rival, shape and case in processes of their own, all at once; what failed, with the reason.

    FlashRNN builds forward and backward together, so there the last case stands for all.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[tuple[str, Shape, str], tuple[subprocess.Popen[bytes], Path]] = {}
    for name, shape in itertools.product(names, shapes):
        for case in cases if name == "torchrl" else cases[-1:]:
            log = logs / f"{name}-{shape.H}x{shape.B}x{shape.T}-{case}.log"
            command = [sys.executable, __file__, name, *map(str, (shape.H, shape.B, shape.T)), case]
            with log.open("wb") as output:
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            running[name, shape, case] = process, log
    failed: Failures = {}
    deadline = time.monotonic() + seconds
    for (name, shape, case), (process, log) in running.items():
        try:
            status = process.wait(max(0.0, deadline - time.monotonic()))
            reason = "" if status == 0 else reason_in(log)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it started
            process.wait()
            reason = f"not built and run within {seconds:.0f} s"
        if reason:
            failed |= {(name, shape, part): reason for part in ([case] if name == "torchrl" else cases)}
    return failed


def usable(
    shape: Shape, device: str, data: Data, cases: Sequence[str], failed: Failures, seconds: float
) -> list[Contestant]:
    """The rivals that did not fail in their own process; one that fails in this one is added to ``failed``."""
    found = []
    for name in RIVALS:
        able = [case for case in cases if (name, shape, case) not in failed]
        if able:
            try:
                with time_limit(seconds):
                    found.append(rival(name, shape, device, data, able))
            except Exception as error:  # somebody else's code: whatever it raises is the reason
                failed |= {(name, shape, case): first_line(error) for case in able}
    return found


def without_number(failed: Failures) -> Iterator[Row]:
    """Rows that say why a rival has no time."""
    for (name, shape, case), reason in failed.items():
        yield complete(
            {"suite": "lstm", "case": case, "contestant": name, "H": shape.H, "B": shape.B, "T": shape.T}
            | {"dtype": "bf16", "metric": "time_per_step", "unit": "us", "n": 0, "note": reason}
        )


if __name__ == "__main__":
    attempt(sys.argv[1], Shape(*map(int, sys.argv[2:5])), sys.argv[5])
