"""What every step starts from, (T, B, H), in one pass on a GPU; torch's operators take three."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.launcher import launch

MOST_BLOCK = 2048  # numbers of a program


@triton.jit(do_not_specialize=["B"])
def shifted_kernel(states, first, resets, previous, B, H: tl.constexpr, BLOCK: tl.constexpr):
    blocks: tl.constexpr = (H + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)  # t * B + b
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < H
    if tl.load(resets + row) != 0:
        tl.store(previous + row * H + column, tl.zeros((BLOCK,), previous.dtype.element_ty), mask=inside)
    elif row < B:
        tl.store(previous + row * H + column, tl.load(first + row * H + column, mask=inside), mask=inside)
    else:
        tl.store(previous + row * H + column, tl.load(states + (row - B) * H + column, mask=inside), mask=inside)


def shifted(states: Tensor, first: Tensor, resets: Tensor) -> Tensor:
    """``reference.shifted`` with ``first`` in the dtype of ``states`` (T, B, H)."""
    T, B, H = states.shape
    states, first, resets = states.contiguous(), first.to(states.dtype).contiguous(), resets.contiguous()
    previous = torch.empty_like(states)
    block = min(MOST_BLOCK, triton.next_power_of_2(H))
    programs = T * B * triton.cdiv(H, block)
    launch(shifted_kernel, programs, (states, first, resets, previous), (B,), (H, block), num_warps=4)
    return previous
