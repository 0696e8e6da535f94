"""Which kernel runs an LSTM call, and why: the one chooser.

- ``hopper``: the kernels of ``fastlstm_kernels.hopper``, which keep the recurrent weights on the chip for all steps;
  float16 and bfloat16, H in multiples of 256 up to 2048, on an H100.
- ``triton``: the fused kernels of ``fastlstm_kernels``; every feature, on NVIDIA GPUs (or in Triton's interpreter).
- ``cudnn``: the kernel behind torch.nn.LSTM on a GPU; dense inputs, and neither c_t nor resets. It keeps c in the
  dtype of the weights while it runs.
- ``torch``: plain PyTorch; every feature and dtype, anywhere. Without gradients or resets, float32 on an x86 CPU runs
  on oneDNN's LSTM.

A kernel can be forced, by an argument or by the environment variable FASTLSTM_BACKEND (torch.compile reads it when it
traces); the argument wins.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from fastlstm.errors import InputError
from fastlstm_kernels.eager import HAS_ONEDNN
from fastlstm_kernels.hopper.plans import COMPILED_SIZES, size_refusal
from fastlstm_kernels.launch import HOPPER
from fastlstm_kernels.onednn import FEWEST_STEPS

Backend = Literal["auto", "hopper", "triton", "cudnn", "torch"]
FORCED = ("hopper", "triton", "cudnn", "torch")
VARIABLE = "FASTLSTM_BACKEND"
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_CAPABILITY = (8, 0)  # Triton's own
HAS_TRITON = importlib.util.find_spec("triton") is not None


class Call(NamedTuple):
    """What the choice depends on: sizes, dtype of the weights, device type, and what is asked for.

    ``capability`` of the GPU (None: not known, and not held against a kernel) and its ``device_index``;
    ``compiling``: torch.compile is tracing.
    """

    hidden_size: int
    batch_size: int
    dtype: torch.dtype
    device: str = "cuda"
    steps: int = 128
    input_size: int = 256
    num_layers: int = 1
    bidirectional: bool = False
    ids: bool = False
    resets: bool = False
    lengths: bool = False
    cells: bool = False
    recompute: bool = False
    compiling: bool = False
    training: bool = False
    capability: tuple[int, int] | None = None
    device_index: int = 0


@dataclass(frozen=True)
class Choice:
    """The kernel that runs, and the reason. ``fallback``: not the one that a GPU should have."""

    backend: str
    reason: str
    fallback: bool = False

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


ANY = (1, float("inf"))
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class MeasuredRow:
    """Sizes at which a kernel was measured faster than the next one in turn; bounds are inclusive.

    ``training``: only with gradients (True), only without (False), or both (None).
    """

    evidence: str
    dtypes: tuple[torch.dtype, ...]
    H: tuple[float, float] = ANY
    B: tuple[float, float] = ANY
    T: tuple[float, float] = ANY
    training: bool | None = None

    def covers(self, call: Call) -> bool:
        if call.dtype not in self.dtypes or self.training not in (None, call.training):
            return False
        sizes = ((self.H, call.hidden_size), (self.B, call.batch_size), (self.T, call.steps))
        return all(low <= size <= high for (low, high), size in sizes)


def _above(low: int) -> tuple[float, float]:
    return low, float("inf")


# One layer, dense inputs, NVIDIA H100, torch 2.11.0 (cuDNN 9.19), triton 3.6.0, microseconds a step at T = 128;
# bench/results/lstm.csv. One row for each reason, so that a new measurement takes its row away.
# The Hopper kernels against the Triton kernels. A call of theirs begins later, since they load the weights first: won
# back after 6 to 33 steps (73 at H=2048 B=512 without gradients), by the times at T = 1 and T = 128.
LONG = _above(32)
HOPPER_FASTER = (
    MeasuredRow("8.03 against 15.3 at H=2048 B=128", HALF, H=(1536, 2048), B=(1, 256), T=LONG),
    MeasuredRow(
        "forward + backward 106 against 120 at H=2048 B=512", HALF, H=(1536, 2048), B=_above(257), T=LONG, training=True
    ),
    MeasuredRow("31.4 against 32.1 at H=2048 B=512", HALF, H=(1536, 2048), B=_above(257), T=_above(128)),
    MeasuredRow("4.23 against 6.20 at H=1024 B=128", HALF, H=(1024, 1024), B=(33, 256), T=LONG),
    MeasuredRow(
        "forward + backward 160 against 176 at H=1024 B=2048",
        HALF,
        H=(1024, 1024),
        B=_above(257),
        T=LONG,
        training=True,
    ),
    MeasuredRow("47.5 against 51.3 at H=1024 B=2048", HALF, H=(1024, 1024), B=_above(2048), T=LONG),
)
# cuDNN against the Triton kernels:
CUDNN_FASTER = (
    MeasuredRow(
        "forward + backward 377 against 393 at H=4096 B=512", HALF, H=_above(4096), B=_above(512), training=True
    ),
    MeasuredRow(
        "forward + backward 461 against 502 at H=2048 B=2048", HALF, H=_above(2048), B=_above(2048), training=True
    ),
)


def choose(call: Call, backend: str = "auto") -> Choice:
    """The kernel for ``call``. A forced one that cannot run it raises ``ValueError`` saying why."""
    variable = os.environ.get(VARIABLE) if backend == "auto" else None
    if call.compiling:  # sizes may be symbols
        return _choose(call, backend, variable)
    # With all that the answer depends on beside the call.
    simulated = call.device != "cuda" and interpreted()
    surroundings = (HAS_TRITON, simulated, torch.backends.cudnn.enabled)
    return _remembered_choice(call, backend, variable, surroundings)


@functools.lru_cache(maxsize=4096)
def _remembered_choice(call: Call, backend: str, variable: str | None, surroundings: tuple[bool, ...]) -> Choice:
    return _choose(call, backend, variable)


def _choose(call: Call, backend: str, variable: str | None) -> Choice:
    forced, source = backend, "backend"
    if forced == "auto":
        forced, source = variable or "auto", VARIABLE
    if forced != "auto":
        if forced not in FORCED:
            raise InputError(f"{source}: expected 'auto', 'hopper', 'triton', 'cudnn' or 'torch', got {forced!r}")
        refusals = {"hopper": hopper_refusal, "triton": triton_refusal, "cudnn": cudnn_refusal}
        refusal = refusals.get(forced, lambda _: None)(call)
        if refusal is not None:
            raise InputError(f"{source}={forced!r} cannot run this call: {refusal}")
        return Choice(forced, f"forced by {source}")
    if call.device != "cuda":
        if call.device == "cpu" and HAS_ONEDNN and call.dtype == torch.float32 and not (call.training or call.resets):
            return Choice("torch", f"oneDNN's LSTM, as in torch.nn.LSTM on a CPU, from {FEWEST_STEPS} steps on")
        return Choice("torch", f"plain PyTorch on {call.device}; the Triton kernels need an NVIDIA GPU")
    sizes = f"H={call.hidden_size} B={call.batch_size} {call.dtype}"
    resident = next((row for row in HOPPER_FASTER if row.covers(call)), None)
    no_hopper = None if resident is None else hopper_refusal(call, by_itself=True)
    if resident is not None and no_hopper is None:
        return Choice("hopper", f"the kernels with resident weights, measured faster near {sizes}: {resident.evidence}")
    no_triton, no_cudnn = triton_refusal(call), cudnn_refusal(call)
    if no_triton is not None:
        served = no_cudnn is None and call.dtype in TRITON_DTYPES
        return Choice("cudnn" if served else "torch", f"the Triton kernels cannot run this call: {no_triton}", True)
    row = next((row for row in CUDNN_FASTER if row.covers(call)), None)
    if row is None:
        without = "" if no_hopper is None else f"; the Hopper kernels do not serve it: {no_hopper}"
        return Choice("triton", f"the fused kernels; cuDNN was not measured faster near {sizes}{without}")
    if no_cudnn is not None:
        return Choice("triton", f"the fused kernels; cuDNN may be faster near {sizes}, but {no_cudnn}")
    return Choice("cudnn", f"measured no slower than the fused kernels near {sizes}: {row.evidence}")


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def hopper_refusal(call: Call, *, by_itself: bool = False) -> str | None:
    """Why the Hopper kernels cannot run ``call``, or with ``by_itself`` must be forced to; None if they can."""
    if call.device != "cuda":
        return f"they need an NVIDIA GPU, and the tensors are on {call.device}"
    if call.dtype not in HALF:
        return f"they have no {call.dtype}"
    if call.recompute and (no_triton := triton_refusal(call)) is not None:
        return f"the Triton kernels compute the gates again for them, and {no_triton}"
    if (size := size_refusal(call.hidden_size)) is not None:
        return size
    if by_itself and call.hidden_size not in COMPILED_SIZES:
        return f"they come compiled for H = {', '.join(map(str, COMPILED_SIZES))}, others only when they are forced"
    if call.capability is None:
        return None  # ``explain`` with sizes alone: there is no device to ask
    if call.capability != HOPPER:
        return f"they are for compute capability {HOPPER}, and this GPU has {call.capability}"
    refusal: str | None = _hopper_device_refusal(call.device_index)
    return refusal


# torch.compile calls it while it traces, and not again.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _hopper_device_refusal(index: int) -> str | None:
    from fastlstm_kernels.hopper.launch import device_refusal

    return device_refusal(index)


def triton_refusal(call: Call) -> str | None:
    """Why the Triton kernels cannot run ``call``; None if they can."""
    if not HAS_TRITON:
        return "the package triton is not installed"
    if call.device != "cuda" and not interpreted():
        return f"they need an NVIDIA GPU, and the tensors are on {call.device}"
    if call.dtype not in TRITON_DTYPES:
        return f"they have no {call.dtype}"
    if call.device != "cuda" and call.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies torch.bfloat16 wrongly"
    if torch.version.hip is not None:
        return "they wait for each other in a cooperative launch, which Triton has on NVIDIA GPUs only"
    if call.capability is not None and call.capability < OLDEST_CAPABILITY:
        return f"Triton needs compute capability {OLDEST_CAPABILITY}, and this GPU has {call.capability}"
    return None


def cudnn_refusal(call: Call) -> str | None:
    """Why cuDNN cannot run ``call``; None if it can."""
    if call.device != "cuda":
        return f"cuDNN needs an NVIDIA GPU, and the tensors are on {call.device}"
    if call.compiling:
        return "torch.compile takes cuDNN's LSTM apart into single steps"
    for asked, reason in (
        (call.ids, "cuDNN reads dense inputs, not ids"),
        (call.cells, "cuDNN returns no c_t"),
        (call.resets, "cuDNN has no resets"),
        (call.lengths, "cuDNN has no lengths=, only packed sequences"),
        (call.recompute, "cuDNN keeps its own workspace for the backward, so that recompute=True would do nothing"),
    ):
        if asked:
            return reason
    if not torch.backends.cudnn.enabled:
        return "torch.backends.cudnn.enabled is False"
    return None


# torch.compile calls it while it traces, and not again.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def warn_of_fallback(backend: str, reason: str) -> None:
    """Say once for each reason that a GPU does not run the fused kernels."""
    _warn_once(f"fastlstm runs {backend!r}: {reason}")


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=5)
