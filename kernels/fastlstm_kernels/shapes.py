"""The one judge of shapes and dtypes at the kernels' door."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sizes(NamedTuple):
    """What a recurrence runs over: T steps, B sequences, H hidden units."""

    T: int
    B: int
    H: int


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, why: str = " as weight_hh") -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}{why}, got {tensor.dtype}")


def check_shapes(
    inputs: Tensor,
    ids: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    resets: Tensor | None,
    weight_ih: Tensor | None = None,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
) -> Sizes:
    """Check the arguments of a recurrence against each other and return (T, B, H).

    ``inputs`` is (T, B, 4H); or, when ``ids`` (T, B) is given, an input table (V, 4H); or, when ``weight_ih`` (4H, I)
    is given, x, (T, B, I) or uint8 (T, B), with ``bias_ih`` and ``bias_hh`` (4H,) or neither. ``weight_hh`` (4H, H);
    ``h0`` and ``c0`` (B, H) or neither; ``resets`` (T, B) bool. Raises ``ValueError`` or ``TypeError`` naming the
    argument, what came and what was expected.
    """
    shape, dtype = weight_hh.shape, weight_hh.dtype
    if len(shape) != 2 or shape[0] != 4 * shape[1]:
        raise ValueError(f"weight_hh: expected shape (4H, H), got {tuple(shape)}")
    if not dtype.is_floating_point:
        raise TypeError(f"weight_hh: expected a floating-point dtype, got {dtype}")
    H = shape[1]
    if ids is None:
        width = 4 * H
        if weight_ih is not None:
            if weight_ih.dim() != 2 or weight_ih.shape[0] != 4 * H:
                raise ValueError(f"weight_ih: expected shape ({4 * H}, I), got {tuple(weight_ih.shape)}")
            width = weight_ih.shape[1]
            _expect("weight_ih", weight_ih, (4 * H, width), dtype)
        if weight_ih is not None and inputs.dtype == torch.uint8 and inputs.dim() == 2:
            T, B = inputs.shape
        else:
            if inputs.dim() != 3:
                raise ValueError(f"inputs: expected shape (T, B, {width}), got {tuple(inputs.shape)}")
            T, B, _ = inputs.shape
            _expect("inputs", inputs, (T, B, width), dtype)
    else:
        if ids.dim() != 2:
            raise ValueError(f"ids: expected shape (T, B), got {tuple(ids.shape)}")
        if ids.dtype != torch.uint8:
            raise TypeError(f"ids: expected torch.uint8, got {ids.dtype}")
        if weight_ih is not None:
            raise ValueError("weight_ih: expected None with ids, whose input product is a table")
        T, B = ids.shape
        if inputs.dim() != 2:
            raise ValueError(f"inputs: expected a table of shape (V, {4 * H}), got {tuple(inputs.shape)}")
        _expect("inputs", inputs, (inputs.shape[0], 4 * H), dtype)
    if T < 1 or B < 1:
        raise ValueError(f"inputs: expected T >= 1 and B >= 1, got T={T}, B={B}")
    if (bias_ih is None) != (bias_hh is None) or (bias_ih is not None and weight_ih is None):
        raise ValueError("bias_ih, bias_hh: expected both with weight_ih, or neither")
    if (h0 is None) != (c0 is None):
        raise ValueError("h0, c0: expected both or neither")
    if h0 is not None and c0 is not None:
        _expect("h0", h0, (B, H), dtype)
        _expect("c0", c0, (B, H), cell_dtype(dtype), "")
    if resets is not None:
        _expect("resets", resets, (T, B), torch.bool, "")
    if bias_ih is not None and bias_hh is not None:
        _expect("bias_ih", bias_ih, (4 * H,), dtype)
        _expect("bias_hh", bias_hh, (4 * H,), dtype)
    return Sizes(T, B, H)


def cell_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gates are summed and c is kept: float32, or float64 for float64 weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32
