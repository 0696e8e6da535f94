"""The operators as PyTorch sees them: registrations, what is kept for the backward, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fastlstm import onednn, ops
from fastlstm.ops import Inputs, State, cell_dtype, layer_inputs, lstm_layer
from fastlstm_kernels.eager import HAS_ONEDNN
from fastlstm_kernels.gradients import PARTS, exchanged
from recurrences import DEVICE, Case
from tolerance import assert_as_good_as

FORWARD, BACKWARD = torch.ops.fastlstm.lstm_forward.default, torch.ops.fastlstm.lstm_backward.default


def arguments(
    case: Case, *, grad: bool = True, cells: bool = True, save_gates: bool = False, backend: str = "torch"
) -> tuple[Any, ...]:
    """Of the forward operator."""
    floating = (case.inputs, case.weight_hh, case.h0, case.c0, case.weight_ih, case.bias_ih, case.bias_hh)
    copies = [None if tensor is None else tensor.clone().requires_grad_(grad) for tensor in floating]
    cells_dtype = cell_dtype(case.dtype) if cells else None
    return (*copies[:4], case.ids, case.resets, *copies[4:], None, cells_dtype, save_gates, backend)


def layer(given: tuple[Any, ...], **options: Any) -> tuple[Tensor, State, Tensor | None]:
    """``lstm_layer`` on the operator's arguments."""
    values, weight_hh, h0, c0, ids, resets, weight_ih, bias_ih, bias_hh, *_ = given
    inputs = Inputs(values, ids, weight_ih, bias_ih, bias_hh)
    return lstm_layer(inputs, weight_hh, h0, c0, resets=resets, **options)


def backward_arguments(case: Case, backend: str, *, recompute: bool = False, strided: bool = False) -> tuple[Any, ...]:
    """Of the backward operator, after a forward."""
    h, _, cells, gates = FORWARD(*arguments(case, grad=False, save_gates=True, backend=backend))
    dh, dc, weight_hh, h0, c0 = (in_other_strides(tensor) if strided else tensor for tensor in case.backward_inputs)
    inputs = case.inputs if recompute or case.weight_ih is not None else None
    dense = (case.weight_ih, case.bias_ih, case.bias_hh)
    rows = 0 if case.ids is None else case.inputs.shape[0]
    given = (dh, case.c0, dc, None if recompute else gates, h, cells, weight_hh, h0, c0, inputs)
    return (*given, case.ids, case.resets, *dense, rows, True, True, backend)


def in_other_strides(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


KINDS = [{}, {"rows": 9}]
TRITON_KINDS = [*KINDS, {"features": 5}]


@pytest.mark.parametrize("resets", [0.0, 0.3])
@pytest.mark.parametrize("save_gates", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forward_passes_opcheck(kind: dict[str, int], save_gates: bool, resets: float) -> None:
    case = Case(3, 2, 4, torch.float32, resets=resets, **kind)
    torch.library.opcheck(FORWARD, arguments(case, save_gates=save_gates))


def test_inference_without_a_state_passes_opcheck() -> None:
    case = Case(3, 2, 4, torch.bfloat16)
    inputs, weight, _, _, *others = arguments(case, grad=False, cells=False)
    torch.library.opcheck(FORWARD, (in_other_strides(inputs), in_other_strides(weight), None, None, *others))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_chosen_units_pass_opcheck(backend: str) -> None:
    case, units = Case(3, 2, 4, torch.float32), torch.tensor([3, 0], device=DEVICE)
    given = [*arguments(case, grad=False, backend=backend)]
    given[9:11] = [units, torch.float16]
    torch.library.opcheck(FORWARD, tuple(given), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", TRITON_KINDS)
def test_triton_passes_opcheck(kind: dict[str, int], dtype: torch.dtype) -> None:
    case = Case(2, 2, 4, dtype, **kind)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    given = arguments(case, save_gates=True, backend="triton")
    torch.library.opcheck(FORWARD, given, test_utils=checks)
    assert FORWARD(*given)[3].dtype == dtype
    for recompute in (False, True):
        torch.library.opcheck(BACKWARD, backward_arguments(case, "triton", recompute=recompute), test_utils=checks)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_backward_passes_opcheck(kind: dict[str, int], recompute: bool) -> None:
    case = Case(3, 2, 4, torch.bfloat16, resets=0.3, **kind)
    torch.library.opcheck(BACKWARD, backward_arguments(case, "torch", recompute=recompute, strided=True))


@pytest.mark.skipif(not HAS_ONEDNN, reason="needs torch with oneDNN on x86")
@pytest.mark.parametrize(("rows", "save_cells"), [(0, True), (9, True), (0, False)])
def test_onednn_passes_opcheck(rows: int, save_cells: bool) -> None:
    case = Case(5, 3, 8, torch.float32, rows=rows)
    x = torch.randn(5, 3, 9) if case.ids is None else case.ids.cpu()
    weights = (torch.randn(32, 9), case.weight_hh.cpu(), torch.randn(32), case.h0.cpu(), case.c0.cpu())
    torch.library.opcheck(onednn._onednn_lstm, (x, *weights, save_cells))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_nothing_is_kept_that_nobody_asked_for(backend: str) -> None:
    case = Case(3, 2, 4, torch.float32)
    _, _, cells, gates = FORWARD(*arguments(case, grad=False, cells=False, backend=backend))
    assert cells.numel() == gates.numel() == 0
    *_, every_c = layer(arguments(case, grad=False), backend=backend)
    assert every_c is None


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("recompute", [False, True])
def test_recompute_keeps_no_gates(recompute: bool, backend: str) -> None:
    case = Case(3, 2, 4, torch.float32, rows=9)
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(arguments(case), recompute=recompute, backend=backend)
    assert ((3, 2, 16) in kept) == (not recompute)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_without_a_gradient_nothing_is_computed_for_one(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.dtype | None, bool]] = []
    operator, direct = ops._lstm_forward, ops._run_forward
    monkeypatch.setattr(ops, "_lstm_forward", lambda *x: asked.append(("operator", *x[10:12])) or operator(*x))
    monkeypatch.setattr(ops, "_run_forward", lambda *x: asked.append(("direct", *x[10:12])) or direct(*x))
    given = arguments(Case(2, 2, 4, torch.float32))
    with torch.no_grad():
        layer(given, backend=backend)
        layer(given, return_cells=True, backend=backend)
    assert asked == [("direct", None, False), ("direct", torch.float32, False)]
    asked.clear()
    layer(given, backend=backend)
    layer(given, recompute=True, backend=backend)
    assert [call for call in asked if call[0] == "operator"] == [
        ("operator", torch.float32, True),
        ("operator", torch.float32, False),
    ]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_whoever_watches_sees_the_operator(backend: str) -> None:
    given = arguments(Case(2, 2, 4, torch.float32), grad=False)
    expected, *_ = layer(given, backend=backend)
    graph = make_fx(lambda inputs: layer((inputs, *given[1:]), backend=backend)[0])(given[0])
    assert FORWARD in {node.target for node in graph.graph.nodes}
    assert torch.equal(graph(given[0]), expected)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake, *_ = layer(given, backend=backend)
    assert isinstance(fake, FakeTensor)
    assert fake.shape == expected.shape


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("with_dc", [False, True])
def test_the_last_cell_has_its_own_gradient(with_dc: bool, backend: str) -> None:
    case = Case(3, 2, 5, torch.float32)
    gradients = []
    for dtype, name in ((torch.float64, "torch"), (torch.float32, backend), (torch.float32, "torch")):
        cast = [tensor.detach().to(dtype).requires_grad_() for tensor in arguments(case)[:4]]
        _, (_, c_n), cells = lstm_layer(Inputs(cast[0]), *cast[1:], return_cells=True, backend=name)
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
    given = arguments(Case(2, 2, 4, torch.float32))
    h, _, _ = layer(given, backend=backend)
    (first,) = torch.autograd.grad(h.sum(), given[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward is not supported: .* use torch\.nn\.LSTM"):
        first.sum().backward()


def test_a_forward_without_cells_has_no_backward() -> None:
    h, *_ = FORWARD(*arguments(Case(2, 2, 4, torch.float32), cells=False))
    with pytest.raises(RuntimeError, match="ran without keeping every c_t"):
        h.sum().backward()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_an_id_without_a_row_is_named_on_a_cpu(backend: str) -> None:
    if DEVICE == "cuda":
        pytest.skip("on a GPU the check is an assertion there, which ends the process's use of it")
    case = Case(2, 2, 4, torch.float32, rows=9)
    assert case.ids is not None
    case.ids[1, 0] = 9
    with pytest.raises(ValueError, match="ids: expected values below 9, got 9"):
        FORWARD(*arguments(case, backend=backend))


def test_autocast_does_not_reach_into_the_operators() -> None:
    case = Case(4, 3, 8, torch.float32)
    results = []
    for enabled in (False, True):
        given = arguments(case)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            h, _, _ = layer(given)
            results.append((h, *torch.autograd.grad(h.sum(), given[:4])))
    for plain, under_autocast in zip(*results, strict=True):
        assert torch.equal(plain, under_autocast)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("x_wanted", [False, True])
def test_dense_inputs_have_the_gradients_of_their_product(x_wanted: bool, state: bool) -> None:
    """x and its product, both with Triton: one is not more wrong than the other, and only what is wanted is made."""
    case = Case(4, 3, 16, torch.float32, features=5, resets=0.3)
    assert case.weight_ih is not None
    results = []
    for dtype, fused in ((torch.float64, None), (torch.float32, True), (torch.float32, False)):
        backend = "torch" if fused is None else "triton"
        floating = (case.weight_hh, case.weight_ih, case.bias_ih, case.bias_hh, case.inputs)
        weight_hh, *dense, x = (
            tensor.to(dtype, copy=True).requires_grad_() for tensor in floating if tensor is not None
        )
        x.requires_grad_(x_wanted)
        states = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (case.h0, case.c0)] if state else []
        inputs = layer_inputs(x, *dense, backend=backend, fused=fused)
        assert (inputs.weight_ih is not None) == (fused is True)
        h, (_, c_n), _ = lstm_layer(inputs, weight_hh, *states, resets=case.resets, backend=backend)
        loss = (h * case.dh.to(dtype)).sum() + (c_n * case.dc[0].to(dtype)).sum()
        results.append((h, *torch.autograd.grad(loss, [weight_hh, *dense, *states, *([x] if x_wanted else [])])))
    for truth, kernel, naive in zip(*results, strict=True):
        assert_as_good_as("gradient", kernel, naive, truth)


def test_few_features_go_into_the_kernel_on_triton_alone() -> None:
    weight = torch.zeros(4 * 16, 8)
    x = torch.zeros(2, 3, 8)
    assert layer_inputs(x, weight, None, None, backend="triton").weight_ih is weight
    assert layer_inputs(x, weight, None, None, backend="torch").values.shape == (2, 3, 64)
    assert layer_inputs(torch.zeros(2, 3, 9), torch.zeros(64, 9), None, None, backend="triton").weight_ih is None
    with pytest.raises(ValueError, match="weight_ih: expected None with backend='torch'"):
        lstm_layer(Inputs(x, None, weight), torch.zeros(64, 16), backend="torch")
    with pytest.raises(ValueError, match="inputs: expected features with weight_ih and backend='triton'"):
        lstm_layer(Inputs(torch.zeros(2, 3, dtype=torch.uint8), None, weight), torch.zeros(64, 16), backend="triton")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_state_without_gradient_or_no_state_changes_no_other_gradient(backend: str) -> None:
    case = Case(4, 3, 16, torch.float32, resets=0.3)
    zeros = torch.zeros_like(case.h0), torch.zeros_like(case.c0)
    found = []
    for given, of_state in ((zeros, True), (zeros, False), ((), False)):
        values, weight_hh, *state = (t.clone().requires_grad_() for t in (case.inputs, case.weight_hh, *given))
        state = [part if of_state else part.detach() for part in state]
        h, (_, c_n), _ = lstm_layer(Inputs(values), weight_hh, *state, resets=case.resets, backend=backend)
        loss = (h * case.dh).sum() + c_n.sum()
        found.append(torch.autograd.grad(loss, [values, weight_hh]))
    for other in found[1:]:
        for expected, got in zip(found[0], other, strict=True):
            assert torch.equal(expected, got)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight_ih": torch.zeros(15, 5)}, ValueError, r"weight_ih: expected shape \(16, I\), got \(15, 5\)"),
        ({"weight_ih": torch.zeros(16, 6)}, ValueError, r"inputs: expected shape \(3, 2, 6\), got \(3, 2, 5\)"),
        ({"weight_ih": torch.zeros(16, 5).half()}, TypeError, r"weight_ih: expected torch\.float32 as weight_hh"),
        ({"bias_ih": None}, ValueError, "bias_ih, bias_hh: expected both with weight_ih, or neither"),
        ({"bias_hh": torch.zeros(4)}, ValueError, r"bias_hh: expected shape \(16,\), got \(4,\)"),
        ({"ids": torch.zeros(3, 2, dtype=torch.uint8)}, ValueError, "weight_ih: expected None with ids"),
        ({"h0": None}, ValueError, "h0, c0: expected both or neither"),
    ],
)
def test_wrong_dense_inputs_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"weight_ih": torch.zeros(16, 5), "bias_ih": torch.zeros(16), "bias_hh": torch.zeros(16)}
    given |= {"ids": None, "h0": torch.zeros(2, 4)} | change
    h0 = given.pop("h0")
    with pytest.raises(error, match=message):
        lstm_layer(Inputs(torch.zeros(3, 2, 5), **given), torch.zeros(16, 4), h0, torch.zeros(2, 4), backend="triton")


class Doubled:
    """An exchange whose sums are there when they are waited for."""

    def __init__(self) -> None:
        self.started: list[tuple[Tensor, Tensor]] = []
        self.waits = 0

    def start(self, weight: Tensor, rows: Tensor) -> None:
        assert not self.waits
        assert rows.is_contiguous()
        self.started.append((weight, rows))

    def wait(self) -> None:
        self.waits += 1
        for _, rows in self.started:
            rows.mul_(2)


@pytest.mark.parametrize("resets", [0.0, 0.3])
@pytest.mark.parametrize("kind", TRITON_KINDS)
def test_the_backward_hands_over_the_gradients_of_its_matrices(kind: dict[str, int], resets: float) -> None:
    """Those of weight_ih first, where they are made by the operator; all others are as without."""
    case = Case(4, 3, 20, torch.float32, resets=resets, **kind)
    given = backward_arguments(case, "triton")
    plain = BACKWARD(*given)
    exchange = Doubled()
    with exchanged(exchange):
        summed = BACKWARD(*given)
    dense = [] if case.weight_ih is None else [case.weight_ih]
    assert exchange.waits == 1
    for (weight, _), expected in zip(exchange.started, [*dense, *[case.weight_hh] * PARTS], strict=True):
        assert weight.data_ptr() == expected.data_ptr()
    factors = {"inputs": 1, "weight_hh": 2, "h0": 1, "c0": 1, "weight_ih": 2, "bias": 1}
    for (name, factor), gradient, other in zip(factors.items(), summed, plain, strict=True):
        assert_as_good_as(name, gradient, factor * other, factor * other.double())
