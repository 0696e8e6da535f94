"""What the forward kernel starts from, in one launch: h0 in front of every h_t, flags, the table of byte inputs."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlstm_kernels.launcher import launch

BLOCK_N, BLOCK_V, BLOCK = 64, 64, 4096  # gates and ids of a tile of the table; numbers of a piece of h0


@triton.jit(do_not_specialize=["B", "flag_count"])
def begin_kernel(
    h,  # (T + 1, B, H)
    h0,  # (B, H), or None: zeros
    flags,  # int32, to be zero
    weight_ih,  # (4H, V), gates stacked, or None: no table
    bias_ih,  # (4H,)
    bias_hh,  # (4H,)
    table,  # (V, H, 4)
    B,
    flag_count,
    H: tl.constexpr,
    V: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    state_size = B * H
    pieces = tl.cdiv(state_size, BLOCK)
    if pid < pieces:
        at = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        live = at < state_size
        values = tl.zeros((BLOCK,), h.dtype.element_ty)
        if h0 is not None:
            values = tl.load(h0 + at, mask=live)
        tl.store(h + at, values, mask=live)
    elif pid == pieces:
        for begin in range(0, flag_count, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            tl.store(flags + at, tl.zeros((BLOCK,), tl.int32), mask=at < flag_count)
    elif weight_ih is not None:
        tile = pid - pieces - 1
        n = tile // tl.cdiv(V, BLOCK_V) * BLOCK_N + tl.arange(0, BLOCK_N)
        v = tile % tl.cdiv(V, BLOCK_V) * BLOCK_V + tl.arange(0, BLOCK_V)
        live = (n < 4 * H)[:, None] & (v < V)[None, :]
        row = n % 4 * H + n // 4
        product = tl.load(weight_ih + row[:, None] * V + v[None, :], mask=live, other=0).to(tl.float32)
        if bias_ih is not None:
            bias = tl.load(bias_ih + row, mask=n < 4 * H, other=0).to(tl.float32)
            bias += tl.load(bias_hh + row, mask=n < 4 * H, other=0).to(tl.float32)
            product += bias[:, None]
        product = tl.trans(product.to(table.dtype.element_ty))
        tl.store(table + v[:, None] * (4 * H) + n[None, :], product, mask=tl.trans(live))


def begin(
    h: Tensor,
    h0: Tensor | None,
    flags: Tensor,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    table: Tensor | None = None,
) -> None:
    """Fill ``h[0]`` (B, H) with ``h0`` or zeros, ``flags`` (int32) with zeros, ``table`` (V, H, 4) with input products.

    Row v of the table is column v of ``weight_ih`` (4H, V) plus both biases (4H,), rounded once, gates by unit. One
    launch in place of torch's six: 2 to 6 us each, beside steps of 7.
    """
    _, B, H = h.shape
    V = 0 if weight_ih is None else weight_ih.shape[1]
    given = (h0, flags, weight_ih, bias_ih, bias_hh, table)
    tensors = [None if tensor is None else tensor.contiguous() for tensor in given]
    programs = triton.cdiv(B * H, BLOCK) + 1 + triton.cdiv(4 * H, BLOCK_N) * triton.cdiv(V, BLOCK_V)
    integers = (B, flags.numel())
    launch(begin_kernel, programs, (h, *tensors), integers, (H, V, BLOCK_N, BLOCK_V, BLOCK), num_warps=4)
