"""fastlstm.LSTM as a drop-in for torch.nn.LSTM, and what it adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastlstm import LSTM
from tolerance import assert_as_good_as

# float64 round-off of a few dozen terms; the input product is one matrix product whose sums depend on its height.
EXACT = {"rtol": 0.0, "atol": 1e-13}


def twins(*args: int, **kwargs: object) -> tuple[LSTM, nn.LSTM]:
    """Ours in float32 and torch's in float64, with the same weights."""
    torch.manual_seed(0)
    ours = LSTM(*args, **kwargs)  # type: ignore[arg-type]
    theirs = nn.LSTM(*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.double()


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((7, 3, 5), {}),
        ((1, 1, 5), {"num_layers": 2}),
        ((3, 7, 5), {"batch_first": True, "num_layers": 3}),
        ((7, 5), {}),
        ((7, 3, 5), {"bias": False}),
    ],
)
def test_forward_and_every_gradient_equal_nn_lstm(shape: tuple[int, ...], options: dict[str, object]) -> None:
    ours, theirs = twins(5, 8, **options)
    naive = nn.LSTM(5, 8, **options)  # type: ignore[arg-type]
    naive.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    results = {}
    for name, module, dtype in (("ours", ours, None), ("naive", naive, None), ("truth", theirs, torch.float64)):
        given = x.to(dtype or torch.float32, copy=True).requires_grad_()
        output, (h_n, c_n) = module(given)
        (output.sin().sum() + (h_n * 2).sum() + c_n.cos().sum()).backward()
        gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
        results[name] = {"output": output, "h_n": h_n, "c_n": c_n, "x": given.grad} | gradients
    for key in results["truth"]:
        assert_as_good_as(key, results["ours"][key], results["naive"][key], results["truth"][key])


def test_state_dict_goes_both_ways_and_initialisation_is_the_same() -> None:
    torch.manual_seed(3)
    ours = LSTM(4, 6, num_layers=2)
    torch.manual_seed(3)
    theirs = nn.LSTM(4, 6, num_layers=2)
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_ids_equal_one_hot_vectors_with_gradients() -> None:
    ours, _ = twins(256, 8)
    ids = torch.randint(0, 256, (6, 3), dtype=torch.uint8)
    one_hot = nn.functional.one_hot(ids.long(), 256).float()
    gradients = []
    for x in (ids, one_hot):
        ours.zero_grad()
        output, _ = ours(x)
        output.sin().sum().backward()
        gradients.append((output.detach(), *(parameter.grad.clone() for parameter in ours.parameters())))
    for by_id, dense in zip(*gradients, strict=True):
        # Both are float32 sums of the same terms in another order.
        torch.testing.assert_close(by_id, dense, rtol=1e-5, atol=1e-6)


def test_cells_and_their_gradient() -> None:
    ours = LSTM(5, 4).double()
    x = torch.randn(6, 2, 5, dtype=torch.float64, requires_grad=True)
    _, (_, c_n), cells = ours(x, return_cells=True)
    assert torch.equal(cells[-1], c_n[0])
    assert torch.autograd.gradcheck(lambda value: ours(value, return_cells=True)[2], (x,))


def test_resets_cut_state_and_gradient() -> None:
    ours = LSTM(5, 4).double()
    x = torch.randn(6, 1, 5, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(6, 1, dtype=torch.bool)
    resets[3] = True
    output, _ = ours(x, resets=resets)
    alone, _ = ours(x[3:])
    torch.testing.assert_close(output[3:], alone, **EXACT)
    (gradient,) = torch.autograd.grad(output[3:].sum(), x)
    assert gradient[:3].abs().sum() == 0
    assert gradient[3:].abs().sum() > 0


def test_state_carries_over() -> None:
    ours = LSTM(5, 4, num_layers=2).double()
    x = torch.randn(8, 2, 5, dtype=torch.float64)
    whole, end = ours(x)
    first, state = ours(x[:3])
    second, state = ours(x[3:], state)
    torch.testing.assert_close(torch.cat((first, second)), whole, **EXACT)
    torch.testing.assert_close(state[1], end[1], **EXACT)


def test_half_precision_keeps_c_in_float32() -> None:
    ours = LSTM(5, 4).to(torch.bfloat16)
    output, (h_n, c_n) = ours(torch.randn(3, 2, 5, dtype=torch.bfloat16))
    assert (output.dtype, h_n.dtype, c_n.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_operators_pass_opcheck() -> None:
    given = (
        torch.randn(3, 2, 16, requires_grad=True),
        torch.randn(16, 4, requires_grad=True),
        torch.randn(2, 4, requires_grad=True),
        torch.randn(2, 4, requires_grad=True),
        None,
        torch.tensor([[True, False], [False, False], [False, True]]),
    )
    torch.library.opcheck(torch.ops.fastlstm.lstm_forward.default, given)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 2, 6), r"input.size\(-1\) must be equal to input_size. Expected 5, got 6"),
        ((3, 2, 5, 1), r"input: expected shape \(T, B, 5\) or \(T, 5\), got \(3, 2, 5, 1\)"),
    ],
)
def test_wrong_input_is_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(5, 4)(torch.randn(shape))


def test_wrong_state_is_named() -> None:
    with pytest.raises(ValueError, match=r"Expected hidden\[1\] size \(1, 2, 4\), got \(1, 3, 4\)"):
        LSTM(5, 4)(torch.randn(3, 2, 5), (torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)))
