"""The truth: one LSTM layer in plain PyTorch, forward and hand-written backward.

Every kernel is checked against these functions, and they serve machines without a GPU, so the loops hold only what
the recurrence forces into them: all that does not depend on the step before is computed for all T at once.

For a step t (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000, as in torch.nn.LSTM)::

    z_t = inputs_t + h_{t-1} W_hh^T          (B, 4H), gates stacked i, f, g, o
    i, f, o = sigmoid(z_i, z_f, z_o);  g = tanh(z_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

A true ``resets[t, b]`` zeroes h_{t-1} and c_{t-1} of sequence b before step t and cuts the gradient there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm_kernels.shapes import cell_dtype, check_shapes


class Forward(NamedTuple):
    """h (T, B, H) in the weights' dtype; c (T, B, H) and the activated gates (T, B, 4H) in ``cell_dtype``."""

    h: Tensor
    c: Tensor
    gates: Tensor


class Backward(NamedTuple):
    """d_gates (T, B, 4H): gradient of z_t; dh0 and dc0 (B, H)."""

    d_gates: Tensor
    dh0: Tensor
    dc0: Tensor


def lstm_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    ids: Tensor | None = None,
    resets: Tensor | None = None,
) -> Forward:
    """Run one layer over T steps.

    ``inputs`` (T, B, 4H) is the input product with both biases; with ``ids`` (T, B) uint8 it is a table (V, 4H) whose
    rows are gathered step by step. ``weight_hh`` (4H, H), ``h0`` (B, H), ``c0`` (B, H) in ``cell_dtype``,
    ``resets`` (T, B) bool. Raises what ``check_shapes`` raises.
    """
    T, B, H = check_shapes(inputs, ids, weight_hh, h0, c0, resets)
    dtype = cell_dtype(weight_hh.dtype)
    inputs = inputs.to(dtype)
    weight = weight_hh.to(dtype).t()
    h = h0.new_empty(T, B, H)
    c = c0.new_empty(T, B, H)
    gates = c0.new_empty(T, B, 4 * H)
    h_prev, c_prev = h0.to(dtype), c0
    for t in range(T):
        if resets is not None:
            reset = resets[t].unsqueeze(1)
            h_prev, c_prev = h_prev.masked_fill(reset, 0), c_prev.masked_fill(reset, 0)
        x = inputs[t] if ids is None else inputs[ids[t].long()]
        z = torch.addmm(x, h_prev, weight, out=gates[t])
        i, f, g, o = z.chunk(4, dim=1)
        z[:, : 2 * H].sigmoid_()
        g.tanh_()
        o.sigmoid_()
        c_prev = torch.addcmul(f * c_prev, i, g, out=c[t])
        h[t] = o * c_prev.tanh()
        h_prev = h[t].to(dtype)
    return Forward(h, c, gates)


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
    """Gradients of the recurrence, from gradients of every h_t and every c_t.

    ``dh`` and ``dc`` (T, B, H), either may be None; ``gates`` (T, B, 4H) and ``c`` (T, B, H) as ``lstm_forward``
    returned them; ``c0`` (B, H); ``weight_hh`` (4H, H); ``dc_n`` (B, H), the gradient of the last c as a value of its
    own, or None; ``resets`` (T, B) bool or None.
    """
    T, B, H = c.shape
    weight = weight_hh.to(c.dtype)
    i, f, g, o = gates.chunk(4, dim=2)
    c_prev = shifted(c, c0, resets)
    tanh_c = c.tanh()
    dc_per_dh = o * (1 - tanh_c * tanh_c)
    # What the gradients of z_i, z_f and z_g are per unit of dc_t, and that of z_o per unit of dh_t.
    per_dc = torch.stack((g * i * (1 - i), c_prev * f * (1 - f), i * (1 - g * g)), dim=2)
    per_dh = tanh_c * o * (1 - o)
    d_gates = torch.empty_like(gates)
    dh_next = torch.zeros_like(c0)
    dc_next = dh_next if dc_n is None else dc_n.to(c0.dtype)
    for t in range(T - 1, -1, -1):
        dh_t = dh_next if dh is None else dh_next + dh[t]
        dc_t = torch.addcmul(dc_next, dh_t, dc_per_dh[t])
        if dc is not None:
            dc_t += dc[t]
        d_z = d_gates[t].view(B, 4, H)
        torch.mul(per_dc[t], dc_t.unsqueeze(1), out=d_z[:, :3])
        torch.mul(per_dh[t], dh_t, out=d_z[:, 3])
        dh_next = d_gates[t] @ weight
        dc_next = dc_t * f[t]
        if resets is not None:
            reset = resets[t].unsqueeze(1)
            dh_next.masked_fill_(reset, 0)
            dc_next.masked_fill_(reset, 0)
    return Backward(d_gates, dh_next, dc_next)


def shifted(states: Tensor, first: Tensor, resets: Tensor | None) -> Tensor:
    """What step t starts from: ``first`` (B, H), then states[:-1] (T, B, H), zeroed where ``resets`` (T, B) says so."""
    previous = torch.cat((first.to(states.dtype).unsqueeze(0), states[:-1]))
    return previous if resets is None else previous.masked_fill(resets.unsqueeze(2), 0)


def weight_gradient(d_gates: Tensor, h: Tensor, h0: Tensor, resets: Tensor | None = None) -> Tensor:
    """Gradient of weight_hh (4H, H): one product over the T * B rows of ``d_gates`` (T, B, 4H) and ``h`` (T, B, H)."""
    h_prev = shifted(h, h0, resets).to(d_gates.dtype)
    return d_gates.flatten(0, 1).t() @ h_prev.flatten(0, 1)


def table_gradient(d_gates: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Gradient of an input table (rows, 4H): row v is the sum of ``d_gates`` (T, B, 4H) where ``ids`` (T, B) is v."""
    table = d_gates.new_zeros(rows, d_gates.shape[2])
    return table.index_add_(0, ids.flatten().long(), d_gates.flatten(0, 1))
