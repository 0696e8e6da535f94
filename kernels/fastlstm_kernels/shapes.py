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


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def check_shapes(
    inputs: Tensor,
    ids: Tensor | None,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    resets: Tensor | None,
) -> Sizes:
    """Check the arguments of a recurrence against each other and return (T, B, H).

    ``inputs`` is (T, B, 4H), or an input table (V, 4H) when ``ids`` (T, B) is given; ``weight_hh`` (4H, H); ``h0`` and
    ``c0`` (B, H); ``resets`` (T, B) bool. Raises ``ValueError`` or ``TypeError`` naming the argument, what came and
    what was expected.
    """
    if weight_hh.dim() != 2 or weight_hh.shape[0] != 4 * weight_hh.shape[1]:
        raise ValueError(f"weight_hh: expected shape (4H, H), got {tuple(weight_hh.shape)}")
    H = weight_hh.shape[1]
    if ids is None:
        if inputs.dim() != 3:
            raise ValueError(f"inputs: expected shape (T, B, {4 * H}), got {tuple(inputs.shape)}")
        T, B = inputs.shape[:2]
        _expect("inputs", inputs, (T, B, 4 * H))
    else:
        if ids.dim() != 2:
            raise ValueError(f"ids: expected shape (T, B), got {tuple(ids.shape)}")
        if ids.dtype != torch.uint8:
            raise TypeError(f"ids: expected torch.uint8, got {ids.dtype}")
        T, B = ids.shape
        if inputs.dim() != 2 or inputs.shape[1] != 4 * H:
            raise ValueError(f"inputs: expected a table of shape (V, {4 * H}), got {tuple(inputs.shape)}")
    if T < 1 or B < 1:
        raise ValueError(f"inputs: expected T >= 1 and B >= 1, got T={T}, B={B}")
    _expect("h0", h0, (B, H))
    _expect("c0", c0, (B, H))
    if resets is not None:
        _expect("resets", resets, (T, B))
        if resets.dtype != torch.bool:
            raise TypeError(f"resets: expected torch.bool, got {resets.dtype}")
    if not weight_hh.dtype.is_floating_point:
        raise TypeError(f"weight_hh: expected a floating-point dtype, got {weight_hh.dtype}")
    for name, tensor in (("inputs", inputs), ("h0", h0)):
        if tensor.dtype != weight_hh.dtype:
            raise TypeError(f"{name}: expected {weight_hh.dtype} as weight_hh, got {tensor.dtype}")
    if c0.dtype != cell_dtype(weight_hh.dtype):
        raise TypeError(f"c0: expected {cell_dtype(weight_hh.dtype)}, got {c0.dtype}")
    return Sizes(T, B, H)


def cell_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gates are summed and c is kept: float32, or float64 for float64 weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32
