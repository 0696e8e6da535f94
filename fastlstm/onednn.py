"""oneDNN's LSTM as a PyTorch operator, so that a traced call runs what an untraced one runs. It has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm.ops import State, check_ids, unseen
from fastlstm_kernels import onednn


def _run(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, h0: Tensor, c0: Tensor, save_cells: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h, c_n, and as asked for every c_t (else empty)."""
    if x.dim() == 2:
        check_ids(x, weight_ih.shape[1])
    h, c_n, cells = onednn.lstm_layer(x, weight_ih, weight_hh, bias, h0, c0, save_cells=save_cells)
    return h, c_n, c0.new_empty(0) if cells is None else cells


_onednn_lstm = torch.library.custom_op("fastlstm::onednn_lstm", _run, mutates_args=())


@_onednn_lstm.register_fake
def _(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, h0: Tensor, c0: Tensor, save_cells: bool
) -> tuple[Tensor, Tensor, Tensor]:
    T, B, H = x.shape[0], *h0.shape
    return h0.new_empty(T, B, H), c0.new_empty(B, H), c0.new_empty((T, B, H) if save_cells else (0,))


def lstm_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *,
    return_cells: bool = False,
) -> tuple[Tensor, State, Tensor | None] | None:
    """What ``fastlstm.ops.lstm_layer`` returns of x (T, B, I), or uint8 ids (T, B); None where oneDNN does not serve.

    ``weight_ih`` (4H, I), ``weight_hh`` (4H, H), biases (4H,) both or neither, ``h0`` and ``c0`` (B, H) likewise.
    """
    if x.device.type != "cpu":
        return None
    bias = None if bias_ih is None or bias_hh is None else bias_ih + bias_hh
    if h0 is None or c0 is None:
        h0 = c0 = weight_hh.new_zeros(x.shape[1], weight_hh.shape[1])
    given = (x, weight_ih, weight_hh, bias, h0, c0)
    if not onednn.serves(*given):
        return None
    h, c_n, cells = (_run if unseen(given) else _onednn_lstm)(*given, return_cells)
    return h, (h[-1].clone(), c_n), cells if return_cells else None


__all__ = ["lstm_layer"]
