"""The forward recurrence on an H100: tensors to kernel arguments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm_kernels.hopper import launch
from fastlstm_kernels.hopper.arguments import ForwardArguments
from fastlstm_kernels.hopper.beginning import begin
from fastlstm_kernels.hopper.plans import FORWARD, Plan, blocks_of_a_group, divide

FLAG_STRIDE = 32  # int32, see primitives.cuh
CELLS_KIND = {None: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


class Table(NamedTuple):
    """What the table of the input product of each id is made of: weights (4H, V), biases (4H,), both or neither."""

    weight_ih: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


class HopperForward(NamedTuple):
    """h (T + 1, B, H) from h0 on, in the weights' dtype; the last c (B, H) float32.

    Every c_t (T, B, H) and the activated gates (T, B, H, 4) if they were asked for.
    """

    h: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None


def lstm_forward(
    inputs: Tensor | Table,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    *,
    ids: Tensor | None = None,
    resets: Tensor | None = None,
    save_gates: bool = False,
    cells_dtype: torch.dtype | None = None,
    plans: tuple[Plan, ...] = FORWARD,
) -> HopperForward:
    """Run one layer over T steps.

    ``inputs`` is the input product with both biases, a unit's four gates i, f, g, o side by side: (T, B, H, 4), or with
    ``ids`` (T, B) uint8 a table (V, H, 4) of it, or what that is made of. ``weight_hh`` (4H, H), gates stacked as in
    torch.nn.LSTM; ``h0`` (B, H); ``c0`` (B, H) float32; each may be None for zeros; ``resets`` (T, B) bool.
    ``cells_dtype`` asks for every c_t in float32, bfloat16 or float16. The size and the device must be ones that
    ``plans.size_refusal`` and ``launch.device_refusal`` do not refuse.
    """
    if ids is not None:
        T, B = ids.shape
    else:
        assert isinstance(inputs, Tensor)
        T, B = inputs.shape[:2]
    H, device = weight_hh.shape[1], weight_hh.device
    h = torch.empty(T + 1, B, H, dtype=weight_hh.dtype, device=device)
    c0 = torch.zeros(B, H, device=device) if c0 is None else c0
    c_n = torch.empty(B, H, dtype=torch.float32, device=device)
    cells = None if cells_dtype is None else torch.empty(T, B, H, dtype=cells_dtype, device=device)
    gates = torch.empty(T, B, H, 4, dtype=weight_hh.dtype, device=device) if save_gates else None
    weight_hh, c0 = weight_hh.contiguous(), c0.contiguous()
    ids = None if ids is None else ids.contiguous()
    resets = None if resets is None else resets.contiguous()

    plan, launches = divide(plans, H, B)
    kernel = launch.kernel("forward", plan.kernel, H, weight_hh.dtype, device.index)
    tiles = launch.tensor_map(h, plan.width, 64)
    out = launch.tensor_map(h, plan.width // 2, 32)
    flags_each = 2 * plan.subs * FLAG_STRIDE
    flags = torch.empty(sum(one.groups for one in launches) * flags_each, dtype=torch.int32, device=device)
    if isinstance(inputs, Table):
        weights, inputs = inputs, torch.empty(inputs.weight_ih.shape[1], H, 4, dtype=h.dtype, device=device)
        begin(h, h0, flags, *weights, inputs)
    else:
        inputs = inputs.contiguous()
        begin(h, h0, flags)
    groups_before = 0
    for one in launches:
        arguments = ForwardArguments(
            map=tiles,
            out=out,
            weight=launch.pointer(weight_hh),
            inputs=launch.pointer(inputs),
            ids=launch.pointer(ids),
            resets=launch.pointer(resets),
            c0=launch.pointer(c0),
            gates=launch.pointer(gates),
            cells=launch.pointer(cells),
            c_n=launch.pointer(c_n),
            flags=launch.pointer(flags) + 4 * groups_before * flags_each,
            status=launch.status_pointer(),
            cells_kind=CELLS_KIND[cells_dtype],
            T=T,
            B=B,
            begin=one.begin,
            end=one.end,
        )
        launch.launch(kernel, one.groups * blocks_of_a_group(H), arguments, device)
        groups_before += one.groups
    return HopperForward(h, c_n, cells, gates)
