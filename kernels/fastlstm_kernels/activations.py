"""sigmoid and tanh for Triton kernels, without overflow at any argument and the same in Triton's interpreter."""
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), from exp of a number that is never positive."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """2 sigmoid(2x) - 1: absolute error of one rounding of 1, at +-100 as well (libdevice.tanh needs a GPU)."""
    return 2.0 * sigmoid(2.0 * x) - 1.0
