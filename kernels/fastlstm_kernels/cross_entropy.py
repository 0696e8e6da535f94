"""Cross-entropy of rows of logits and its gradient in one pass: read once, the gradient written in their place.

For a row x of V logits and its class y, with p = softmax(x)::

    loss = logsumexp(x) - x_y          d loss / d x = p - one_hot(y)

No float32 copy of the logits is made: sums run in float32 in registers, and what goes through memory has the dtype of
the logits. A row fits one program, so that one read is enough (V = 256 for bytes).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.losses import Scores, check

ROWS = 8  # of a program: 2,048 logits, 16 for each of 128 threads


@triton.jit
def cross_entropy_kernel(logits, targets, scale, totals, N, V: tl.constexpr, BLOCK_V: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK_V)
    live = row < N
    inside = live[:, None] & (column < V)[None, :]
    at = row.to(tl.int64)[:, None] * V + column[None, :]
    x = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
    x = tl.where(live[:, None], x, 0.0)  # a row of -inf alone would be NaN
    target = tl.load(targets + row, mask=live, other=0).to(tl.int32)
    is_target = column[None, :] == target[:, None]

    largest = tl.max(x, 1)
    e = tl.exp(x - largest[:, None])
    total = tl.sum(e, 1)
    of_target = tl.sum(tl.where(is_target, x, 0.0), 1)
    loss = tl.log(total) - (of_target - largest)
    first_largest = tl.min(tl.where(x == largest[:, None], column[None, :], BLOCK_V), 1)
    right = (first_largest == target).to(tl.float32)

    gradient = (e / total[:, None] - is_target.to(tl.float32)) * tl.load(scale)
    tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=inside)
    tl.store(totals + 2 * tl.program_id(0), tl.sum(tl.where(live, loss, 0.0), 0))
    tl.store(totals + 2 * tl.program_id(0) + 1, tl.sum(tl.where(live, right, 0.0), 0))


def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor) -> Scores:
    """Losses of ``logits`` (N, V) for ``targets`` (N,) uint8, in a fixed order; the gradient takes the logits' place.

    ``logits``: float32, float16 or bfloat16, contiguous, V <= 256, no row of -inf alone; a target below V. ``scale``
    () float32 multiplies the gradient and not the losses. Of equal largest logits the first counts. Raises
    ``ValueError`` or ``TypeError`` naming the argument, what came and what was expected.
    """
    check(logits, targets, scale)
    if logits.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"logits: expected float32, float16 or bfloat16, got {logits.dtype}")
    if not logits.is_contiguous():
        raise ValueError(f"logits: expected contiguous rows, got strides {logits.stride()}")
    N, V = logits.shape
    programs = triton.cdiv(N, ROWS)
    totals = torch.empty(programs, 2, dtype=torch.float32, device=logits.device)
    cross_entropy_kernel[(programs,)](
        *(logits, targets.contiguous(), scale, totals, N),
        V=V,
        BLOCK_V=triton.next_power_of_2(V),
        ROWS=ROWS,
        num_warps=4,
    )
    return Scores(totals.sum(0), logits)
