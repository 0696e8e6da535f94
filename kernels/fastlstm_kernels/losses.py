"""Cross-entropy of rows of logits with its gradient, in plain PyTorch: the truth for ``cross_entropy.py``.

A machine without a GPU runs it, and it needs no triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_CLASSES = 256


class Scores(NamedTuple):
    """``totals`` (2,) float32: the sum of the losses in nats, and how many rows' largest logit is their class.

    ``gradient`` (N, V) of ``scale`` times that sum, in the dtype of the logits.
    """

    totals: Tensor
    gradient: Tensor


def cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor) -> Scores:
    """Losses of ``logits`` (N, V) for ``targets`` (N,) uint8; ``scale`` () float32 multiplies the gradient alone.

    ``logits`` are left as they are; float64 ones give float64 totals. Raises what ``check`` raises.
    """
    check(logits, targets, scale)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        wide = leaf if leaf.dtype == torch.float64 else leaf.float()
        loss = F.cross_entropy(wide, targets.long(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf, scale.to(loss.dtype))
    right = (logits.argmax(1) == targets).sum()
    return Scores(torch.stack((loss.detach(), right.to(loss.dtype))), gradient)


def check(logits: Tensor, targets: Tensor, scale: Tensor) -> None:
    """Raise ``ValueError`` or ``TypeError`` naming the argument, what came and what was expected."""
    if logits.dim() != 2 or not logits.numel() or logits.shape[1] > MOST_CLASSES:
        raise ValueError(f"logits: expected shape (N, V) with V <= {MOST_CLASSES}, got {tuple(logits.shape)}")
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"targets: expected shape {tuple(logits.shape[:1])}, got {tuple(targets.shape)}")
    if targets.dtype != torch.uint8:
        raise TypeError(f"targets: expected torch.uint8, got {targets.dtype}")
    if scale.shape != () or scale.dtype != torch.float32:
        raise ValueError(f"scale: expected shape () and float32, got {tuple(scale.shape)} and {scale.dtype}")
