"""The operators as PyTorch sees them: registrations, what is kept for the backward, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastlstm.ops import lstm_layer
from fastlstm_kernels.eager import HAS_ONEDNN
from recurrences import DEVICE, Case
from tolerance import assert_as_good_as

FORWARD, BACKWARD = torch.ops.fastlstm.lstm_forward.default, torch.ops.fastlstm.lstm_backward.default


def arguments(case: Case, *, grad: bool = True) -> tuple[Any, ...]:
    tensors = (case.inputs, case.weight_hh, case.h0, case.c0)
    return (*(tensor.clone().requires_grad_(grad) for tensor in tensors), case.ids, case.resets)


def strided(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize(
    ("rows", "resets", "save_gates"), [(0, 0.3, True), (9, 0.0, True), (0, 0.0, False), (9, 0.3, False)]
)
def test_forward_passes_opcheck(rows: int, resets: float, save_gates: bool) -> None:
    case = Case(3, 2, 4, torch.float32, rows=rows, resets=resets)
    torch.library.opcheck(FORWARD, (*arguments(case), save_gates, True, "torch"))


def test_inference_and_strides_pass_opcheck() -> None:
    case = Case(3, 2, 4, torch.bfloat16)
    given = [strided(tensor) for tensor in arguments(case, grad=False)[:4]]
    torch.library.opcheck(FORWARD, (*given, None, None, False, False, "torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [0, 9])
def test_triton_passes_opcheck(rows: int, dtype: torch.dtype) -> None:
    case = Case(2, 2, 4, dtype, rows=rows)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    given = (*arguments(case), True, True, "triton")
    torch.library.opcheck(FORWARD, given, test_utils=checks)
    h, _, cells, gates = FORWARD(*arguments(case, grad=False), True, True, "triton")
    assert gates.dtype == dtype
    backward = (case.dh, None, case.dc, gates, h, cells, case.weight_hh, case.h0, case.c0, None, case.ids, None)
    torch.library.opcheck(BACKWARD, (*backward, rows, "triton"), test_utils=checks)


@pytest.mark.parametrize("rows", [0, 9])
def test_backward_passes_opcheck(rows: int) -> None:
    case = Case(3, 2, 4, torch.bfloat16, resets=0.3, rows=rows)
    h, _, cells, gates = FORWARD(*arguments(case, grad=False), True, True, "torch")
    weight, h0, c0 = strided(case.weight_hh), strided(case.h0), strided(case.c0)
    given = (strided(case.dh), case.c0, None, gates, h, cells, weight, h0, c0, None, case.ids, case.resets)
    torch.library.opcheck(BACKWARD, (*given, rows, "torch"))


@pytest.mark.skipif(not HAS_ONEDNN, reason="needs torch with oneDNN on x86")
@pytest.mark.parametrize(("rows", "save_cells"), [(0, True), (9, True), (0, False)])
def test_onednn_passes_opcheck(rows: int, save_cells: bool) -> None:
    case = Case(5, 3, 8, torch.float32, rows=rows)
    x = torch.randn(5, 3, 9) if case.ids is None else case.ids.cpu()
    weights = (torch.randn(32, 9), case.weight_hh.cpu(), torch.randn(32), case.h0.cpu(), case.c0.cpu())
    torch.library.opcheck(torch.ops.fastlstm.onednn_lstm.default, (x, *weights, save_cells))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_nothing_is_kept_that_nobody_asked_for(backend: str) -> None:
    case = Case(3, 2, 4, torch.float32)
    _, _, cells, gates = FORWARD(*arguments(case, grad=False), False, False, backend)
    assert cells.numel() == gates.numel() == 0
    *_, every_c = lstm_layer(*arguments(case, grad=False)[:4], backend=backend)
    assert every_c is None


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("recompute", [False, True])
def test_recompute_keeps_no_gates(recompute: bool, backend: str) -> None:
    case = Case(3, 2, 4, torch.float32, rows=9)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    *given, ids, _ = arguments(case)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lstm_layer(*given, ids=ids, recompute=recompute, backend=backend)
    assert ((3, 2, 16) in kept) == (not recompute)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_without_a_gradient_nothing_is_computed_for_one(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    real = torch.ops.fastlstm.lstm_forward

    def spy(*given: Any) -> Any:
        asked.append(given[6:8])
        return real(*given)

    monkeypatch.setattr("fastlstm.ops._lstm_forward", spy)
    case = Case(2, 2, 4, torch.float32)
    given = arguments(case)[:4]
    with torch.no_grad():
        lstm_layer(*given, backend=backend)
        lstm_layer(*given, return_cells=True, backend=backend)
    lstm_layer(*given, backend=backend)
    lstm_layer(*given, recompute=True, backend=backend)
    assert asked == [(False, False), (False, True), (True, True), (False, True)]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("with_dc", [False, True])
def test_the_last_cell_has_its_own_gradient(with_dc: bool, backend: str) -> None:
    case = Case(3, 2, 5, torch.float32)
    gradients = []
    for dtype, name in ((torch.float64, "torch"), (torch.float32, backend), (torch.float32, "torch")):
        cast = [tensor.detach().to(dtype).requires_grad_() for tensor in arguments(case)[:4]]
        _, c_n, cells = lstm_layer(*cast, return_cells=True, backend=name)
        assert cells is not None
        # The truth goes through every cell, the others through c_n.
        last = cells[-1] if dtype == torch.float64 else c_n
        loss = (last * case.dc[0].to(dtype)).sum()
        if with_dc:
            loss = loss + (cells * case.dc.to(dtype)).sum()
        gradients.append(torch.autograd.grad(loss, cast))
    for truth, kernel, naive in zip(*gradients, strict=True):
        assert_as_good_as("gradient", kernel, naive, truth)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_second_derivative_is_refused(backend: str) -> None:
    inputs, weight, h0, c0, *_ = arguments(Case(2, 2, 4, torch.float32))
    h, _, _ = lstm_layer(inputs, weight, h0, c0, backend=backend)
    (first,) = torch.autograd.grad(h.sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward is not supported: .* use torch\.nn\.LSTM"):
        first.sum().backward()


def test_a_forward_without_cells_has_no_backward() -> None:
    h, *_ = FORWARD(*arguments(Case(2, 2, 4, torch.float32)), False, False, "torch")
    with pytest.raises(RuntimeError, match="ran with save_cells=False"):
        h.sum().backward()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_an_id_without_a_row_is_named_on_a_cpu(backend: str) -> None:
    if DEVICE == "cuda":
        pytest.skip("on a GPU the check is an assertion there, which ends the process's use of it")
    case = Case(2, 2, 4, torch.float32, rows=9)
    assert case.ids is not None
    case.ids[1, 0] = 9
    with pytest.raises(ValueError, match="ids: expected values below 9, got 9"):
        FORWARD(*arguments(case), False, False, backend)


def test_autocast_does_not_reach_into_the_operators() -> None:
    case = Case(4, 3, 8, torch.float32)
    results = []
    for enabled in (False, True):
        given = arguments(case)[:4]
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            h, _, _ = lstm_layer(*given)
            results.append((h, *torch.autograd.grad(h.sum(), given)))
    for plain, under_autocast in zip(*results, strict=True):
        assert torch.equal(plain, under_autocast)
