"""A whole LSTM in plain formulas and autograd: what the module's outputs and gradients are held against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlstm import LSTM
from tolerance import assert_as_good_as


def plain_lstm(
    lstm: LSTM,
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    """Outputs, cells, final states of dense ``x`` (T, B, I), and every gradient of ``loss``, computed in ``dtype``."""
    weights = {name: value.detach().to(dtype).requires_grad_() for name, value in lstm.named_parameters()}
    given, h0, c0 = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, *hx))
    T, B, _ = x.shape
    if lengths is None:
        lengths = torch.full((B,), T, device=x.device)
    if resets is None:
        resets = torch.zeros(T, B, dtype=torch.bool, device=x.device)
    sides = ("", "_reverse") if lstm.bidirectional else ("",)
    below, finals = given, []
    for k in range(lstm.num_layers):
        outputs, cells = [], []
        for side in sides:
            w_ih, w_hh = weights[f"weight_ih_l{k}{side}"], weights[f"weight_hh_l{k}{side}"]
            j = len(finals)
            h, c = h0[j], c0[j]
            every_h, every_c = [torch.zeros_like(h)] * T, [torch.zeros_like(h)] * T
            for t in reversed(range(T)) if side else range(T):
                live = (t < lengths).unsqueeze(1)
                cut = resets[t]
                if side:
                    cut = resets[t + 1] & (t + 1 < lengths) if t + 1 < T else torch.zeros_like(cut)
                h_prev, c_prev = h.masked_fill(cut.unsqueeze(1), 0), c.masked_fill(cut.unsqueeze(1), 0)
                z = below[t] @ w_ih.t() + h_prev @ w_hh.t()
                if lstm.bias:
                    z = z + weights[f"bias_ih_l{k}{side}"] + weights[f"bias_hh_l{k}{side}"]
                i, f, g, o = z.chunk(4, 1)
                c_new = f.sigmoid() * c_prev + i.sigmoid() * g.tanh()
                h_new = o.sigmoid() * c_new.tanh()
                h, c = torch.where(live, h_new, h), torch.where(live, c_new, c)
                every_h[t], every_c[t] = h_new.where(live, 0), c_new.where(live, 0)
            outputs.append(torch.stack(every_h))
            cells.append(torch.stack(every_c))
            finals.append((h, c))
        below = torch.cat(outputs, 2)
    h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
    result = {"output": below, "h_n": h_n, "c_n": c_n, "cells": torch.cat(cells, 2)}
    return with_gradients(result, {"x": given, "h0": h0, "c0": c0} | weights)


def module_lstm(
    lstm: LSTM, x: Tensor, hx: tuple[Tensor, Tensor], *, compiled: Any = None, **asked: Tensor | None
) -> dict[str, Tensor]:
    """The same of the module, or of its compiled form; ``x`` may be ids."""
    given = x if x.dtype == torch.uint8 else x.detach().clone().requires_grad_()
    h0, c0 = (tensor.detach().clone().requires_grad_() for tensor in hx)
    output, (h_n, c_n), cells = (lstm if compiled is None else compiled)(given, (h0, c0), return_cells=True, **asked)
    leaves = {"h0": h0, "c0": c0} | dict(lstm.named_parameters())
    if given is not x:
        leaves["x"] = given
    return with_gradients({"output": output, "h_n": h_n, "c_n": c_n, "cells": cells}, leaves)


def with_gradients(result: dict[str, Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """``result`` and, as d_name, the gradients of a fixed random weighing of all of it."""
    generator = torch.Generator().manual_seed(0)
    loss: Tensor | float = 0.0
    for value in result.values():
        weighing = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        loss = loss + (value * weighing).sum().to(torch.float64)
    assert isinstance(loss, Tensor)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"d_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: value.detach() for name, value in result.items()} | named


def assert_right(
    lstm: LSTM,
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
) -> dict[str, Tensor]:
    """Hold every output and gradient of the module against float64; returns them."""
    got = module_lstm(lstm, x, hx, resets=resets, lengths=lengths)
    _hold_against_float64(got, lstm, x, hx, resets=resets, lengths=lengths)
    return got


def assert_outputs_right(
    lstm: LSTM, x: Tensor, hx: tuple[Tensor, Tensor], *, lengths: Tensor | None = None
) -> dict[str, Tensor]:
    """Hold every output of the module without gradients against float64; returns them."""
    with torch.no_grad():
        output, (h_n, c_n), cells = lstm(x, hx, lengths=lengths, return_cells=True)
    got = {"output": output, "h_n": h_n, "c_n": c_n, "cells": cells}
    _hold_against_float64(got, lstm, x, hx, lengths=lengths)
    return got


def _hold_against_float64(
    got: dict[str, Tensor],
    lstm: LSTM,
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
) -> None:
    dtype = next(lstm.parameters()).dtype
    dense = torch.nn.functional.one_hot(x.long(), lstm.input_size) if x.dtype == torch.uint8 else x
    truth = plain_lstm(lstm, dense, hx, torch.float64, resets=resets, lengths=lengths)
    naive = plain_lstm(lstm, dense, hx, dtype, resets=resets, lengths=lengths)
    for name, tensor in got.items():
        assert_as_good_as(name, tensor, naive[name], truth[name])
