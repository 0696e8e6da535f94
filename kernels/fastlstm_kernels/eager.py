"""The recurrence where there is no GPU: the reference's steps, faster, keeping only what is asked for.

On x86, float32 products go to oneDNN with the recurrent weights packed once for all steps, if there are enough of both:
on two cores of an AMD EPYC (AVX-512), B = 16, a step of the forward took 245 us at H = 384 and 306 at H = 512, and with
addmm, which needs no packing, 292 and 407; at H = 256 they were alike. With one row the backward is faster without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm_kernels.reference import Backward, shifted
from fastlstm_kernels.shapes import cell_dtype, check_shapes

# MKL is in torch on x86 alone.
HAS_ONEDNN: bool = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
PACKED_HIDDEN = 384  # from this H on
PACKED_STEPS = 8  # and for this many steps, packing the weights is repaid

Product = Callable[[Tensor, Tensor], Tensor]


class EagerForward(NamedTuple):
    """h (T, B, H) in the weights' dtype, the last c (B, H); every c and the activated gates if they were asked for."""

    h: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None


def lstm_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    ids: Tensor | None = None,
    resets: Tensor | None = None,
    save_gates: bool = False,
    save_cells: bool = False,
) -> EagerForward:
    """Run one layer over T steps; arguments as in ``reference.lstm_forward``, any floating-point dtype, any device.

    ``save_cells`` keeps every c_t (T, B, H), ``save_gates`` the activated gates (T, B, 4H), both in ``cell_dtype``.
    """
    T, B, H = check_shapes(inputs, ids, weight_hh, h0, c0, resets)
    dtype = cell_dtype(weight_hh.dtype)
    product = recurrent_product(weight_hh.to(dtype), B, T)
    inputs = inputs.to(dtype)
    steps = inputs.unbind() if ids is None else ids.long().unbind()
    resetting = None if resets is None else resets.unsqueeze(2).unbind()
    h = h0.new_empty(T, B, H)
    cells = c0.new_empty(T, B, H) if save_cells else None
    gates = c0.new_empty(T, B, 4 * H) if save_gates else None
    # Views of all steps are made at once: a small step is bound by the calls it makes.
    kept = (c0.new_empty(1, B, 4 * H).expand(T, B, 4 * H) if gates is None else gates).view(T, B, 4, H)
    by_step = (kept.flatten(2), *kept.unbind(2))
    out = zip(*(view.unbind() for view in (h, *by_step)), strict=True)
    scratch = torch.empty_like(c0, memory_format=torch.contiguous_format)
    h_prev, c_prev = h0.to(dtype), c0.clone(memory_format=torch.contiguous_format)
    every_c = [c_prev] * T if cells is None else cells.unbind()
    for t, (x, c, (h_t, activated, i, f, g, o)) in enumerate(zip(steps, every_c, out, strict=True)):
        if resetting is not None:
            h_prev, c_prev = h_prev.masked_fill(resetting[t], 0), c_prev.masked_fill(resetting[t], 0)
        z = product(x if ids is None else inputs.index_select(0, x), h_prev)
        torch.sigmoid(z, out=activated)
        torch.tanh(z.narrow(1, 2 * H, H), out=g)
        torch.mul(f, c_prev, out=scratch)
        c_prev = torch.addcmul(scratch, i, g, out=c)
        torch.tanh(c, out=scratch)
        h_prev = torch.mul(o, scratch, out=h_t) if h.dtype == dtype else h_t.copy_(scratch.mul_(o)).to(dtype)
    return EagerForward(h, c_prev.clone() if save_cells else c_prev, cells, gates)


def recompute_gates(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    h: Tensor,
    *,
    ids: Tensor | None = None,
    resets: Tensor | None = None,
) -> Tensor:
    """The activated gates (T, B, 4H) in ``cell_dtype`` from the ``h`` (T, B, H) that the forward returned.

    With every h_t known this is one product for all steps; its sums may round otherwise than the forward's.
    """
    T, B, H = h.shape
    dtype = cell_dtype(weight_hh.dtype)
    h_prev = shifted(h, h0, resets).to(dtype).flatten(0, 1)
    x = inputs.flatten(0, 1) if ids is None else inputs.index_select(0, ids.flatten().long())
    z = torch.addmm(x.to(dtype), h_prev, weight_hh.to(dtype).t())
    gates = z.sigmoid()
    torch.tanh(z[:, 2 * H : 3 * H], out=gates[:, 2 * H : 3 * H])
    return gates.view(T, B, 4 * H)


def lstm_backward(
    dh: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    c: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    *,
    dc_n: Tensor | None = None,
    resets: Tensor | None = None,
) -> Backward:
    """Gradients of the recurrence; arguments and result as in ``reference.lstm_backward``.

    ``dc_n`` (B, H) is the gradient of the last c as a value of its own. A step is computed while it is in the cache;
    tanh alone is taken of all steps at once, to use every core.
    """
    T, B, H = c.shape
    product = backward_product(weight_hh.to(c.dtype), B, T)
    sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
    tanh_backward = torch.ops.aten.tanh_backward.grad_input
    d_gates = torch.empty_like(gates, memory_format=torch.contiguous_format)
    d_gate = d_gates.view(T, B, 4, H)
    views = (d_gates, d_gate[:, :, :2], *d_gate.unbind(2))
    gate = gates.view(T, B, 4, H)
    kept = (gate[:, :, :2], *gate.unbind(2), c.tanh(), shifted(c, c0, resets))
    steps = list(zip(*(view.unbind() for view in (*views, *kept)), strict=True))
    resetting = None if resets is None else resets.unsqueeze(2).unbind()
    dh_of, dc_of = (None if d is None else d.to(c.dtype).unbind() for d in (dh, dc))
    dh_next, dc_t, scratch = (torch.zeros(B, H, dtype=c.dtype, device=c.device) for _ in range(3))
    if dc_n is not None:
        dc_t.copy_(dc_n)
    for t in range(T - 1, -1, -1):
        d_z, d_if, d_i, d_f, d_g, d_o, i_f, i, f, g, o, tanh_c, c_prev = steps[t]
        dh_t = dh_next if dh_of is None else dh_next.add_(dh_of[t])
        if dc_of is not None:
            dc_t.add_(dc_of[t])
        torch.mul(dh_t, o, out=scratch)
        dc_t.add_(tanh_backward(scratch, tanh_c, grad_input=scratch))
        torch.mul(dc_t, g, out=d_i)
        torch.mul(dc_t, c_prev, out=d_f)
        sigmoid_backward(d_if, i_f, grad_input=d_if)
        torch.mul(dc_t, i, out=scratch)
        tanh_backward(scratch, g, grad_input=d_g)
        torch.mul(dh_t, tanh_c, out=scratch)
        sigmoid_backward(scratch, o, grad_input=d_o)
        dc_t.mul_(f)
        dh_next = product(d_z)
        if resetting is not None:
            dh_next.masked_fill_(resetting[t], 0)
            dc_t.masked_fill_(resetting[t], 0)
    return Backward(d_gates, dh_next, dc_t)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias without a gradient: torch.nn.functional.linear, or oneDNN's where it is the faster one."""
    if not uses_onednn(weight):
        return torch.nn.functional.linear(x, weight, bias)
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def recurrent_product(weight: Tensor, rows: int, steps: int) -> Product:
    """(x, h) -> x + h weight^T for x (rows, 4H), h (rows, H), ``weight`` (4H, H), to be called for every step."""
    if packs(weight, steps):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        binary = torch.ops.mkldnn._linear_pointwise.binary
        return lambda x, h: binary(h, x, packed, None, "add")
    transposed = weight.t()
    return lambda x, h: torch.addmm(x, h, transposed)


def backward_product(weight: Tensor, rows: int, steps: int) -> Callable[[Tensor], Tensor]:
    """d_z -> d_z weight for d_z (rows, 4H), as a new tensor, to be called for every step."""
    if rows > 1 and packs(weight, steps):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.t().contiguous(), rows)
        pointwise = torch.ops.mkldnn._linear_pointwise.default
        return lambda d_z: pointwise(d_z, packed, None, "none", [], "")
    return lambda d_z: d_z @ weight


def packs(weight: Tensor, steps: int) -> bool:
    """Whether ``steps`` products with the recurrent ``weight`` (4H, H) go to oneDNN, and it is packed for them."""
    return uses_onednn(weight) and weight.shape[1] >= PACKED_HIDDEN and steps >= PACKED_STEPS


def uses_onednn(tensor: Tensor) -> bool:
    """Whether products with ``tensor`` go to oneDNN: torch's operators for it know x86 and float32 best."""
    return HAS_ONEDNN and tensor.device.type == "cpu" and tensor.dtype == torch.float32
