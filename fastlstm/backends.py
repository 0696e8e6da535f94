"""Which kernel runs an LSTM call, and why: the one chooser.

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
from typing import Literal

import torch

from fastlstm_kernels.eager import HAS_ONEDNN
from fastlstm_kernels.onednn import FEWEST_STEPS

Backend = Literal["auto", "triton", "cudnn", "torch"]
FORCED = ("triton", "cudnn", "torch")
VARIABLE = "FASTLSTM_BACKEND"
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_CAPABILITY = (8, 0)  # Triton's own
HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Call:
    """What the choice depends on: sizes, dtype of the weights, device type, and what is asked for.

    ``capability`` of the GPU (None: not known, and not held against a kernel); ``compiling``: torch.compile is tracing.
    """

    hidden_size: int
    batch_size: int
    dtype: torch.dtype
    device: str = "cuda"
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


@dataclass(frozen=True)
class Choice:
    """The kernel that runs, and the reason. ``fallback``: not the one that a GPU should have."""

    backend: str
    reason: str
    fallback: bool = False

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"


@dataclass(frozen=True)
class CudnnRow:
    """Sizes at which cuDNN was measured faster than the Triton kernels; bounds are inclusive.

    ``persistent``: only where torch lets cuDNN keep the weights on the chip (aten/src/ATen/native/cudnn/RNN.cpp): one
    layer, one direction, H and the input size multiples of 128, B of 8.
    """

    dtypes: tuple[torch.dtype, ...]
    H: tuple[float, float]
    B: tuple[float, float]
    persistent: bool
    training: bool  # only where gradients are wanted
    evidence: str

    def covers(self, call: Call) -> bool:
        if call.dtype not in self.dtypes or (self.training and not call.training):
            return False
        if not (self.H[0] <= call.hidden_size <= self.H[1] and self.B[0] <= call.batch_size <= self.B[1]):
            return False
        if not self.persistent:
            return True
        single = call.num_layers == 1 and not call.bidirectional
        return single and call.hidden_size % 128 == call.input_size % 128 == call.batch_size % 8 == 0


ANY = float("inf")
HALF = (torch.float16, torch.bfloat16)
# NVIDIA H200, torch 2.11.0 (cuDNN 9.19), triton 3.6.0, microseconds a step at T = 128; bench/results/lstm.csv.
CUDNN_FASTER = (
    # B = 8 and 32 are estimates: cuDNN's time grows with B (6.5 at H=512 B=64), ours hardly.
    CudnnRow(
        (torch.float16,),
        (128, 1024),
        (8, 32),
        True,
        False,
        "1.40 against 3.42 at H=256 B=16, 2.02 against 3.69 at H=1024",
    ),
    CudnnRow(HALF, (4096, ANY), (2048, ANY), False, False, "543 against 567 at H=4096 B=2048"),
    CudnnRow(HALF, (2048, ANY), (512, ANY), False, True, "forward + backward 375 against 426 at H=4096 B=512"),
    CudnnRow(HALF, (1024, ANY), (2048, ANY), False, True, "forward + backward 170 against 170 at H=1024 B=2048"),
)


def choose(call: Call, backend: str = "auto") -> Choice:
    """The kernel for ``call``. A forced one that cannot run it raises ``ValueError`` saying why."""
    forced, source = backend, "backend"
    if forced == "auto":
        forced, source = os.environ.get(VARIABLE) or "auto", VARIABLE
    if forced != "auto":
        if forced not in FORCED:
            raise ValueError(f"{source}: expected 'auto', 'triton', 'cudnn' or 'torch', got {forced!r}")
        refusal = {"triton": triton_refusal, "cudnn": cudnn_refusal}.get(forced, lambda _: None)(call)
        if refusal is not None:
            raise ValueError(f"{source}={forced!r} cannot run this call: {refusal}")
        return Choice(forced, f"forced by {source}")
    if call.device != "cuda":
        if call.device == "cpu" and HAS_ONEDNN and call.dtype == torch.float32 and not (call.training or call.resets):
            return Choice("torch", f"oneDNN's LSTM, as in torch.nn.LSTM on a CPU, from {FEWEST_STEPS} steps on")
        return Choice("torch", f"plain PyTorch on {call.device}; the Triton kernels need an NVIDIA GPU")
    no_triton, no_cudnn = triton_refusal(call), cudnn_refusal(call)
    if no_triton is not None:
        served = no_cudnn is None and call.dtype in TRITON_DTYPES
        return Choice("cudnn" if served else "torch", f"the Triton kernels cannot run this call: {no_triton}", True)
    sizes = f"H={call.hidden_size} B={call.batch_size} {call.dtype}"
    row = next((row for row in CUDNN_FASTER if row.covers(call)), None)
    if row is None:
        return Choice("triton", f"the fused kernels; cuDNN was not measured faster near {sizes}")
    if no_cudnn is not None:
        return Choice("triton", f"the fused kernels; cuDNN may be faster near {sizes}, but {no_cudnn}")
    return Choice("cudnn", f"measured no slower than the fused kernels near {sizes}: {row.evidence}")


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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


@functools.cache
def warn_of_fallback(choice: Choice) -> None:
    """Say once for each reason that a GPU does not run the fused kernels."""
    warnings.warn(f"fastlstm runs {choice.backend!r}: {choice.reason}", stacklevel=4)
