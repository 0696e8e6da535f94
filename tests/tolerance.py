"""The one tolerance policy: a kernel may be at most twice as wrong as the same naive code in the same dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_error(tensor: Tensor, truth: Tensor) -> float:
    """||tensor - truth|| / ||truth|| in float64; NaN anywhere gives NaN."""
    tensor, truth = tensor.detach().double(), truth.detach().double()
    return float((tensor - truth).norm() / truth.norm().clamp_min(torch.finfo(torch.float64).tiny))


def assert_as_good_as(name: str, kernel: Tensor, naive: Tensor, truth: Tensor) -> None:
    """``truth`` is float64; ``naive`` is the plain code in the dtype of ``kernel``.

    One rounding of the dtype is always allowed: the naive code can be exact by luck where the kernel is not.
    """
    assert kernel.shape == truth.shape, f"{name}: shape {tuple(kernel.shape)}, expected {tuple(truth.shape)}"
    error, naive_error = relative_error(kernel, truth), relative_error(naive, truth)
    allowed = 2 * naive_error + torch.finfo(kernel.dtype).eps
    assert error <= allowed, f"{name}: relative error {error:.3e}, naive code has {naive_error:.3e}"
