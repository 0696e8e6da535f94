"""Cross-entropy in one pass: losses, hits and the gradient written over the logits, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastlstm_kernels.cross_entropy import cross_entropy_
from fastlstm_kernels.losses import cross_entropy
from recurrences import DEVICE
from tolerance import assert_as_good_as

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def draw(N: int, V: int, dtype: torch.dtype, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N)
    logits = (spread * torch.randn(N, V, generator=generator)).to(dtype)
    targets = torch.randint(0, V, (N,), generator=generator).to(torch.uint8)
    return logits.to(DEVICE), targets.to(DEVICE), torch.tensor(0.37, device=DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "V"), [(1, 256), (21, 256), (9, 37), (16, 1)])
def test_losses_and_gradient_are_right(N: int, V: int, dtype: torch.dtype) -> None:
    logits, targets, scale = draw(N, V, dtype)
    truth = cross_entropy(logits.double(), targets, scale)
    naive = cross_entropy(logits, targets, scale)
    got = cross_entropy_(logits, targets, scale)
    assert got.gradient.data_ptr() == logits.data_ptr()
    assert_as_good_as("loss", got.totals[0], naive.totals[0], truth.totals[0])
    assert_as_good_as("gradient", got.gradient, naive.gradient, truth.gradient)
    assert torch.equal(got.totals[1].double(), truth.totals[1])


def test_the_reference_is_the_derivative() -> None:
    logits, targets, _ = draw(5, 7, torch.float64)
    logits.requires_grad_()
    one = torch.tensor(1.0, device=DEVICE)

    def loss(x: Tensor) -> Tensor:
        return torch.logsumexp(x, 1).sum() - x.gather(1, targets.long()[:, None]).sum()

    assert torch.autograd.gradcheck(loss, logits)
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    torch.testing.assert_close(cross_entropy(logits, targets, one).gradient, gradient)


def test_huge_logits_and_zeros() -> None:
    logits = torch.zeros(3, 256, device=DEVICE)
    logits[0, 7], logits[1, 7] = 1e4, -1e4
    targets = torch.tensor([7, 7, 0], dtype=torch.uint8, device=DEVICE)
    one = torch.tensor(1.0, device=DEVICE)
    truth = cross_entropy(logits.double(), targets, one)
    got = cross_entropy_(logits.clone(), targets, one)
    assert_as_good_as("loss", got.totals[0], cross_entropy(logits, targets, one).totals[0], truth.totals[0])
    assert got.gradient.isfinite().all()
    assert got.totals[1] == 2, "the first of equal logits counts"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(2, 257)}, ValueError, r"logits: expected shape \(N, V\) with V <= 256, got \(2, 257\)"),
        ({"targets": torch.zeros(3, dtype=torch.uint8)}, ValueError, r"targets: expected shape \(2,\), got \(3,\)"),
        ({"targets": torch.zeros(2)}, TypeError, "targets: expected torch.uint8, got torch.float32"),
        ({"scale": torch.ones(1)}, ValueError, r"scale: expected shape \(\) and float32, got \(1,\)"),
        ({"logits": torch.zeros(2, 4).double()}, TypeError, "logits: expected float32, float16 or bfloat16"),
        ({"logits": torch.zeros(4, 2).t()}, ValueError, "logits: expected contiguous rows"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    given = {"logits": torch.zeros(2, 4), "targets": torch.zeros(2, dtype=torch.uint8), "scale": torch.tensor(1.0)}
    with pytest.raises(error, match=message):
        cross_entropy_(**(given | change))
