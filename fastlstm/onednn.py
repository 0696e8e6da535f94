"""oneDNN's LSTM as a PyTorch operator, so that a traced call runs what an untraced one runs. It has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm.ops import check_ids
from fastlstm_kernels import onednn
from fastlstm_kernels.onednn import serves


@torch.library.custom_op("fastlstm::onednn_lstm", mutates_args=())
def _onednn_lstm(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None, h0: Tensor, c0: Tensor, save_cells: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """h, c_n, and as asked for every c_t (else empty)."""
    if x.dim() == 2:
        check_ids(x, weight_ih.shape[1])
    h, c_n, cells = onednn.lstm_layer(x, weight_ih, weight_hh, bias, h0, c0, save_cells=save_cells)
    return h, c_n, c0.new_empty(0) if cells is None else cells


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
    bias: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    *,
    return_cells: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What ``fastlstm.ops.lstm_layer`` returns, of a layer that ``serves`` accepts; arguments as there."""
    h, c_n, cells = _onednn_lstm(x, weight_ih, weight_hh, bias, h0, c0, return_cells)
    return h, c_n, cells if return_cells else None


__all__ = ["lstm_layer", "serves"]
