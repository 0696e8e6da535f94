"""One LSTM layer by oneDNN, the library under torch.nn.LSTM on a CPU, with every c_t; float32, without gradients.

torch hands out h_t and the last c alone. But run for training, oneDNN keeps every c_t for its backward, in a workspace
that torch returns as bytes. Their layout is oneDNN's own affair (src/cpu/rnn/rnn_utils.hpp, the same in releases 3.9 to
3.13), so nothing is taken from them unseen: they must be as many as this layout has, and every c_t must have the sign
of its h_t, which oneDNN returned openly. If not, ``eager.lstm_forward`` runs instead, with a warning.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastlstm_kernels import eager
from fastlstm_kernels.shapes import Sizes

LSTM = 2  # the cell, in torch's numbering
FLOAT_BYTES = 4
PAGE_BYTES = 4096
# oneDNN packs the weights at every call. A call of one step takes it 0.9 ms at H = 512, B = 1, and the loop 0.3.
FEWEST_STEPS = 4
# Above 32 MiB glibc maps memory anew at every call: at H = 128, B = 64, T = 128 that made a call 1.3 times as long.
WORKSPACE_BYTES = 30 * 2**20


class Layer(NamedTuple):
    """h (T, B, H), the last c (B, H), and every c (T, B, H) if it was asked for."""

    h: Tensor
    c_n: Tensor
    cells: Tensor | None


def serves(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, h0: Tensor, c0: Tensor) -> bool:
    """Whether ``lstm_layer`` can run these, and fast: float32 on an x86 CPU, no gradient wanted, enough steps.

    Shapes that do not fit each other are left to those who say so in an error.
    """
    (T, B), H, width = x.shape[:2], weight_hh.shape[1], weight_ih.shape[1]
    if T < FEWEST_STEPS or B < 1:
        return False
    expected: list[tuple[Tensor, tuple[int, ...]]]
    expected = [(weight_ih, (4 * H, width)), (weight_hh, (4 * H, H)), (h0, (B, H)), (c0, (B, H))]
    if bias is not None:
        expected.append((bias, (4 * H,)))
    if x.dim() == 3:
        expected.append((x, (T, B, width)))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor, _ in expected):
        return False
    return all(tensor.shape == shape and eager.uses_onednn(tensor) for tensor, shape in expected)


def lstm_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    *,
    save_cells: bool,
) -> Layer:
    """Run a layer that ``serves`` accepts.

    ``x`` (T, B, I), or uint8 ids (T, B) below I, read as one-hot vectors; ``weight_ih`` (4H, I); ``weight_hh`` (4H, H);
    ``bias`` (4H,) or None; ``h0`` and ``c0`` (B, H). ``save_cells`` keeps every c_t; h is the same with and without.
    """
    (T, B), (gates, H), width = x.shape[:2], weight_hh.shape, weight_ih.shape[1]
    no_bias = h0.new_zeros(gates)
    weights = (weight_ih.detach(), weight_hh.detach(), no_bias if bias is None else bias.detach(), no_bias)
    parts = math.ceil(sum(workspace_parts(Sizes(T, B, H), width)) / WORKSPACE_BYTES)
    steps = math.ceil(T / parts)
    h, c = h0.detach().contiguous(), c0.detach().contiguous()
    outputs, cells = [], h.new_empty(T, B, H) if save_cells else None
    for start in range(0, T, steps):
        part = x[start : start + steps]
        dense = _one_hot(part, width) if x.dim() == 2 else part.detach().contiguous()
        output, h, c, understood = _run(dense, weights, h, c, None if cells is None else cells[start : start + steps])
        if not understood:
            warnings.warn("oneDNN's workspace is not laid out as expected: the slower loop runs", stacklevel=2)
            return _by_steps(x, weight_ih, weight_hh, bias, h0, c0)
        outputs.append(output)
    return Layer(outputs[0] if len(outputs) == 1 else torch.cat(outputs), c, cells)


def _run(
    x: Tensor, weights: Sequence[Tensor], h0: Tensor, c0: Tensor, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """h_t, the last h, the last c, and whether ``cells`` (T, B, H), if given, could be filled.

    A function of its own, so that the workspace is free before the next one is made.
    """
    H = h0.shape[1]
    with torch.enable_grad():  # this is what makes torch run oneDNN for training
        h, h_n, c_n, workspace = torch.ops.aten.mkldnn_rnn_layer(
            *(x, *weights, h0, c0, False, [], LSTM, H, 1, True, False, False, True)
        )
    if cells is None:
        return h, h_n, c_n, True
    earlier = cells_before_last(workspace, Sizes(*h.shape), x.shape[2])
    if earlier is None:
        return h, h_n, c_n, False
    torch.cat((earlier, c_n.unsqueeze(0)), out=cells)
    return h, h_n, c_n, not (cells * h).amin().item() < 0


@functools.lru_cache
def workspace_parts(sizes: Sizes, width: int) -> tuple[int, ...]:
    """Bytes of each part of oneDNN's workspace for a layer of ``width`` inputs.

    They are the gates; the hidden states of a projection; inputs and h, by layer and step, the initial ones first; c
    likewise; then the backward's gradients, of three kinds.
    """
    T, B, H = sizes
    states = 2 * (T + 1) * B * _row(max(H, width))
    c = 2 * (T + 1) * B * H
    floats = (T * B * _row(4 * H), T * B * _row(H), states, c, states, states, c)
    return tuple(-(-FLOAT_BYTES * count // PAGE_BYTES) * PAGE_BYTES for count in floats)


def cells_before_last(workspace: Tensor, sizes: Sizes, width: int) -> Tensor | None:
    """c_1 ... c_{T-1} (T - 1, B, H), a view of oneDNN's ``workspace``; None if that has not the size expected."""
    T, B, H = sizes
    parts = workspace_parts(sizes, width)
    if workspace.dtype != torch.uint8 or workspace.shape != (sum(parts),):
        return None
    # After the cells of the layer's input, which has none, and c_0. That is not in it, nor is c_T: oneDNN reads and
    # writes them in the tensors it is given.
    first = sum(parts[:3]) // FLOAT_BYTES + (T + 2) * B * H
    return workspace.view(torch.float32)[first : first + (T - 1) * B * H].view(T - 1, B, H)


def _row(count: int) -> int:
    """Floats from one row of ``count`` to the next: whole cache lines, but not a multiple of 256."""
    padded = -(-count // 16) * 16
    return padded + 16 if padded % 256 == 0 else padded


def _one_hot(ids: Tensor, width: int) -> Tensor:
    return torch.zeros(*ids.shape, width).scatter_(2, ids.long().unsqueeze(2), 1)


def _by_steps(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, h0: Tensor, c0: Tensor) -> Layer:
    dense = _one_hot(x, weight_ih.shape[1]) if x.dim() == 2 else x
    h, c_n, cells, _ = eager.lstm_forward(eager.linear(dense, weight_ih, bias), weight_hh, h0, c0, save_cells=True)
    return Layer(h, c_n, cells)
