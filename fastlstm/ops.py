"""LSTM recurrences as PyTorch operators: forward, backward, and the autograd rule that joins them.

The operators are told which kernel to run, so that a traced graph stays as it was traced; ``backends.py`` chooses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastlstm_kernels import check_shapes, eager, gradients, reference
from fastlstm_kernels.shapes import cell_dtype

BYTE_VALUES = 256


@torch.library.custom_op("fastlstm::lstm_forward", mutates_args=())
def _lstm_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    ids: Tensor | None,
    resets: Tensor | None,
    save_gates: bool,
    save_cells: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, c_n, and as asked for every c_t and the activated gates (else empty)."""
    with _settled(weight_hh):
        if ids is not None:
            check_ids(ids, inputs.shape[0])
        if backend == "triton":
            from fastlstm_kernels.forward import lstm_forward

            cells_dtype = torch.float32 if save_cells else None
            h, c_n, cells, gates = lstm_forward(
                *(inputs, weight_hh, h0, c0), ids=ids, resets=resets, save_gates=save_gates, cells_dtype=cells_dtype
            )
        else:
            h, c_n, cells, gates = eager.lstm_forward(
                *(inputs, weight_hh, h0, c0), ids=ids, resets=resets, save_gates=save_gates, save_cells=save_cells
            )
    nothing = c0.new_empty(0)
    return h, c_n, nothing if cells is None else cells, nothing.clone() if gates is None else gates


@_lstm_forward.register_fake
def _(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    ids: Tensor | None,
    resets: Tensor | None,
    save_gates: bool,
    save_cells: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, B = inputs.shape[:2] if ids is None else ids.shape
    H = weight_hh.shape[1]
    cells = c0.new_empty((T, B, H) if save_cells else (0,))
    gates_dtype = weight_hh.dtype if backend == "triton" and save_gates else c0.dtype
    gates = c0.new_empty((T, B, 4 * H) if save_gates else (0,), dtype=gates_dtype)
    return h0.new_empty(T, B, H), c0.new_empty(B, H), cells, gates


@torch.library.custom_op("fastlstm::lstm_backward", mutates_args=())
def _lstm_backward(
    dh: Tensor | None,
    dc_n: Tensor | None,
    dc: Tensor | None,
    gates: Tensor | None,
    h: Tensor,
    cells: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    inputs: Tensor | None,
    ids: Tensor | None,
    resets: Tensor | None,
    table_rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of inputs, weight_hh, h0 and c0; ``table_rows`` is V when ``ids`` is given.

    ``gates`` as the forward saved them, or None: then they are computed again, from ``inputs`` and ``h``.
    """
    with _settled(weight_hh):
        if dc_n is not None:
            dc = torch.zeros_like(cells) if dc is None else dc.clone()
            dc[-1] += dc_n
        if backend == "triton":
            from fastlstm_kernels.backward import lstm_backward
            from fastlstm_kernels.recompute import recompute_gates

            if gates is None:
                assert inputs is not None
                gates = recompute_gates(inputs, weight_hh, h0, h, ids=ids, resets=resets)
            d_gates, dh0, dc0 = lstm_backward(dh, dc, gates, cells, c0, weight_hh, resets=resets)
        else:
            if gates is None:
                assert inputs is not None
                gates = eager.recompute_gates(inputs, weight_hh, h0, h, ids=ids, resets=resets)
            d_gates, dh0, dc0 = eager.lstm_backward(dh, dc, gates, cells, c0, weight_hh, resets=resets)
        d_weight, d_inputs = _parameter_gradients(d_gates, h, h0, ids, resets, table_rows)
    # Contiguous whatever the strides of the arguments, as the fake says.
    d_h0 = dh0.to(h0.dtype).contiguous()
    return d_inputs.to(weight_hh.dtype), d_weight.to(weight_hh.dtype), d_h0, dc0.contiguous()


def _parameter_gradients(
    d_gates: Tensor, h: Tensor, h0: Tensor, ids: Tensor | None, resets: Tensor | None, table_rows: int
) -> tuple[Tensor, Tensor]:
    """Gradients of weight_hh and of the inputs (or of their table), in the dtype of ``d_gates``."""
    # A table on a GPU: index_add_ adds in whatever order the threads come.
    table_gradient = gradients.table_gradient if d_gates.is_cuda else reference.table_gradient
    d_weight = gradients.weight_gradient(d_gates, h.to(d_gates.dtype), h0.to(d_gates.dtype), resets)
    return d_weight, d_gates if ids is None else table_gradient(d_gates, ids, table_rows)


@_lstm_backward.register_fake
def _(
    dh: Tensor | None,
    dc_n: Tensor | None,
    dc: Tensor | None,
    gates: Tensor | None,
    h: Tensor,
    cells: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    inputs: Tensor | None,
    ids: Tensor | None,
    resets: Tensor | None,
    table_rows: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, B, H = h.shape
    d_inputs = weight_hh.new_empty((T, B, 4 * H) if ids is None else (table_rows, 4 * H))
    return d_inputs, weight_hh.new_empty(4 * H, H), h0.new_empty(B, H), c0.new_empty(B, H)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    layer_inputs, weight_hh, h0, c0, ids, resets, save_gates, save_cells, backend = inputs
    h, _, cells, gates = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates)
    ctx.table_rows = 0 if ids is None else layer_inputs.shape[0]
    ctx.save_gates, ctx.save_cells, ctx.backend = save_gates, save_cells, backend
    ctx.save_for_backward(gates if save_gates else layer_inputs, h, cells, weight_hh, h0, c0, ids, resets)


def _backward(
    ctx: Any, dh: Tensor | None, dc_n: Tensor | None, dc: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.save_cells:
        raise RuntimeError("fastlstm::lstm_forward ran with save_cells=False, so that it has no backward")
    saved, h, cells, weight_hh, h0, c0, ids, resets = ctx.saved_tensors
    gates, inputs = (saved, None) if ctx.save_gates else (None, saved)
    given = (dh, dc_n, dc, gates, h, cells, weight_hh, h0, c0, inputs, ids, resets, ctx.table_rows, ctx.backend)
    return (*_lstm_backward(*given), None, None, None, None, None)


def _no_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Nothing is needed to refuse."""


def _no_second_derivative(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
    raise RuntimeError(
        "double backward is not supported: for second derivatives use torch.nn.LSTM, on a GPU under "
        "torch.backends.cudnn.flags(enabled=False)"
    )


_lstm_forward.register_autograd(_backward, setup_context=_setup_context)
_lstm_backward.register_autograd(_no_second_derivative, setup_context=_no_context)


@contextlib.contextmanager
def _settled(tensor: Tensor) -> Iterator[None]:
    """On the device of ``tensor``, which a kernel's launch does not look at, and without autocast."""
    on_device = torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
    with on_device, torch.autocast(tensor.device.type, enabled=False):
        yield


def check_ids(ids: Tensor, rows: int) -> None:
    """The kernels read a table row for each id unseen; on a GPU the check is an assertion there, without waiting."""
    if rows >= BYTE_VALUES:
        return
    if ids.is_cuda:
        torch._assert_async((ids < rows).all(), f"ids: expected values below {rows}")
    elif ids.numel() and int(ids.max()) >= rows:
        raise ValueError(f"ids: expected values below {rows}, got {int(ids.max())}")


def lstm_layer(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    ids: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: bool = False,
    recompute: bool = False,
    backend: str = "torch",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One LSTM layer over T steps: every h_t (T, B, H), the last c (B, H), every c_t (T, B, H) with ``return_cells``.

    ``inputs`` is the input product with both biases, (T, B, 4H); or, with ``ids`` (T, B) uint8, the table (V, 4H) of
    the input product of each id. ``weight_hh`` (4H, H); ``h0``, ``c0`` (B, H); ``resets`` (T, B) bool zeroes the state
    before a step. c is float32 whatever the dtype of the weights (float64 for float64). Gradients reach every
    argument but ``ids`` and ``resets``; ``recompute`` computes the gates again in the backward in place of keeping
    them, (T, B, 4H). ``backend`` is "triton" or "torch".
    """
    check_shapes(inputs, ids, weight_hh, h0, c0, resets)
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (inputs, weight_hh, h0, c0))
    h, c_n, cells, _ = _lstm_forward(
        *(inputs, weight_hh, h0, c0, ids, resets), trained and not recompute, trained or return_cells, backend
    )
    return h, c_n, cells if return_cells else None


__all__ = ["cell_dtype", "lstm_layer"]
