"""Gradients of weights and input tables from the gradient of every z_t: large products, no atomics on data.

Several processes sum gradients while they are made: see ``exchanged``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from fastlstm_kernels.reference import shifted

PARTS = 4  # of weight_hh's gradient: all but the last are summed while the next is multiplied


class Exchange(Protocol):
    """Sums gradients over processes beside the products that follow."""

    def start(self, weight: Tensor, rows: Tensor) -> None:
        """Begin to sum ``rows`` in place: contiguous rows of the gradient of ``weight``, whose product is queued."""

    def wait(self) -> None:
        """What is queued from here on finds the sums."""


_exchange: Exchange | None = None


@contextmanager
def exchanged(exchange: Exchange) -> Iterator[None]:
    """Within, every backward of a layer hands its finished gradients to ``exchange``.

    Of the process, not of the thread: autograd runs a GPU's backward in a thread of its own.
    """
    global _exchange
    _exchange = exchange
    try:
        yield
    finally:
        _exchange = None


def current_exchange() -> Exchange | None:
    return _exchange


Factors = list[tuple[Tensor, Tensor]]


def weight_factors(d_gates: Tensor, h: Tensor, h0: Tensor | None, resets: Tensor | None = None) -> Factors:
    """The products (4H, n) x (n, H) whose sum is the gradient of weight_hh.

    ``d_gates`` (T, B, 4H); ``h`` (T, B, H); ``h0`` (B, H), None = 0. Without ``resets`` no shifted copy of h is made:
    what step t starts from is h itself, one step earlier.
    """
    if resets is not None:
        h0 = torch.zeros_like(h[0]) if h0 is None else h0
        products = [(d_gates, shifted(h, h0, resets))]
    else:
        products = [] if h0 is None else [(d_gates[:1], h0.unsqueeze(0))]
        if len(h) > 1 or h0 is None:
            products.append((d_gates[1:], h[:-1]))
    return [(left.flatten(0, 1).t(), right.flatten(0, 1)) for left, right in products]


def weight_gradient(factors: Factors, finished: Callable[[Tensor], None] | None = None) -> Tensor:
    """Gradient of weight_hh (4H, H) from ``weight_factors``, in their dtype.

    With ``finished`` it is made in PARTS of its rows, and each is handed over before the product of the next is queued.
    """
    left, right = factors[0]
    gradient = left.new_empty(left.shape[0], right.shape[1])
    parts = 1 if finished is None else PARTS
    for part, rows in enumerate(gradient.tensor_split(parts)):
        (left, right), *more = [(left.tensor_split(parts)[part], right) for left, right in factors]
        torch.mm(left, right, out=rows)
        for left, right in more:
            rows.addmm_(left, right)
        if finished is not None:
            finished(rows)
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
