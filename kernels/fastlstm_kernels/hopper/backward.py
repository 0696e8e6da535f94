"""The backward recurrence on an H100: tensors to kernel arguments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm_kernels.hopper import launch
from fastlstm_kernels.hopper.arguments import BackwardArguments
from fastlstm_kernels.hopper.forward import FLAG_STRIDE
from fastlstm_kernels.hopper.plans import BACKWARD, Plan, blocks_of_a_group, divide

SLICES = 8  # blocks that share a sum, see backward.cu


class HopperBackward(NamedTuple):
    """d_gates (T, B, H, 4): gradient of z_t, a unit's gates i, f, g, o side by side; dc0 (B, H) float32."""

    d_gates: Tensor
    dc0: Tensor


def lstm_backward(
    dh: Tensor | None,
    dc: Tensor | None,
    dc_n: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    *,
    resets: Tensor | None = None,
    plans: tuple[Plan, ...] = BACKWARD,
) -> HopperBackward:
    """Gradients of the recurrence.

    ``dh`` (T, B, H) in the weights' dtype, ``dc`` (T, B, H) and ``dc_n`` (B, H) float32, each may be None; ``gates``
    (T, B, H, 4) and ``cells`` (T, B, H) float32 as ``lstm_forward`` saved them; ``c0`` (B, H) float32; ``weight_hh``
    (4H, H); ``resets`` (T, B) bool or None. The gradient of h0 is d_gates[0] W_hh.
    """
    T, B, H = cells.shape
    device = weight_hh.device
    d_gates = torch.empty(T, B, H, 4, dtype=weight_hh.dtype, device=device)
    dc0 = torch.empty(B, H, dtype=torch.float32, device=device)
    dh = None if dh is None else dh.to(weight_hh.dtype).contiguous()
    dc = None if dc is None else dc.contiguous()
    dc_n = None if dc_n is None else dc_n.contiguous()
    resets = None if resets is None else resets.contiguous()
    gates, cells, c0, weight_hh = gates.contiguous(), cells.contiguous(), c0.contiguous(), weight_hh.contiguous()

    plan, launches = divide(plans, H, B)
    kernel = launch.kernel("backward", plan.kernel, H, weight_hh.dtype, device.index)
    tiles = launch.tensor_map(d_gates.view(T, B, 4 * H), plan.width, 64)
    groups = max(one.groups for one in launches)
    flags_each = plan.subs * (H // 128 + SLICES) * FLAG_STRIDE
    sizes = (2 * groups * plan.columns * H * SLICES, sum(one.groups for one in launches) * flags_each)
    zeros = torch.zeros(sum(sizes), dtype=torch.int32, device=device)  # one fill for both
    partials, flags = zeros[: sizes[0]], zeros[sizes[0] :]
    groups_before = 0
    for one in launches:
        if groups_before:
            partials.zero_()
        arguments = BackwardArguments(
            map=tiles,
            weight=launch.pointer(weight_hh),
            gates=launch.pointer(gates),
            cells=launch.pointer(cells),
            c0=launch.pointer(c0),
            dh=launch.pointer(dh),
            dc=launch.pointer(dc),
            dc_n=launch.pointer(dc_n),
            resets=launch.pointer(resets),
            dc0=launch.pointer(dc0),
            partials=launch.pointer(partials),
            flags=launch.pointer(flags) + 4 * groups_before * flags_each,
            status=launch.status_pointer(),
            T=T,
            B=B,
            begin=one.begin,
            end=one.end,
        )
        launch.launch(kernel, one.groups * blocks_of_a_group(H), arguments, device)
        groups_before += one.groups
    return HopperBackward(d_gates, dc0)
