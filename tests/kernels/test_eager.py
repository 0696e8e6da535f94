"""The served CPU path against the reference: the same numbers to rounding, and only what is asked for."""

from __future__ import annotations

import pytest
import torch

from fastlstm_kernels import eager, reference
from recurrences import DEVICE, Case, poisoned_memory
from tolerance import assert_as_good_as

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("T", "B", "H", "rows", "resets"), [(4, 19, 37, 0, 0.3), (1, 1, 1, 0, 0.0), (5, 3, 16, 9, 0.3), (3, 2, 8, 9, 0.0)]
)
def test_every_output_and_gradient_is_right(
    T: int, B: int, H: int, rows: int, resets: float, dtype: torch.dtype
) -> None:
    case = Case(T, B, H, dtype, rows=rows, resets=resets)
    given = {"ids": case.ids, "resets": case.resets}
    with poisoned_memory():
        out = eager.lstm_forward(
            case.inputs, case.weight_hh, case.h0, case.c0, save_gates=True, save_cells=True, **given
        )
    assert out.cells is not None
    assert out.gates is not None
    assert torch.equal(out.c_n, out.cells[-1])
    back = eager.lstm_backward(case.dh, case.dc, out.gates, out.cells, case.c0, case.weight_hh, resets=case.resets)
    got = {"h": out.h, "c": out.cells, "gates": out.gates} | back._asdict()
    again = eager.recompute_gates(case.inputs, case.weight_hh, case.h0, out.h, **given)
    truth, naive = case.run(torch.float64), case.run(dtype)
    for name, tensor in got.items():
        assert_as_good_as(name, tensor, naive[name], truth[name])
    assert_as_good_as("recomputed gates", again, naive["gates"], truth["gates"])


def test_nothing_is_kept_that_nobody_asked_for() -> None:
    case = Case(4, 3, 16, torch.float32, resets=0.3)
    given = (case.inputs, case.weight_hh, case.h0, case.c0)
    c0 = case.c0.clone()
    every = eager.lstm_forward(*given, resets=case.resets, save_cells=True)
    least = eager.lstm_forward(*given, resets=case.resets)
    assert least.cells is None
    assert least.gates is None
    assert torch.equal(least.h, every.h)
    assert torch.equal(least.c_n, every.c_n)
    assert torch.equal(case.c0, c0)


def test_packed_weights_are_right() -> None:
    case = Case(eager.PACKED_STEPS, 3, eager.PACKED_HIDDEN, torch.float32, resets=0.3)
    given = (case.inputs, case.weight_hh, case.h0, case.c0)
    out = eager.lstm_forward(*given, resets=case.resets, save_gates=True, save_cells=True)
    assert out.cells is not None
    assert out.gates is not None
    back = eager.lstm_backward(case.dh, case.dc, out.gates, out.cells, case.c0, case.weight_hh, resets=case.resets)
    truth, naive = case.run(torch.float64), case.run(torch.float32)
    for name, tensor in ({"h": out.h, "c": out.cells, "gates": out.gates} | back._asdict()).items():
        assert_as_good_as(name, tensor, naive[name], truth[name])


def test_the_gradient_of_the_last_cell_joins_that_of_every_cell() -> None:
    case = Case(4, 3, 5, torch.float32, resets=0.3)
    out = eager.lstm_forward(case.inputs, case.weight_hh, case.h0, case.c0, save_gates=True, save_cells=True)
    assert out.cells is not None
    assert out.gates is not None
    given = (out.gates, out.cells, case.c0, case.weight_hh)
    dc_n, both = torch.randn_like(case.c0), case.dc.clone()
    both[-1] += dc_n
    expected = eager.lstm_backward(case.dh, both, *given, resets=case.resets)
    got = eager.lstm_backward(case.dh, case.dc, *given, dc_n=dc_n, resets=case.resets)
    for tensor, other in zip(got, expected, strict=True):
        assert torch.equal(tensor, other)


def test_float64_is_the_reference() -> None:
    case = Case(4, 3, 5, torch.float64)
    given = (case.inputs, case.weight_hh, case.h0, case.c0.double())
    out, truth = eager.lstm_forward(*given, save_cells=True), reference.lstm_forward(*given)
    assert out.cells is not None
    # The same formulas on the same numbers; a vector unit may round the ends of a row otherwise.
    torch.testing.assert_close(out.h, truth.h, rtol=0, atol=1e-15)
    torch.testing.assert_close(out.cells, truth.c, rtol=0, atol=1e-15)


def test_linear_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((5, 3, 7), (12, 7), (12,)))
    truth = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    for y in (eager.linear(x, weight, bias), eager.linear(x.transpose(0, 1), weight, bias).transpose(0, 1)):
        assert_as_good_as("linear", y, torch.nn.functional.linear(x, weight, bias), truth)
