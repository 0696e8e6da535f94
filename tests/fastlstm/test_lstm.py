"""fastlstm.LSTM as a drop-in for torch.nn.LSTM, and what it adds; Triton runs in its interpreter without a GPU."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastlstm import LSTM
from fastlstm import lstm as functional
from plain_lstm import assert_outputs_right, assert_right, module_lstm
from recurrences import DEVICE, DTYPES
from tolerance import assert_as_good_as

# float64 round-off of a few dozen terms; the input product is one matrix product whose sums depend on its height.
EXACT = {"rtol": 0.0, "atol": 1e-13}
BACKENDS = ["torch", "triton"]
# torch.compile imports parts of torch which use what torch deprecates (torch.jit.script_method in 2.11).
compiles = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:torch\.")


def make(
    T: int, B: int, *sizes: int, dtype: torch.dtype = torch.float32, **options: object
) -> tuple[LSTM, Tensor, tuple[Tensor, Tensor]]:
    """A module on the device under test, an input and a first state."""
    generator = torch.Generator().manual_seed(T + 100 * B)
    torch.manual_seed(0)
    lstm = LSTM(*sizes, **options).to(DEVICE, dtype)  # type: ignore[arg-type]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    states = lstm.num_layers * (2 if lstm.bidirectional else 1)
    hx = draw(states, B, lstm.hidden_size).to(dtype), draw(states, B, lstm.hidden_size)
    return lstm, draw(T, B, lstm.input_size).to(dtype), hx


def some_resets(T: int, B: int) -> Tensor:
    return (torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.3).to(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("T", "B", "options"),
    [
        (5, 3, {}),
        (1, 1, {"num_layers": 2}),
        (2, 2, {"bidirectional": True, "num_layers": 2}),
        (2, 17, {"bias": False}),
    ],
)
def test_every_output_and_gradient_is_right(T: int, B: int, options: dict[str, object], backend: str) -> None:
    assert_right(*make(T, B, 5, 11, backend=backend, **options))


@pytest.mark.parametrize(
    ("options", "lengths", "ids"),
    [
        ({"num_layers": 2, "bidirectional": True}, None, False),
        ({"bias": False}, [6, 2, 0], False),
        ({"bidirectional": True}, [6, 2, 0], True),
        ({"recompute": True}, None, True),
    ],
)
def test_outputs_without_gradients_are_right(options: dict[str, object], lengths: list[int] | None, ids: bool) -> None:
    lstm, x, hx = make(6, 3, 7, 16, backend="torch", **options)
    given = torch.randint(0, 7, (6, 3), dtype=torch.uint8).to(DEVICE) if ids else x
    ends = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    assert_outputs_right(lstm, given, hx, lengths=ends)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_low_precision_is_right(backend: str, dtype: torch.dtype) -> None:
    got = assert_right(*make(3, 3, 5, 16, dtype=dtype, backend=backend), resets=some_resets(3, 3))
    assert got["output"].dtype == got["h_n"].dtype == dtype
    assert got["c_n"].dtype == got["cells"].dtype == torch.float32


@pytest.mark.parametrize(
    ("bidirectional", "with_resets", "backend"),
    [
        (False, False, "torch"),
        (False, True, "torch"),
        (True, False, "torch"),
        (True, True, "torch"),
        (True, True, "triton"),
    ],
)
def test_lengths_are_right(bidirectional: bool, with_resets: bool, backend: str) -> None:
    lstm, x, hx = make(4, 4, 3, 6, bidirectional=bidirectional, backend=backend)
    lengths = torch.tensor([4, 1, 0, 3], device=DEVICE)
    got = assert_right(lstm, x, hx, lengths=lengths, resets=some_resets(4, 4) if with_resets else None)
    padding = torch.arange(4, device=DEVICE).unsqueeze(1) >= lengths
    for name in ("output", "cells", "d_x"):
        assert not got[name][padding].any(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_are_read_as_one_hot_vectors(backend: str) -> None:
    lstm, _, hx = make(4, 3, 256, 8, bidirectional=True, backend=backend)
    ids = torch.randint(0, 256, (4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    lengths = torch.tensor([4, 2, 3], device=DEVICE)
    assert_right(lstm, ids, hx, resets=some_resets(4, 3), lengths=lengths)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ids", [False, True])
def test_recomputing_gates_is_right(ids: bool, backend: str) -> None:
    lstm, x, hx = make(3, 3, 5, 8, recompute=True, backend=backend)
    x = torch.randint(0, 5, (3, 3), dtype=torch.uint8).to(DEVICE) if ids else x
    assert_right(lstm, x, hx, resets=some_resets(3, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("T", "B", "I", "H", "options"),
    [
        (3, 17, 16, 32, {}),
        (1, 3, 7, 20, {"bias": False}),
        (3, 2, 1, 5, {"bidirectional": True, "num_layers": 2}),
        (2, 3, 20, 40, {"batch_first": True}),
    ],
)
def test_few_features_are_right(
    T: int, B: int, I: int, H: int, options: dict[str, Any], recompute: bool, dtype: torch.dtype
) -> None:
    lstm, x, hx = make(T, B, I, H, dtype=dtype, backend="triton", recompute=recompute, **options)
    lstm.batch_first = False
    assert_right(lstm, x, hx, resets=some_resets(T, B))
    if T > 1:
        assert_right(lstm, x, hx, lengths=torch.full((B,), T - 1, device=DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("T", [1, 4])
def test_no_state_is_a_state_of_zeros(T: int, grad: bool, backend: str) -> None:
    lstm, x, hx = make(T, 3, 4, 8, backend=backend)
    parameters = list(lstm.parameters())
    results = []
    for state in (None, (torch.zeros_like(hx[0]), torch.zeros_like(hx[1]))):
        with torch.set_grad_enabled(grad):
            output, (h_n, c_n), cells = lstm(x, state, return_cells=True)
        loss = output.sum() + c_n.sum()
        results.append((output, h_n, c_n, cells, *(torch.autograd.grad(loss, parameters) if grad else ())))
    for none, zeros in zip(*results, strict=True):
        assert torch.equal(none, zeros)
    with torch.no_grad():
        output.fill_(7)
    assert torch.equal(h_n, results[0][1]), "the final state is a part of the output"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {}),
        ({"num_layers": 2, "batch_first": True}, {}),
        ({"bidirectional": True}, {}),
        ({}, {"lengths": torch.tensor([4, 1, 3])}),
    ],
)
def test_cells_leave_as_they_are_wanted(options: dict[str, Any], asked: dict[str, Tensor], backend: str) -> None:
    lstm, x, _ = make(4, 3, 4, 8, backend=backend, **options)
    x = x.transpose(0, 1) if lstm.batch_first else x
    asked = {name: tensor.to(DEVICE) for name, tensor in asked.items()}
    units = torch.tensor([7, 0, 3] + ([11] if lstm.bidirectional else []))
    with torch.no_grad():
        output, state, cells = lstm(x, return_cells=True, **asked)
        for dtype, chosen in (
            (torch.float16, units),
            (torch.float16, None),
            (None, units),
            (torch.float32, units.int()),
        ):
            got_output, got_state, got = lstm(x, return_cells=True, cells_dtype=dtype, cell_units=chosen, **asked)
            expected = cells if chosen is None else cells[:, :, chosen.long().to(DEVICE)]
            assert torch.equal(got, expected.to(dtype or torch.float32))
            assert got.dtype == (dtype or torch.float32)
            assert torch.equal(got_output, output)
            assert torch.equal(got_state[1], state[1])


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"cells_dtype": torch.float16, "return_cells": False}, ValueError, "expected None without return_cells=True"),
        ({"cells_dtype": torch.int32}, TypeError, r"cells_dtype: expected a floating-point dtype, got torch\.int32"),
        ({"cell_units": torch.zeros(2, 2).long()}, ValueError, r"cell_units: expected shape \(U,\) with U >= 1"),
        ({"cell_units": torch.zeros(2)}, TypeError, r"cell_units: expected an integer dtype, got torch\.float32"),
        ({"cell_units": torch.tensor([1, 4])}, ValueError, r"different units from 0 to 3, got \[1, 4\]"),
        ({"cell_units": torch.tensor([1, 0, 1])}, ValueError, r"different units from 0 to 3, got \[1, 0, 1\]"),
    ],
)
def test_cells_wanted_wrongly_are_named(asked: dict[str, Any], error: type[Exception], message: str) -> None:
    lstm, x = LSTM(5, 4, device=DEVICE), torch.zeros(3, 2, 5, device=DEVICE)
    with torch.no_grad(), pytest.raises(error, match=message):
        lstm(x, **({"return_cells": True} | asked))
    with pytest.raises(ValueError, match=r"expected None where a gradient is wanted; use torch\.no_grad"):
        lstm(x, return_cells=True, cells_dtype=torch.float16)


@compiles
def test_compile_takes_chosen_cells() -> None:
    torch._dynamo.reset()
    lstm, x, _ = make(4, 3, 4, 8)
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend="aot_eager")
    asked = {"return_cells": True, "cells_dtype": torch.float16, "cell_units": torch.tensor([5, 2], device=DEVICE)}
    with torch.no_grad():
        assert torch.equal(compiled(x, **asked)[2], lstm(x, **asked)[2])


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_flat_parameters_are_parameters_still(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """On a GPU all of them lie in one block; whatever copies, saves or trains a module does not notice."""
    lstm, x, hx = make(3, 2, 5, 8, dtype=dtype, backend="torch", **options)
    expected = lstm(x, hx)[0]

    def blocks(module: LSTM) -> int:
        return len({parameter.untyped_storage().data_ptr() for parameter in module.parameters()})

    loaded = LSTM(5, 8, backend="torch", device=DEVICE, dtype=dtype, **options)
    loaded.load_state_dict(lstm.state_dict())
    saved = io.BytesIO()
    torch.save(lstm, saved)
    saved.seek(0)
    copies = [
        lstm,
        copy.deepcopy(lstm),
        pickle.loads(pickle.dumps(lstm)),
        loaded,
        torch.load(saved, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(other(x, hx)[0], expected)
        assert blocks(other) == (1 if DEVICE == "cuda" else len(list(lstm.parameters())))
    assert blocks(lstm.double().to(dtype)) == blocks(lstm)
    optimizer = torch.optim.SGD(lstm.parameters(), 0.1)
    before = [parameter.detach().clone() for parameter in lstm.parameters()]
    lstm(x, hx)[0].sum().backward()
    optimizer.step()
    for parameter, old in zip(lstm.parameters(), before, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.detach(), old.add(parameter.grad, alpha=-0.1))


def test_shared_parameters_stay_shared() -> None:
    lstm = LSTM(8, 8, device=DEVICE)
    lstm.weight_ih_l0 = lstm.weight_hh_l0
    lstm.flatten_parameters()
    assert lstm.weight_ih_l0.data_ptr() == lstm.weight_hh_l0.data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cudnn_finds_its_weights_in_one_block(dtype: torch.dtype) -> None:
    """Else torch warns, which the tests take for an error, and copies them on every call."""
    lstm, x, hx = make(1, 16, 128, 128, dtype=dtype, backend="cudnn")
    for module in (lstm, copy.deepcopy(lstm), lstm.cpu().to(DEVICE)):
        with torch.no_grad():
            module(x, hx)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_bit_equal(backend: str) -> None:
    given = make(2, 3, 5, 8, backend=backend)
    first, second = module_lstm(*given), module_lstm(*given)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((7, 3, 5), {}),
        ((3, 7, 5), {"batch_first": True, "num_layers": 3}),
        ((7, 5), {}),
        ((7, 5), {"bidirectional": True, "batch_first": True}),
        ((7, 3, 5), {"bidirectional": True, "num_layers": 2}),
        ((7, 3, 5), {"bias": False}),
    ],
)
def test_a_call_equals_one_of_nn_lstm(shape: tuple[int, ...], options: dict[str, object]) -> None:
    ours, theirs = LSTM(5, 8, **options).double(), nn.LSTM(5, 8, **options).double()  # type: ignore[arg-type]
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    (output, state), (expected, expected_state) = ours(x), theirs(x)
    torch.testing.assert_close(output, expected, **EXACT)
    torch.testing.assert_close(state, expected_state, **EXACT)
    assert output.stride() == expected.stride()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_equal_packed_sequences(bidirectional: bool) -> None:
    options = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": True}
    ours, theirs = LSTM(5, 8, **options).double(), nn.LSTM(5, 8, **options).double()  # type: ignore[arg-type]
    theirs.load_state_dict(ours.state_dict())
    x, lengths = torch.randn(3, 7, 5, dtype=torch.float64), torch.tensor([4, 7, 1])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed_output, expected_state = theirs(packed)
    expected, _ = pad_packed_sequence(packed_output, batch_first=True, total_length=7)
    output, state = ours(x, lengths=lengths)
    torch.testing.assert_close(output, expected, **EXACT)
    torch.testing.assert_close(state, expected_state, **EXACT)


def test_padding_is_not_read_even_if_it_is_nan() -> None:
    lstm, lengths = LSTM(5, 4, bidirectional=True), torch.tensor([2, 4])
    x = torch.randn(4, 2, 5)
    expected, _ = lstm(x, lengths=lengths)
    x[2:, 0] = torch.nan
    x.requires_grad_()
    output, _ = lstm(x, lengths=lengths)
    assert torch.equal(output, expected)
    gradients = torch.autograd.grad(output.sum(), [x, *lstm.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_reset_cuts_both_directions() -> None:
    lstm = LSTM(5, 4, bidirectional=True).double()
    x = torch.randn(6, 1, 5, dtype=torch.float64)
    resets = torch.zeros(6, 1, dtype=torch.bool)
    resets[3] = True
    output, _ = lstm(x, resets=resets)
    parts = torch.cat((lstm(x[:3])[0], lstm(x[3:])[0]))
    torch.testing.assert_close(output, parts, **EXACT)


def test_the_initialisation_is_that_of_nn_lstm() -> None:
    torch.manual_seed(3)
    ours = LSTM(4, 6, num_layers=2, bidirectional=True)
    torch.manual_seed(3)
    theirs = nn.LSTM(4, 6, num_layers=2, bidirectional=True)
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.flatten_parameters()


def test_cells_and_their_gradient() -> None:
    lstm = LSTM(5, 4).double()
    x = torch.randn(6, 2, 5, dtype=torch.float64, requires_grad=True)
    _, (_, c_n), cells = lstm(x, return_cells=True)
    assert torch.equal(cells[-1], c_n[0])
    assert torch.autograd.gradcheck(lambda value: lstm(value, return_cells=True)[2], (x,))


def test_resets_cut_state_and_gradient() -> None:
    lstm = LSTM(5, 4).double()
    x = torch.randn(6, 1, 5, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(6, 1, dtype=torch.bool)
    resets[3] = True
    output, _ = lstm(x, resets=resets)
    alone, _ = lstm(x[3:])
    torch.testing.assert_close(output[3:], alone, **EXACT)
    (gradient,) = torch.autograd.grad(output[3:].sum(), x)
    assert gradient[:3].abs().sum() == 0
    assert gradient[3:].abs().sum() > 0


def test_state_carries_over() -> None:
    lstm = LSTM(5, 4, num_layers=2).double()
    x = torch.randn(8, 2, 5, dtype=torch.float64)
    whole, end = lstm(x)
    first, state = lstm(x[:3])
    second, state = lstm(x[3:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole, **EXACT)
    torch.testing.assert_close(state[1], end[1], **EXACT)


def test_dropout_falls_between_layers_in_training_only() -> None:
    lstm, x = LSTM(5, 8, num_layers=2, dropout=0.5), torch.randn(4, 2, 5)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_once_and_keeps_c(backend: str) -> None:
    dtype = torch.bfloat16 if backend == "torch" or DEVICE == "cuda" else torch.float16
    lstm, x, hx = make(2, 3, 5, 8, backend=backend)
    with torch.autocast(DEVICE, dtype):
        got = module_lstm(lstm, x, hx)
    assert got["output"].dtype == dtype
    assert got["c_n"].dtype == got["d_x"].dtype == got["d_weight_hh_l0"].dtype == torch.float32
    low = LSTM(5, 8, backend=backend).to(DEVICE, dtype)
    low.load_state_dict(lstm.state_dict())
    expected = module_lstm(low, x.to(dtype), hx)
    for name in ("output", "h_n", "c_n", "cells", "d_weight_hh_l0", "d_x"):
        # Not one rounding apart: autocast changes where values are cast, and nothing else.
        assert torch.equal(got[name], expected[name].to(got[name].dtype)), name


@compiles
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "recompute": True}])
def test_compile_takes_the_whole_call_at_any_length(options: dict[str, object]) -> None:
    torch._dynamo.reset()
    # No two sizes alike: torch.compile takes sizes that agree at first for one and the same.
    lstm, _, _ = make(7, 3, 5, 8, backend="torch", **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend=counter)
    graphs = 0
    for T in (7, 9, 6):
        _, x, hx = make(T, 3, 5, 8, **options)
        expected = module_lstm(lstm, x, hx, resets=some_resets(T, 3))
        got = module_lstm(lstm, x, hx, compiled=compiled, resets=some_resets(T, 3))
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor), name
        graphs = graphs or counter.frame_count
    assert counter.frame_count == graphs > 0


@compiles
@pytest.mark.parametrize("features", [4, 5])  # 4 are multiplied inside the kernel
def test_compile_takes_triton(features: int) -> None:
    torch._dynamo.reset()
    lstm, _, _ = make(7, 3, features, 8, backend="triton")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend=counter)
    for T in (7, 9, 6):
        _, x, hx = make(T, 3, features, 8)
        expected, got = module_lstm(lstm, x, hx), module_lstm(lstm, x, hx, compiled=compiled)
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor), name
        with torch.no_grad():
            assert torch.equal(compiled(x)[0], lstm(x)[0])
    assert counter.frame_count <= 3  # with gradients and a state, and without


@compiles
def test_compile_takes_ids_and_lengths() -> None:
    torch._dynamo.reset()
    lstm = LSTM(256, 8, bidirectional=True)
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (4, 6):
        ids, lengths = torch.randint(0, 256, (T, 3), dtype=torch.uint8), torch.tensor([T, 1, 3])
        with torch.no_grad():
            assert torch.equal(compiled(ids, lengths=lengths)[0], lstm(ids, lengths=lengths)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend: str) -> None:
    lstm, x, hx = make(2, 3, 5, 8, backend=backend)
    with torch.no_grad():
        for parameter in lstm.parameters():
            if parameter.dim() == 2:
                parameter.set_(parameter.t().contiguous().t())
    h0, c0 = (state.transpose(1, 2).contiguous().transpose(1, 2) for state in hx)
    assert_right(lstm, x.transpose(0, 2).contiguous().transpose(0, 2), (h0, c0))


def test_functional_form_needs_no_module() -> None:
    module, x, hx = make(4, 3, 5, 8, num_layers=2)
    output, (h_n, c_n) = functional(x, hx, module.weights(), num_layers=2)  # type: ignore[misc]
    expected, state = module(x, hx)
    assert torch.equal(output, expected)
    assert torch.equal(h_n, state[0])
    assert torch.equal(c_n, state[1])
    with pytest.raises(ValueError, match="weights: expected 4 tensors, got 8"):
        functional(x, hx, module.weights())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.zeros(3, 2, 6), ValueError, r"input.size\(-1\) must be equal to input_size. Expected 5, got 6"),
        (torch.zeros(3, 2, 5, 1), ValueError, "LSTM: Expected input to be 2D or 3D, got 4D instead"),
        (torch.zeros(3, 2, 5).double(), ValueError, r"RNN input dtype \(torch.float64\) does not match weight dtype"),
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, r"input: expected a floating-point dtype, or torch\.uint8"),
        (torch.zeros(1, 3, 2, dtype=torch.uint8), ValueError, "LSTM: Expected ids to be 1D or 2D, got 3D instead"),
        (torch.full((3, 2), 5, dtype=torch.uint8), ValueError, "ids: expected values below 5, got 5"),
        (pack_padded_sequence(torch.zeros(3, 2, 5), torch.tensor([3, 1])), TypeError, "PackedSequence; .* lengths="),
    ],
)
def test_wrong_input_is_named(given: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LSTM(5, 4)(given)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"resets": torch.zeros(2, 3) > 0}, ValueError, r"resets: expected shape \(3, 2\), got \(2, 3\)"),
        ({"resets": torch.zeros(3, 2)}, TypeError, r"resets: expected torch.bool, got torch.float32"),
        ({"lengths": torch.zeros(3)}, ValueError, r"lengths: expected shape \(2,\), got \(3,\)"),
        ({"lengths": torch.zeros(2)}, TypeError, r"lengths: expected an integer dtype, got torch.float32"),
        ({"lengths": torch.tensor([1, 4])}, ValueError, r"lengths: expected values from 0 to T=3, got 4"),
        ({"lengths": torch.tensor([-1, 3])}, ValueError, r"lengths: expected values from 0 to T=3, got -1"),
        (
            {"hx": (torch.zeros(1, 2, 4), torch.zeros(1, 3, 4))},
            ValueError,
            r"Expected hidden\[1\] size \(1, 2, 4\), got \[1, 3, 4\]",
        ),
        (
            {"hx": (torch.zeros(1, 4), torch.zeros(1, 4))},
            ValueError,
            r"For batched 3-D input, hx and cx should also be 3-D but got \(2-D, 2-D\) tensors",
        ),
    ],
)
def test_wrong_arguments_are_named(asked: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LSTM(5, 4)(torch.zeros(3, 2, 5), **asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": 2}, "proj_size: expected 0, got 2; torch.nn.LSTM has projections"),
        ({"backend": "fastest"}, "backend: expected 'auto', 'hopper', 'triton', 'cudnn' or 'torch', got 'fastest'"),
        ({"num_layers": 0}, "num_layers: expected a positive integer, got 0"),
        ({"dropout": 2.0}, r"dropout: expected a probability in \[0, 1\], got 2.0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(5, 4, **options)  # type: ignore[arg-type]


def test_the_printed_form_shows_what_is_unusual() -> None:
    assert repr(LSTM(5, 4)) == "LSTM(5, 4)"
    shown = repr(LSTM(5, 4, bidirectional=True, recompute=True, backend="torch"))
    assert shown == "LSTM(5, 4, bidirectional=True, recompute=True, backend=torch)"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T", "B", "I", "H"), [(9, 33, 100, 200), (5, 130, 256, 272), (17, 7, 128, 1024)])
def test_odd_sizes_are_right_on_a_gpu(T: int, B: int, I: int, H: int, dtype: torch.dtype) -> None:
    lstm, x, hx = make(T, B, I, H, dtype=dtype, backend="triton")
    first = assert_right(lstm, x, hx, resets=some_resets(T, B))
    for _ in range(3):
        for name, tensor in module_lstm(lstm, x, hx, resets=some_resets(T, B)).items():
            assert torch.equal(tensor, first[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("training", [False, True])
def test_cudnn_is_right_in_either_mode(training: bool) -> None:
    lstm, x, hx = make(6, 16, 128, 128, dtype=torch.float16, backend="cudnn")
    lstm.train(training)
    theirs = nn.LSTM(128, 128, device=DEVICE, dtype=torch.float16)
    theirs.load_state_dict(lstm.state_dict())
    x.requires_grad_()
    (output, state), (expected, expected_state) = lstm(x, hx), theirs(x, (hx[0], hx[1].half()))
    assert torch.equal(output, expected)
    assert torch.equal(state[1], expected_state[1].float())
    assert torch.equal(*(torch.autograd.grad(value.float().sum(), x)[0] for value in (output, expected)))


@pytest.mark.gpu
@pytest.mark.parametrize("ids", [False, True])
def test_a_cuda_graph_replays_a_training_step(ids: bool) -> None:
    lstm, x, hx = make(9, 20, 256, 64, dtype=torch.bfloat16, backend="triton", num_layers=2)
    if ids:
        x = torch.randint(0, 256, (9, 20), dtype=torch.uint8, device=DEVICE)
    parameters = list(lstm.parameters())

    def step() -> tuple[Tensor, ...]:
        output, (h_n, c_n) = lstm(x, hx)
        gradients = torch.autograd.grad(output.float().sum(), parameters)
        # Undetached, a graph would outlive the step and keep its parameters' nodes on a stream no capture may touch.
        return output.detach(), h_n.detach(), c_n.detach(), *gradients

    # All that happens but once, as compiling, happens before the capture, and not on the default stream.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        for tensor in captured:
            tensor.fill_(torch.nan)
        graph.replay()
        for tensor, once in zip(captured, expected, strict=True):
            assert torch.equal(tensor, once)


@compiles
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # advice of inductor's
@pytest.mark.gpu
def test_inductor_compiles_the_whole_call() -> None:
    torch._dynamo.reset()
    lstm, _, _ = make(1, 1, 64, 64, dtype=torch.bfloat16, backend="triton")
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True)
    for T in (4, 7):
        x = torch.randn(T, 3, 64, device=DEVICE, dtype=torch.bfloat16)
        with torch.no_grad():
            output, expected = compiled(x)[0], lstm(x)[0]
        assert_as_good_as("output", output, expected, expected.double())
