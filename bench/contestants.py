"""Who is timed and on what: one layer of ``fastlstm.LSTM`` and of ``torch.nn.LSTM``, and the check that comes first.

A layer takes dense inputs of 256 features (or byte ids, which stand for one-hot vectors of that width); its input
product is timed with it, and ``forward_backward`` ends with the gradients of weights, biases and dense inputs. A call
of many steps starts from zero; one of a single step is given a state, as it is where text is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastlstm
from bench.timing import Call
from fastlstm.version import __version__
from tolerance import assert_as_good_as

INPUT_SIZE = 256
GATE_STEPS = 5
AUTO = "auto"
CASES = ("forward_infer", "forward_cells", "forward_train", "forward_backward")
RECURRENCE = "backward_recurrence"
RECOMPUTED = "forward_backward_recompute"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Shape(NamedTuple):
    """Hidden size, sequences, steps."""

    H: int
    B: int
    T: int

    def __str__(self) -> str:
        return f"H={self.H} B={self.B} T={self.T}"


@dataclass(frozen=True)
class Data:
    """Inputs of one shape and dtype, and the gradient that comes from above; shared by the contestants."""

    dense: Tensor  # (T, B, 256), wants a gradient
    ids: Tensor  # (T, B) uint8
    state: Tensor | None  # (1, B, H), for h and for c; None where T > 1
    d_output: Tensor  # (T, B, H)

    @classmethod
    def draw(cls, shape: Shape, dtype: torch.dtype, device: str) -> Data:
        def normal(width: int) -> Tensor:
            return torch.randn(shape.T, shape.B, width, device=device, dtype=dtype)

        ids = torch.randint(0, INPUT_SIZE, (shape.T, shape.B), device=device, dtype=torch.uint8)
        state = normal(shape.H) if shape.T == 1 else None
        return cls(normal(INPUT_SIZE).requires_grad_(), ids, state, normal(shape.H))


@dataclass(frozen=True)
class Contestant:
    """A name and dtype of the results, what it reads, its version, and its calls by case."""

    name: str
    dtype: str
    input: str
    version: str
    calls: Mapping[str, Call]

    def columns(self, case: str) -> dict[str, str]:
        """The columns of a row of results that say who was measured."""
        columns = {"case": case, "contestant": self.name, "dtype": self.dtype, "input": self.input}
        return columns | {"version": self.version}

    def __str__(self) -> str:
        return f"{self.name} {self.version} {self.dtype} {self.input}"


def without_gradients(call: Call) -> Call:
    def quiet() -> object:
        with torch.no_grad():
            return call()

    return quiet


def ours(
    shape: Shape,
    dtype: str,
    device: str,
    data: Data,
    *,
    backend: str,
    ids: bool = False,
    parts: bool = False,
) -> Contestant:
    """``fastlstm.LSTM`` with a backend forced, or with AUTO what it runs by itself.

    ``parts``: also what the backward costs where gates are computed again, and of dense inputs its recurrence alone.
    """
    lstm = fastlstm.LSTM(INPUT_SIZE, shape.H, device=device, dtype=DTYPES[dtype], backend=backend)
    x = data.ids if ids else data.dense
    wanted = [*lstm.parameters()] if ids else [x, *lstm.parameters()]
    hx = None if data.state is None else (data.state, data.state.float())
    calls: dict[str, Call] = {
        "forward_infer": without_gradients(lambda: lstm(x, hx)),
        "forward_cells": without_gradients(lambda: lstm(x, hx, return_cells=True)),
        "forward_train": lambda: lstm(x, hx),
        "forward_backward": lambda: torch.autograd.grad(lstm(x, hx)[0], wanted, data.d_output),
    }
    if parts:
        frugal = fastlstm.LSTM(INPUT_SIZE, shape.H, device=device, dtype=DTYPES[dtype], backend=backend, recompute=True)
        weights = [*frugal.parameters()] if ids else [x, *frugal.parameters()]
        calls[RECOMPUTED] = lambda: torch.autograd.grad(frugal(x, hx)[0], weights, data.d_output)
    if parts and not ids:
        calls[RECURRENCE] = backward_recurrence(lstm.weight_hh_l0.detach(), data, backend)
    return Contestant(f"fastlstm-{backend}", dtype, "ids" if ids else "dense", __version__, calls)


def backward_recurrence(weight_hh: Tensor, data: Data, backend: str) -> Call:
    """From the gradient of every h_t to that of every gate's sum, by a kernel alone."""
    if backend == "hopper":
        from fastlstm_kernels.hopper.layer import lstm_backward, lstm_forward
    else:
        from fastlstm_kernels.backward import lstm_backward  # type: ignore[assignment]
        from fastlstm_kernels.forward import lstm_forward  # type: ignore[assignment]
    T, B, H = data.d_output.shape
    h0, c0 = weight_hh.new_zeros(B, H), weight_hh.new_zeros(B, H, dtype=torch.float32)
    product = torch.randn(T, B, 4 * H, device=weight_hh.device, dtype=weight_hh.dtype)
    out = lstm_forward(product, weight_hh, h0, c0, save_gates=True, cells_dtype=torch.float32)
    assert out.gates is not None
    assert out.cells is not None
    given = (data.d_output, None, out.gates, out.cells, c0, weight_hh)
    # Triton's kernel makes h0's gradient on its way; after Hopper's it is a product more, and no recurrence.
    options = {"h0_wanted": False} if backend == "hopper" else {}
    return lambda: lstm_backward(*given, **options)


def chosen(shape: Shape, dtype: str, case: str) -> str:
    """The kernel that ``fastlstm.LSTM`` runs by itself on dense inputs, on a GPU like the one of the results."""
    return fastlstm.explain(
        hidden_size=shape.H,
        batch_size=shape.B,
        dtype=DTYPES[dtype],
        steps=shape.T,
        input_size=INPUT_SIZE,
        cells=case == "forward_cells",
        training=case in ("forward_train", "forward_backward"),
    ).backend


def cudnn_version(device: str) -> str:
    """As 9.19.0; nothing where nn.LSTM does not run on cuDNN."""
    number = torch.backends.cudnn.version() if device == "cuda" else None
    return "" if number is None else f"cuDNN {number // 10_000}.{number // 100 % 100}.{number % 100}"


def torch_lstm(shape: Shape, dtype: str, device: str, data: Data) -> Contestant:
    """``torch.nn.LSTM``, which cannot return every c_t."""
    lstm = nn.LSTM(INPUT_SIZE, shape.H, device=device, dtype=DTYPES[dtype])
    wanted = [data.dense, *lstm.parameters()]
    hx = None if data.state is None else (data.state, data.state)
    calls: dict[str, Call] = {
        "forward_infer": without_gradients(lambda: lstm(data.dense, hx)),
        "forward_train": lambda: lstm(data.dense, hx),
        "forward_backward": lambda: torch.autograd.grad(lstm(data.dense, hx)[0], wanted, data.d_output),
    }
    return Contestant("nn.LSTM", dtype, "dense", cudnn_version(device), calls)


def plain_layer(x: Tensor, parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Every h_t and c_t (T, B, H) by the textbook formulas, from zero states, in the dtype of the arguments."""
    weight_ih, weight_hh, bias_ih, bias_hh = parameters
    h = c = x.new_zeros(x.shape[1], weight_hh.shape[1])
    hs, cs = [], []
    for step in x:
        i, f, g, o = (F.linear(step, weight_ih, bias_ih) + F.linear(h, weight_hh, bias_hh)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        hs.append(h)
        cs.append(c)
    return torch.stack(hs), torch.stack(cs)


def gate(shape: Shape, dtype: str, device: str, *, backend: str, ids: bool) -> None:
    """Raise AssertionError unless our layer is as good as naive code: outputs, cells and every gradient, T = 5."""
    lstm = fastlstm.LSTM(INPUT_SIZE, shape.H, device=device, dtype=DTYPES[dtype], backend=backend)
    data = Data.draw(shape._replace(T=GATE_STEPS), DTYPES[dtype], device)
    d_cells = torch.randn(data.d_output.shape, device=device)
    dense = F.one_hot(data.ids.long(), INPUT_SIZE).to(DTYPES[dtype]) if ids else data.dense.detach()

    def results(run: Callable[[Any], tuple[Tensor, Tensor]], x: Tensor, wanted: list[Tensor]) -> list[Tensor]:
        h, c = run(x)
        loss = (h * data.d_output.to(h.dtype)).sum() + (c * d_cells.to(c.dtype)).sum()
        return [h, c, *torch.autograd.grad(loss, wanted)]

    def plain(dtype: torch.dtype) -> list[Tensor]:
        x = dense.to(dtype).requires_grad_(not ids)
        parameters = [parameter.detach().to(dtype).requires_grad_() for parameter in lstm.parameters()]
        return results(lambda x: plain_layer(x, parameters), x, parameters if ids else [*parameters, x])

    def layer(x: Tensor) -> tuple[Tensor, Tensor]:
        h, _, c = lstm(x, return_cells=True)
        return h, c

    x = data.ids if ids else dense.clone().requires_grad_()
    got = results(layer, x, [*lstm.parameters()] if ids else [*lstm.parameters(), x])
    names = ["h", "c", *(f"gradient of {name}" for name, _ in lstm.named_parameters()), "gradient of input"]
    for name, tensor, naive, truth in zip(names, got, plain(DTYPES[dtype]), plain(torch.float64), strict=False):
        assert_as_good_as(f"{name} at H={shape.H} B={shape.B} {dtype}", tensor, naive, truth)
