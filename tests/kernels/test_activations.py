"""sigmoid and tanh of the kernels, where they are easy to get wrong."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastlstm_kernels.activations import sigmoid_or_tanh, tanh
from recurrences import DEVICE

# One rounding of 1 in exp, the two sums and the quotient each.
ABSOLUTE = 4 * torch.finfo(torch.float32).eps


@triton.jit
def _apply(x, out, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.store(out + at, sigmoid_or_tanh(value, at < 0))
    tl.store(out + N + at, sigmoid_or_tanh(value, at >= 0))
    tl.store(out + 2 * N + at, tanh(value))


def test_activations_from_denormals_to_a_hundred() -> None:
    small = torch.tensor([0.0, 1e-45, -1e-45, 1e-38, 1e-7, -1e-7, 44.4, -44.4, 88.8, -88.8, 100.0, -100.0, 1e30, -1e30])
    x = torch.cat((small, torch.linspace(-20, 20, 128 - len(small)))).to(DEVICE)
    got = torch.full((3, 128), torch.nan, device=DEVICE)
    _apply[(1,)](x, got, N=128)
    expected = torch.stack((x.double().sigmoid(), x.double().tanh(), x.double().tanh()))
    assert (got.double() - expected).abs().max() <= ABSOLUTE
    assert got.abs().max() <= 1
