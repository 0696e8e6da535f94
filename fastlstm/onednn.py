"""oneDNN's LSTM as a PyTorch operator, so that a traced call runs what an untraced one runs. It has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastlstm.ops import check_ids
from fastlstm_kernels import onednn
from fastlstm_kernels.onednn import serves


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
    bias: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    *,
    return_cells: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What ``fastlstm.ops.lstm_layer`` returns, of a layer that ``serves`` accepts; arguments as there."""
    given = (x, weight_ih, weight_hh, bias, h0, c0)
    if _seen(given):
        h, c_n, cells = _onednn_lstm(*given, return_cells)
    else:
        h, c_n, cells = _run(*given, return_cells)
    return h, c_n, cells if return_cells else None


def _seen(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a trace, or a tensor of a class of its own, watches the operators go by.

    If not, the kernel is called without one, which spares 40 us: a tenth of a call at H = 128, B = 1, T = 32.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return True
    return any(tensor is not None and type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)


__all__ = ["lstm_layer", "serves"]
