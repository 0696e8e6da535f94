"""What the tests of the recurrence kernels share: arguments, the truth, and the same naive code in a low precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tolerance import assert_as_good_as

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
# Triton's interpreter multiplies bfloat16 wrongly (it holds it as uint16), so bfloat16 needs a GPU.
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
]


class Case:
    """Arguments of one recurrence and upstream gradients; ``run`` says what naive code makes of them."""

    def __init__(
        self,
        T: int,
        B: int,
        H: int,
        dtype: torch.dtype,
        *,
        resets: float = 0.0,
        scale: float = 1.0,
        rows: int = 0,
        features: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(T + 100 * B + 10_000 * H)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.dtype = dtype
        self.inputs = (scale * draw(*((rows,) if rows else (T, B)), features or 4 * H)).to(DEVICE, dtype)
        self.weight_hh = (draw(4 * H, H) / H**0.5).to(DEVICE, dtype)
        self.h0 = draw(B, H).to(DEVICE, dtype)
        self.c0 = draw(B, H).to(DEVICE)
        self.dh = draw(T, B, H).to(DEVICE, dtype)
        self.dc = draw(T, B, H).to(DEVICE)
        self.ids: Tensor | None = None
        self.resets: Tensor | None = None
        if rows:
            self.ids = torch.randint(0, rows, (T, B), generator=generator, dtype=torch.uint8).to(DEVICE)
        self.weight_ih: Tensor | None = None
        self.bias_ih: Tensor | None = None
        self.bias_hh: Tensor | None = None
        if features:
            self.weight_ih = (draw(4 * H, features) / features**0.5).to(DEVICE, dtype)
            self.bias_ih, self.bias_hh = (draw(4 * H).to(DEVICE, dtype) for _ in range(2))
        if resets:
            self.resets = (torch.rand(T, B, generator=generator) < resets).to(DEVICE)

    @property
    def kind(self) -> dict[str, Tensor | None]:
        """What tells the kind of input, by the names of the kernels' arguments."""
        dense = {"weight_ih": self.weight_ih, "bias_ih": self.bias_ih, "bias_hh": self.bias_hh}
        return dense if self.ids is None else {"ids": self.ids}

    @property
    def backward_inputs(self) -> tuple[Tensor, ...]:
        """dh, dc, weight_hh, h0, c0."""
        return self.dh, self.dc, self.weight_hh, self.h0, self.c0

    def input_product(self, dtype: torch.dtype) -> Tensor:
        """(T, B, 4H), in plain formulas."""
        values = self.inputs.to(dtype)
        if self.ids is not None:
            return values[self.ids.long()]
        if self.weight_ih is None:
            return values
        product = values @ self.weight_ih.to(dtype).t()
        for bias in (self.bias_ih, self.bias_hh):
            product = product if bias is None else product + bias.to(dtype)
        return product

    def run(self, dtype: torch.dtype, *, with_dh: bool = True, with_dc: bool = True) -> dict[str, Tensor]:
        """h, c, activated gates, and the gradients d_gates, dh0, dc0: plain formulas and autograd, all in ``dtype``."""
        given = (self.input_product(dtype), self.h0, self.c0)
        z_in, h0, c0 = (tensor.to(dtype).clone().requires_grad_() for tensor in given)
        weight = self.weight_hh.to(dtype)
        h, c = h0, c0
        steps: dict[str, list[Tensor]] = {"h": [], "c": [], "gates": []}
        for t, x in enumerate(z_in):
            if self.resets is not None:
                reset = self.resets[t].unsqueeze(1)
                h, c = h.masked_fill(reset, 0), c.masked_fill(reset, 0)
            i, f, g, o = (x + h @ weight.t()).chunk(4, 1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = o * c.tanh()
            for name, value in (("h", h), ("c", c), ("gates", torch.cat((i, f, g, o), 1))):
                steps[name].append(value)
        result = {name: torch.stack(values) for name, values in steps.items()}
        loss = torch.zeros((), dtype=dtype, device=DEVICE)
        if with_dh:
            loss = loss + (result["h"] * self.dh.to(dtype)).sum()
        if with_dc:
            loss = loss + (result["c"] * self.dc.to(dtype)).sum()
        gradients = torch.autograd.grad(loss, (z_in, h0, c0))
        result |= dict(zip(("d_gates", "dh0", "dc0"), gradients, strict=True))
        return {name: value.detach() for name, value in result.items()}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty filled with NaN: whatever a kernel forgets to write is seen."""
    empty = torch.empty

    def poisoned(*size: int, **options: object) -> Tensor:
        tensor = empty(*size, **options)  # type: ignore[call-overload]
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield


def run_forward(case: Case, tile: Any, **options: Any) -> dict[str, Tensor]:
    """h, c and gates of ``fastlstm_kernels.forward.lstm_forward``, which must fill all that it returns."""
    from fastlstm_kernels.forward import lstm_forward

    with poisoned_memory():
        out = lstm_forward(
            case.inputs,
            case.weight_hh,
            case.h0,
            case.c0,
            resets=case.resets,
            save_gates=True,
            cells_dtype=torch.float32,
            tile=tile,
            **case.kind,
            **options,
        )
    assert out.cells is not None
    assert out.gates is not None
    assert torch.equal(out.c_n.nan_to_num(9.0), out.cells[-1].nan_to_num(9.0))
    return {"h": out.h, "c": out.cells, "gates": out.gates}


def assert_as_good_as_naive(case: Case, got: dict[str, Tensor]) -> None:
    truth, naive = case.run(torch.float64), case.run(case.dtype)
    for name, tensor in got.items():
        assert_as_good_as(name, tensor, naive[name], truth[name])
