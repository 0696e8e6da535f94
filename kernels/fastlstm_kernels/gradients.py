"""Gradients of weights and input tables from the gradient of every z_t: large products, no atomics on data."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from fastlstm_kernels import reference

HAS_TRITON = importlib.util.find_spec("triton") is not None


def weight_gradient(d_gates: Tensor, h: Tensor, h0: Tensor | None, resets: Tensor | None = None) -> Tensor:
    """Gradient of weight_hh (4H, H) in the dtype of ``d_gates`` (T, B, 4H); ``h`` (T, B, H), ``h0`` (B, H), None = 0.

    Without ``resets`` no shifted copy of h is made: what step t starts from is h itself, one step earlier.
    """
    if resets is not None:
        h0 = torch.zeros_like(h[0]) if h0 is None else h0
        if d_gates.is_cuda and HAS_TRITON:
            from fastlstm_kernels.shift import shifted
        else:
            shifted = reference.shifted
        return d_gates.flatten(0, 1).t() @ shifted(h, h0, resets).flatten(0, 1)
    if h0 is None:
        return d_gates[1:].flatten(0, 1).t() @ h[:-1].flatten(0, 1)
    gradient = d_gates[0].t() @ h0
    if len(h) > 1:
        gradient.addmm_(d_gates[1:].flatten(0, 1).t(), h[:-1].flatten(0, 1))
    return gradient


def table_gradient(d_gates: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Gradient of an input table (rows, 4H): row v is the sum of ``d_gates`` (T, B, 4H) where ``ids`` (T, B) is v.

    As a product with one-hot rows it is summed in a fixed order, where index_add_ on a GPU is not.
    """
    return _one_hot(ids, rows, d_gates.dtype) @ d_gates.flatten(0, 1)


def table_weight_gradient(d_gates: Tensor, ids: Tensor, rows: int) -> Tensor:
    """``table_gradient`` as that of the weights that the table comes from, (4H, rows)."""
    return d_gates.flatten(0, 1).t() @ _one_hot(ids, rows, d_gates.dtype).t()


def _one_hot(ids: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """(rows, T * B)"""
    values = torch.arange(rows, dtype=ids.dtype, device=ids.device).unsqueeze(1)
    return torch.eq(ids.flatten(), values, out=torch.empty(rows, ids.numel(), dtype=dtype, device=ids.device))
