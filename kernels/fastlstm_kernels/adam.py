"""AdamW with a clipped gradient in two passes over the memory: squares of the gradients, then everything else.

torch's operators take six, among them gradients copied to float32 and the weights copied to the dtype of products:
0.40 ms of an update of 4 ms at 19 million weights. Read and written here are 28 bytes a weight.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.launcher import launch

SQUARES, BLOCK = 4096, 1024  # numbers of a program
ALIGNMENT = 4  # partial sums, so that each weight's begin at 16 bytes


class Numbers(NamedTuple):
    """What an update does: constants of ``adam_``."""

    clip: float
    weight_decay: float
    betas: tuple[float, float]
    epsilon: float
    norm_epsilon: float


@triton.jit
def squares_kernel(gradient, partials, N: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(gradient + at, mask=at < N, other=0).to(tl.float32)
    tl.store(partials + tl.program_id(0), tl.sum(values * values, 0))


# One program: what depends on the norm, and on the number of updates in float64, since 1 - beta^n cancels.
@triton.jit
def numbers_kernel(
    partials,
    rate,  # () float64
    scale,  # () float32
    steps,  # () float32, counted up
    norm,  # () float32
    left_out,  # () float32
    numbers,  # (4,) float32: gradients' factor, decay, step, 1 / sqrt of the second moment's correction
    COUNT: tl.constexpr,
    CLIP: tl.constexpr,
    NORM_EPSILON: tl.constexpr,
    WEIGHT_DECAY: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    BLOCK: tl.constexpr,
):
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, COUNT, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        total += tl.load(partials + at, mask=at < COUNT, other=0).to(tl.float64)
    scaled = tl.load(scale).to(tl.float64)
    length = tl.sqrt(tl.sum(total, 0)) / scaled
    finite = length < float("inf")  # neither infinite nor NaN
    tl.store(norm, tl.where(finite, length, 0.0).to(tl.float32))
    tl.store(left_out, tl.where(finite, 0.0, 1.0))
    updates = tl.load(steps) + tl.where(finite, 1.0, 0.0)
    tl.store(steps, updates)
    updates = tl.maximum(updates, 1.0).to(tl.float64)
    step = tl.load(rate)
    tl.store(numbers, (tl.minimum(CLIP / (length + NORM_EPSILON), 1.0) / scaled).to(tl.float32))
    tl.store(numbers + 1, (1.0 - step * WEIGHT_DECAY).to(tl.float32))
    tl.store(numbers + 2, (step / (1.0 - tl.exp(updates * LOG_BETA1))).to(tl.float32))
    tl.store(numbers + 3, (1.0 / tl.sqrt(1.0 - tl.exp(updates * LOG_BETA2))).to(tl.float32))


@triton.jit
def adam_kernel(
    weight,
    copied,  # in the dtype of products, or None
    first,
    second,
    gradient,
    left_out,
    numbers,
    N: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < N
    kept = tl.load(left_out) == 0
    g = tl.load(gradient + at, mask=live, other=0).to(tl.float32)
    g = tl.where(kept, g, 0.0) * tl.load(numbers)
    w = tl.load(weight + at, mask=live, other=0) * tl.load(numbers + 1)
    m = tl.load(first + at, mask=live, other=0)
    v = tl.load(second + at, mask=live, other=0)
    m += (1 - BETA1) * (g - m)
    v = BETA2 * v + (1 - BETA2) * g * g
    w -= tl.load(numbers + 2) * tl.div_rn(m, tl.sqrt_rn(v) * tl.load(numbers + 3) + EPSILON)
    if kept:
        tl.store(weight + at, w, mask=live)
        tl.store(first + at, m, mask=live)
        tl.store(second + at, v, mask=live)
        if copied is not None:
            tl.store(copied + at, w.to(copied.dtype.element_ty), mask=live)


def adam_(
    weights: Sequence[Tensor],
    copies: Sequence[Tensor] | None,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    rate: Tensor,
    scale: Tensor,
    steps: Tensor,
    constants: Numbers,
) -> tuple[Tensor, Tensor]:
    """Update ``weights`` and both moments (float32, contiguous) in place, and ``copies`` of the weights if there are.

    ``gradients``: contiguous, of any floating dtype, of ``scale`` () float32 times the loss. ``rate`` () float64;
    ``steps`` () float32 counts the updates made. Formulas: Loshchilov & Hutter 2019, Algorithm 2, with torch's order
    of operations. Returns the norm of the gradient before clipping and whether the update was left out since it was not
    finite (then the norm is 0), both () float32. The host waits for nothing.
    """
    device = weights[0].device
    counts = [-(-triton.cdiv(gradient.numel(), SQUARES) // ALIGNMENT) * ALIGNMENT for gradient in gradients]
    partials = torch.zeros(sum(counts), device=device)
    for gradient, part in zip(gradients, torch.split(partials, counts), strict=True):
        N = gradient.numel()
        launch(squares_kernel, triton.cdiv(N, SQUARES), (gradient, part), (), (N, SQUARES), num_warps=8)
    norm, left_out = torch.empty((), device=device), torch.empty((), device=device)
    numbers = torch.empty(4, device=device)
    beta1, beta2 = constants.betas
    logs = (math.log(beta1), math.log(beta2))
    given = (partials, rate, scale, steps, norm, left_out, numbers)
    numbers_options = (sum(counts), constants.clip, constants.norm_epsilon, constants.weight_decay, *logs, SQUARES)
    launch(numbers_kernel, 1, given, (), numbers_options, num_warps=8)
    for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        N = weight.numel()
        tensors = (weight, None if copies is None else copies[i], first[i], second[i], gradient, left_out, numbers)
        options = (N, beta1, beta2, constants.epsilon, BLOCK)
        launch(adam_kernel, triton.cdiv(N, BLOCK), tensors, (), options, num_warps=4)
    return norm, left_out
