"""The reference against torch.nn.LSTM and against numerical derivatives, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastlstm_kernels import lstm_backward, lstm_forward, table_gradient, weight_gradient

# float64 sums of a few hundred terms of size 1: round-off stays under 1e-13; a wrong formula is off by far more.
EXACT = {"rtol": 0.0, "atol": 1e-13}


def arguments(T: int, B: int, H: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "inputs": draw(T, B, 4 * H),
        "weight_hh": draw(4 * H, H) / H**0.5,
        "h0": draw(B, H),
        "c0": draw(B, H),
    }


@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), (7, 3, 5), (20, 2, 16)])
def test_forward_equals_nn_lstm(T: int, B: int, H: int) -> None:
    given = arguments(T, B, H)
    lstm = torch.nn.LSTM(4 * H, H).double()
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(torch.eye(4 * H))
        lstm.weight_hh_l0.copy_(given["weight_hh"])
        lstm.bias_ih_l0.zero_()
        lstm.bias_hh_l0.zero_()
        output, (_, c_n) = lstm(given["inputs"], (given["h0"][None], given["c0"][None]))
    result = lstm_forward(**given)
    torch.testing.assert_close(result.h, output, **EXACT)
    torch.testing.assert_close(result.c[-1], c_n[0], **EXACT)


def test_every_cell_is_what_shorter_runs_end_with() -> None:
    given = arguments(6, 2, 4)
    c = lstm_forward(**given).c
    for t in range(6):
        shorter = given | {"inputs": given["inputs"][: t + 1]}
        torch.testing.assert_close(lstm_forward(**shorter).c[-1], c[t], **EXACT)


def test_resets_start_anew() -> None:
    given = arguments(9, 3, 4)
    resets = torch.zeros(9, 3, dtype=torch.bool)
    resets[0, 0] = resets[4, 1] = resets[8, 2] = resets[4, 0] = True
    result = lstm_forward(**given, resets=resets)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    for b, start in ((0, 0), (1, 4), (2, 8), (0, 4)):
        end = 4 if (b, start) == (0, 0) else 9
        alone = lstm_forward(given["inputs"][start:end, b : b + 1], given["weight_hh"], zero, zero)
        torch.testing.assert_close(result.c[start:end, b : b + 1], alone.c, **EXACT)
        torch.testing.assert_close(result.h[start:end, b : b + 1], alone.h, **EXACT)


def test_a_reset_forgets_even_infinity() -> None:
    given = arguments(3, 1, 2)
    given["c0"].fill_(torch.inf)
    resets = torch.tensor([[True], [False], [False]])
    assert lstm_forward(**given, resets=resets).h.isfinite().all()


def test_table_equals_gathered_inputs() -> None:
    given = arguments(5, 3, 4)
    table = torch.randn(256, 16, dtype=torch.float64)
    ids = torch.randint(0, 256, (5, 3), dtype=torch.uint8)
    by_table = lstm_forward(table, given["weight_hh"], given["h0"], given["c0"], ids=ids)
    dense = lstm_forward(table[ids.long()], given["weight_hh"], given["h0"], given["c0"])
    torch.testing.assert_close(by_table.c, dense.c, rtol=0, atol=0)


class _Reference(torch.autograd.Function):
    """The hand-written backward as autograd would call it, so that gradcheck can judge it."""

    @staticmethod
    def forward(ctx, inputs, weight_hh, h0, c0, resets):  # type: ignore[no-untyped-def]
        result = lstm_forward(inputs, weight_hh, h0, c0, resets=resets)
        ctx.save_for_backward(*result, weight_hh, h0, c0)
        ctx.resets = resets
        return result.h, result.c

    @staticmethod
    def backward(ctx, dh, dc):  # type: ignore[no-untyped-def]
        h, c, gates, weight_hh, h0, c0 = ctx.saved_tensors
        d_gates, dh0, dc0 = lstm_backward(dh, dc, gates, c, c0, weight_hh, resets=ctx.resets)
        return d_gates, weight_gradient(d_gates, h, h0, ctx.resets), dh0, dc0, None


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), (4, 2, 3)])
def test_backward_passes_gradcheck(T: int, B: int, H: int, with_resets: bool) -> None:
    given = {name: tensor.requires_grad_() for name, tensor in arguments(T, B, H).items()}
    resets = None
    if with_resets:
        resets = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.4
    assert torch.autograd.gradcheck(lambda *tensors: _Reference.apply(*tensors, resets), tuple(given.values()))


@pytest.mark.parametrize("missing", ["dh", "dc"])
def test_a_missing_gradient_is_zero(missing: str) -> None:
    given = arguments(4, 2, 3)
    h, c, gates = lstm_forward(**given)
    upstream = torch.randn_like(h)
    zero = torch.zeros_like(h)
    pair = (None, upstream) if missing == "dh" else (upstream, None)
    full = (zero, upstream) if missing == "dh" else (upstream, zero)
    got = lstm_backward(*pair, gates, c, given["c0"], given["weight_hh"])
    expected = lstm_backward(*full, gates, c, given["c0"], given["weight_hh"])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


def test_table_gradient_sums_rows() -> None:
    d_gates = torch.randn(5, 3, 8, dtype=torch.float64)
    ids = torch.randint(0, 4, (5, 3), dtype=torch.uint8)
    table = table_gradient(d_gates, ids, 6)
    for row in range(6):
        torch.testing.assert_close(table[row], d_gates[ids == row].sum(0), **EXACT)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "inputs",
            torch.zeros(3, 2, 15, dtype=torch.float64),
            r"inputs: expected shape \(3, 2, 16\), got \(3, 2, 15\)",
        ),
        ("weight_hh", torch.zeros(16, 5, dtype=torch.float64), r"weight_hh: expected shape \(4H, H\), got \(16, 5\)"),
        ("h0", torch.zeros(3, 4, dtype=torch.float64), r"h0: expected shape \(2, 4\), got \(3, 4\)"),
        ("c0", torch.zeros(2, 4), "c0: expected torch.float64, got torch.float32"),
        ("resets", torch.zeros(3, 2), "resets: expected torch.bool, got torch.float32"),
        ("resets", torch.zeros(2, 3, dtype=torch.bool), r"resets: expected shape \(3, 2\), got \(2, 3\)"),
    ],
)
def test_wrong_arguments_are_named(name: str, value: Tensor, message: str) -> None:
    given = arguments(3, 2, 4) | {name: value}
    with pytest.raises((ValueError, TypeError), match=message):
        lstm_forward(**given)
