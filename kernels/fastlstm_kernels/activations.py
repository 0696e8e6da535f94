"""sigmoid and tanh for Triton kernels, without overflow at any argument and the same in Triton's interpreter."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid_or_tanh(x, is_tanh):
    """tanh where ``is_tanh``, elsewhere sigmoid, at the price of one exp, whose argument is never positive."""
    size = tl.abs(x)
    e = tl.exp(-tl.where(is_tanh, 2.0 * size, size))
    upper = tl.where(is_tanh, 1.0 - e, 1.0)
    lower = tl.where(is_tanh, e - 1.0, e)
    return tl.where(x >= 0, upper, lower) / (1.0 + e)


@triton.jit
def tanh(x):
    """(1 - exp(-2|x|)) / (1 + exp(-2|x|)) with the sign of x: a rounding of 1 off, at 0 and at +-100 alike."""
    e = tl.exp(-2.0 * tl.abs(x))
    return tl.where(x >= 0, 1.0 - e, e - 1.0) / (1.0 + e)
