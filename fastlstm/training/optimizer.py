"""Adam with a clipped gradient, on the device without waiting for it: float32 weights and moments, any gradient dtype.

AdamW (Loshchilov & Hutter 2019) as torch.optim.AdamW computes it: on a GPU by `fastlstm_kernels.adam`, else through
the same fused operator. The rate, the norm and the scale of the loss are tensors, so that an update can be captured in
a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlstm.backends import HAS_TRITON

BETAS, EPSILON = (0.9, 0.999), 1e-8
NORM_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_'s
# As torch.amp.GradScaler: twice the scale after so many good updates, half of it after one that overflowed.
FIRST_SCALE, GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0**12, 2.0, 0.5, 2000


class Adam:
    """Updates ``weights`` (float32) and renews ``copies`` of them, one each, in the dtype that products are made in.

    ``clip``: largest norm of the gradient over all weights. ``scaled``: the loss is multiplied by ``scale`` () before
    the backward, as float16 gradients need, whose smallest normal number is 6e-5: an update with a gradient that is not
    finite is left out and halves the scale.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        copies: Sequence[Tensor] | None,
        *,
        clip: float,
        weight_decay: float,
        scaled: bool = False,
    ) -> None:
        device = weights[0].device
        self.weights = list(weights)
        self.copies = None if copies is None else list(copies)
        self.first = [torch.zeros_like(weight) for weight in weights]
        self.second = [torch.zeros_like(weight) for weight in weights]
        self.steps = torch.zeros((), device=device)  # updates made
        self.scale = torch.full((), FIRST_SCALE if scaled else 1.0, device=device)
        self.good_updates = torch.zeros((), dtype=torch.int32, device=device)
        self._clip = clip
        self._weight_decay = weight_decay
        self._scaled = scaled

    def tensors(self) -> list[Tensor]:
        """Everything that an update changes."""
        return [
            *self.weights,
            *(self.copies or ()),
            *self.first,
            *self.second,
            self.steps,
            self.scale,
            self.good_updates,
        ]

    def state_dict(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What a run needs to go on, by the names of the weights: ``exp_avg.head.weight`` and so on."""
        state = {f"exp_avg.{name}": tensor for name, tensor in zip(names, self.first, strict=True)}
        state |= {f"exp_avg_sq.{name}": tensor for name, tensor in zip(names, self.second, strict=True)}
        state |= {f"step.{name}": self.steps.clone() for name in names}
        return state | ({"scale": self.scale, "good_updates": self.good_updates} if self._scaled else {})

    @torch.no_grad()
    def load_state_dict(self, names: Sequence[str], state: dict[str, Tensor]) -> None:
        """The inverse of ``state_dict``."""
        for key, tensor in self.state_dict(names).items():
            if not key.startswith("step."):
                tensor.copy_(state[key])
        self.steps.copy_(state[f"step.{names[0]}"])

    @torch.no_grad()
    def renew_copies(self) -> None:
        if self.copies is not None:
            torch._foreach_copy_(self.copies, self.weights)

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor], rate: Tensor) -> tuple[Tensor, Tensor]:
        """One update with contiguous ``gradients`` of ``scale`` times the loss, overwritten; ``rate`` () float64.

        Returns the norm of the gradient before clipping and whether the update was left out, both () float32.
        """
        if self.steps.is_cuda and HAS_TRITON:
            norm, left_out = self._update_in_kernels(gradients, rate)
        else:
            norm, left_out = self._update_in_operators(gradients, rate)
        if self._scaled:
            torch._amp_update_scale_(self.scale, self.good_updates, left_out, GROWTH, BACKOFF, GROWTH_INTERVAL)
        return norm, left_out

    def _update_in_kernels(self, gradients: Sequence[Tensor], rate: Tensor) -> tuple[Tensor, Tensor]:
        from fastlstm_kernels.adam import Numbers, adam_

        constants = Numbers(self._clip, self._weight_decay, BETAS, EPSILON, NORM_EPSILON)
        state = (self.weights, self.copies, self.first, self.second)
        return adam_(*state, gradients, rate=rate, scale=self.scale, steps=self.steps, constants=constants)

    def _update_in_operators(self, gradients: Sequence[Tensor], rate: Tensor) -> tuple[Tensor, Tensor]:
        wide = [gradient.float() for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(wide)))
        left_out = torch.zeros_like(norm)
        if self._scaled:
            norm = norm / self.scale
            left_out = norm.isfinite().logical_not().to(norm.dtype)
        coefficient = (self._clip / (norm + NORM_EPSILON)).clamp(max=1.0)
        if self._scaled:
            coefficient = coefficient / self.scale
        torch._foreach_mul_(wide, coefficient)  # as torch.nn.utils.clip_grad_norm_, to the same bits
        self.steps += 1 - left_out
        torch._fused_adamw_(
            self.weights,
            wide,
            self.first,
            self.second,
            [],
            [self.steps] * len(wide),
            lr=rate.float() if rate.is_cuda else rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self._weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=left_out if self._scaled else None,
        )
        self.renew_copies()
        return torch.where(left_out > 0, 0.0, norm) if self._scaled else norm, left_out
