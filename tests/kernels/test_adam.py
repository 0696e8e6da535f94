"""Clipping and AdamW in two passes, against torch's in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastlstm_kernels.adam import BLOCK, SQUARES, Numbers, adam_
from recurrences import CUDA, DEVICE
from tolerance import assert_as_good_as

SHAPES = ((3,), (SQUARES + 7,), (5, BLOCK), (16, 16))
RATE, DECAY = 0.01, 0.3
# The interpreter cuts what does not fit bfloat16 off.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if CUDA else [])]


class State:
    def __init__(self, dtype: torch.dtype, *, copied: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weights = [torch.randn(shape, generator=generator).to(DEVICE) for shape in SHAPES]
        self.copies = [torch.full_like(weight, torch.nan, dtype=dtype) for weight in self.weights] if copied else None
        self.first, self.second = ([torch.zeros_like(weight) for weight in self.weights] for _ in range(2))
        self.steps = torch.zeros((), device=DEVICE)

    def update(self, gradients: list[Tensor], *, clip: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return adam_(
            *(self.weights, self.copies, self.first, self.second, gradients),
            rate=torch.tensor(RATE, dtype=torch.float64, device=DEVICE),
            scale=torch.tensor(scale, device=DEVICE),
            steps=self.steps,
            constants=Numbers(clip, DECAY, (0.9, 0.999), 1e-8, 1e-6),
        )


def draw(update: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(update)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in SHAPES]


@pytest.mark.parametrize("clip", [0.5, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_and_moments_are_right(dtype: torch.dtype, clip: float) -> None:
    state = State(dtype, copied=dtype != torch.float32)
    plain = {
        kind: [torch.nn.Parameter(weight.to(kind, copy=True)) for weight in state.weights]
        for kind in (torch.float32, torch.float64)
    }
    optimizers = {kind: torch.optim.AdamW(each, lr=RATE, weight_decay=DECAY) for kind, each in plain.items()}
    for update in range(4):
        gradients = draw(update, dtype)
        norms = {}
        for kind, parameters in plain.items():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.to(kind)
            norms[kind] = torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizers[kind].step()
        norm, left_out = state.update(gradients, clip=clip)
        assert_as_good_as("norm", norm, norms[torch.float32], norms[torch.float64])
        assert left_out == 0
    assert state.steps == 4
    for i, weight in enumerate(state.weights):
        naive, truth = plain[torch.float32][i], plain[torch.float64][i]
        assert_as_good_as("weight", weight, naive, truth)
        if state.copies is not None:
            assert torch.equal(state.copies[i], weight.to(dtype))
        for mine, name in ((state.first[i], "exp_avg"), (state.second[i], "exp_avg_sq")):
            each = [optimizers[kind].state[plain[kind][i]][name] for kind in (torch.float32, torch.float64)]
            assert_as_good_as(name, mine, *each)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_update_that_is_not_finite_is_left_out(bad: float) -> None:
    state = State(torch.float16, copied=True)
    state.update(draw(0, torch.float16), clip=1.0)
    kept = [tensor.clone() for tensor in (*state.weights, *state.copies, *state.first, *state.second, state.steps)]
    gradients = draw(1, torch.float16)
    gradients[1][-1] = bad
    norm, left_out = state.update(gradients, clip=1.0)
    assert (norm.item(), left_out.item()) == (0, 1)
    now = (*state.weights, *state.copies, *state.first, *state.second, state.steps)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_a_scaled_loss_changes_nothing() -> None:
    one, two = State(torch.float32, copied=False), State(torch.float32, copied=False)
    gradients = draw(0, torch.float32)
    norm, _ = one.update(gradients, clip=0.5)
    scaled, _ = two.update([8 * gradient for gradient in gradients], clip=0.5, scale=8.0)
    assert norm == scaled
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights, strict=True))
