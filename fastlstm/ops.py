"""LSTM recurrences as PyTorch operators: forward, backward, and the autograd rule that joins them.

The operators are told which kernel to run, so that a traced graph stays as it was traced; ``backends.py`` chooses.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fastlstm_kernels import check_shapes, eager, gradients, reference
from fastlstm_kernels.launch import fuses_inputs
from fastlstm_kernels.shapes import cell_dtype

State = tuple[Tensor, Tensor]
BYTE_VALUES = 256
HERE = contextlib.nullcontext()
PLAIN = {Tensor, torch.nn.Parameter, type(None)}


class Inputs(NamedTuple):
    """What a layer reads, in one of the three kinds that the operators take.

    - ``values`` (T, B, 4H): the input product of all steps with both biases;
    - with ``ids`` (T, B) uint8, ``values`` (V, 4H): a table of the input product of each id;
    - with ``weight_ih`` (4H, I), and both biases (4H,) or neither, ``values``: x itself. (T, B, I) is multiplied by
      "triton" step by step, and by "hopper" with the gates in its own order; uint8 ids (T, B) are taken by "hopper".
    """

    values: Tensor
    ids: Tensor | None = None
    weight_ih: Tensor | None = None
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None


def layer_inputs(
    x: Tensor,
    weight_ih: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    *,
    backend: str,
    fused: bool | None = None,
) -> Inputs:
    """Bring x (T, B, I), or uint8 ids (T, B), into the kind that suits backend and sizes best.

    ``fused`` forces x itself, or its product, on dense inputs of "triton" (None: the launch table decides).
    """
    if backend == "hopper":
        return Inputs(x, None, weight_ih, bias_ih, bias_hh)
    if x.dim() == 3 and backend == "triton":
        T, B, I = x.shape
        fused = fuses_inputs(I, T, weight_ih.shape[0] // 4, B, x.dtype, x.device) if fused is None else fused
        if fused:
            return Inputs(x, None, weight_ih, bias_ih, bias_hh)
    bias = None if bias_ih is None or bias_hh is None else bias_ih + bias_hh
    if x.dim() == 2:
        table = weight_ih.t()
        return Inputs(table.contiguous() if bias is None else table + bias, x)
    trained = torch.is_grad_enabled() and (x.requires_grad or weight_ih.requires_grad)
    linear = F.linear if trained or torch.compiler.is_compiling() else eager.linear
    return Inputs(linear(x, weight_ih, bias))


class _Forward(NamedTuple):
    """h (T, B, H), c_n (B, H), every c_t and the activated gates if they were asked for, h_n (B, H) if it was made."""

    h: Tensor
    c_n: Tensor
    cells: Tensor | None
    gates: Tensor | None
    h_n: Tensor | None = None


def _run_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    ids: Tensor | None,
    resets: Tensor | None,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    units: Tensor | None,
    cells_dtype: torch.dtype | None,
    save_gates: bool,
    backend: str,
) -> _Forward:
    with settled(weight_hh):
        if ids is not None:
            check_ids(ids, inputs.shape[0])
        elif inputs.dtype == torch.uint8 and weight_ih is not None:
            if backend != "hopper":
                raise ValueError(f"inputs: expected features with weight_ih and backend={backend!r}, got uint8 ids")
            check_ids(inputs, weight_ih.shape[1])
        fused = _fused_forward(backend)
        if fused is not None:
            return _Forward(
                *fused(
                    *(inputs, weight_hh, h0, c0),
                    ids=ids,
                    weight_ih=weight_ih,
                    bias_ih=bias_ih,
                    bias_hh=bias_hh,
                    resets=resets,
                    save_gates=save_gates,
                    cells_dtype=cells_dtype,
                    units=units,
                )
            )
        if weight_ih is not None:
            raise ValueError(f"weight_ih: expected None with backend={backend!r}, which takes the input product")
        if h0 is None or c0 is None:
            h0, c0 = _zero_state(weight_hh, (ids if ids is not None else inputs).shape[1])
        out = eager.lstm_forward(
            *(inputs, weight_hh, h0, c0),
            ids=ids,
            resets=resets,
            save_gates=save_gates,
            save_cells=cells_dtype is not None,
        )
        cells = out.cells
        if cells is not None and cells_dtype is not None:
            cells = (cells if units is None else cells.index_select(2, units)).to(cells_dtype)
        return _Forward(out.h, out.c_n, cells, out.gates)


# Triton is imported by the first call that needs it; even an import that has been done takes 0.7 us.
@functools.cache
def _fused_forward(backend: str) -> Callable[..., Any] | None:
    if backend == "triton":
        from fastlstm_kernels.forward import lstm_forward
    elif backend == "hopper":
        from fastlstm_kernels.hopper.layer import lstm_forward  # type: ignore[assignment]
    else:
        return None
    return lstm_forward


def _zero_state(weight_hh: Tensor, B: int) -> tuple[Tensor, Tensor]:
    shape = (B, weight_hh.shape[1])
    return weight_hh.new_zeros(shape), weight_hh.new_zeros(shape, dtype=cell_dtype(weight_hh.dtype))


@torch.library.custom_op("fastlstm::lstm_forward", mutates_args=())
def _lstm_forward(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    ids: Tensor | None,
    resets: Tensor | None,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    units: Tensor | None,
    cells_dtype: torch.dtype | None,
    save_gates: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, c_n, and as asked for every c_t (of the chosen ``units``) and the activated gates (else empty)."""
    h, c_n, cells, gates, _ = _run_forward(
        *(inputs, weight_hh, h0, c0, ids, resets, weight_ih, bias_ih, bias_hh, units, cells_dtype, save_gates, backend)
    )
    return h, c_n, c_n.new_empty(0) if cells is None else cells, c_n.new_empty(0) if gates is None else gates


@_lstm_forward.register_fake
def _(
    inputs: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    ids: Tensor | None,
    resets: Tensor | None,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    units: Tensor | None,
    cells_dtype: torch.dtype | None,
    save_gates: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    T, B = inputs.shape[:2] if ids is None else ids.shape
    H = weight_hh.shape[1]
    c_n = weight_hh.new_empty(B, H, dtype=cell_dtype(weight_hh.dtype))
    cells = c_n.new_empty(0)
    if cells_dtype is not None:
        cells = c_n.new_empty((T, B, H if units is None else units.shape[0]), dtype=cells_dtype)
    gates_dtype = weight_hh.dtype if backend in ("hopper", "triton") and save_gates else c_n.dtype
    gates = c_n.new_empty((T, B, 4 * H) if save_gates else (0,), dtype=gates_dtype)
    # The Hopper kernels keep h0 in front.
    h = weight_hh.new_empty(T + 1, B, H)[1:] if backend == "hopper" else weight_hh.new_empty(T, B, H)
    return h, c_n, cells, gates


@torch.library.custom_op("fastlstm::lstm_backward", mutates_args=())
def _lstm_backward(
    dh: Tensor | None,
    dc_n: Tensor | None,
    dc: Tensor | None,
    gates: Tensor | None,
    h: Tensor,
    cells: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    inputs: Tensor | None,
    ids: Tensor | None,
    resets: Tensor | None,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    table_rows: int,
    inputs_wanted: bool,
    h0_wanted: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of inputs, weight_hh, h0, c0, weight_ih and each bias; the last two are empty without them.

    ``gates`` as the forward saved them, or None: then they are computed again, from ``inputs`` and ``h``. ``inputs``
    are also needed with ``weight_ih``, whose gradient is made here; that of x is empty unless ``inputs_wanted``, that
    of ``h0`` unless ``h0_wanted``. ``table_rows`` is V when ``ids`` is given.
    """
    first_h = h0
    if h0 is None or c0 is None:
        h0, c0 = _zero_state(weight_hh, h.shape[1])
    if backend == "hopper":
        from fastlstm_kernels.hopper import layer, order
    with settled(weight_hh):
        if gates is None:
            assert inputs is not None
            if backend in ("hopper", "triton"):
                from fastlstm_kernels.recompute import recompute_gates

                given = Inputs(inputs, ids, weight_ih, bias_ih, bias_hh)
                if weight_ih is not None and inputs.dtype == torch.uint8:
                    given = layer_inputs(inputs, weight_ih, bias_ih, bias_hh, backend="triton")
                gates = recompute_gates(
                    *(given.values, weight_hh, h0, h),
                    ids=given.ids,
                    weight_ih=given.weight_ih,
                    bias_ih=given.bias_ih,
                    bias_hh=given.bias_hh,
                    resets=resets,
                )
                if backend == "hopper":
                    gates = order.columns_by_unit(gates)
            else:
                gates = eager.recompute_gates(inputs, weight_hh, h0, h, ids=ids, resets=resets)
        upstream = (dh, dc, gates, cells, c0, weight_hh)
        if backend == "triton":
            from fastlstm_kernels.backward import lstm_backward

            d_gates, dh0, dc0 = lstm_backward(*upstream, dc_n=dc_n, resets=resets)
        elif backend == "hopper":
            d_gates, dh0, dc0 = layer.lstm_backward(*upstream, dc_n=dc_n, resets=resets, h0_wanted=h0_wanted)
        else:
            d_gates, dh0, dc0 = eager.lstm_backward(*upstream, dc_n=dc_n, resets=resets)
        h, first_h = h.to(d_gates.dtype), None if first_h is None else first_h.to(d_gates.dtype)
        d_inputs, d_weight_ih, d_bias = d_gates, h.new_empty(0), h.new_empty(0)
        if ids is not None:
            # A table on a GPU: index_add_ adds in whatever order the threads come.
            table_gradient = gradients.table_gradient if d_gates.is_cuda else reference.table_gradient
            d_inputs = table_gradient(d_gates, ids, table_rows)
        elif weight_ih is not None:
            assert inputs is not None
            rows = d_gates.flatten(0, 1)
            of_ids = inputs.dtype == torch.uint8
            d_inputs = h.new_empty(0)
            if inputs_wanted:
                ordered = order.rows_by_unit(weight_ih) if backend == "hopper" else weight_ih
                d_inputs = (rows @ ordered).view_as(inputs)
            if of_ids:
                d_weight_ih = gradients.table_weight_gradient(d_gates, inputs, weight_ih.shape[1])
            else:
                d_weight_ih = rows.t() @ inputs.flatten(0, 1)
            if bias_ih is not None:
                d_bias = d_weight_ih.sum(1) if of_ids else rows.sum(0)
        exchange = gradients.current_exchange()
        factors = gradients.weight_factors(d_gates, h, first_h, resets)
        if exchange is None:
            d_weight_hh = gradients.weight_gradient(factors)
        else:
            if weight_ih is not None:
                exchange.start(weight_ih, d_weight_ih)
            finished = functools.partial(exchange.start, weight_hh)
            d_weight_hh = gradients.weight_gradient(factors, finished)
            exchange.wait()
        if backend == "hopper":
            # Its gates are ordered by unit.
            d_weight_hh = order.rows_stacked(d_weight_hh)
            d_weight_ih, d_bias = (
                tensor if not tensor.numel() else order.rows_stacked(tensor) for tensor in (d_weight_ih, d_bias)
            )
            if weight_ih is None:
                d_inputs = order.columns_stacked(d_inputs)
    # Contiguous whatever the strides of the arguments, as the fake says.
    d_parameters = [tensor.to(weight_hh.dtype) for tensor in (d_inputs, d_weight_hh, d_weight_ih, d_bias)]
    d_inputs, d_weight_hh, d_weight_ih, d_bias = d_parameters
    dh0 = dh0.to(weight_hh.dtype).contiguous() if h0_wanted else weight_hh.new_empty(0)
    return d_inputs, d_weight_hh, dh0, dc0.contiguous(), d_weight_ih, d_bias


@_lstm_backward.register_fake
def _(
    dh: Tensor | None,
    dc_n: Tensor | None,
    dc: Tensor | None,
    gates: Tensor | None,
    h: Tensor,
    cells: Tensor,
    weight_hh: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    inputs: Tensor | None,
    ids: Tensor | None,
    resets: Tensor | None,
    weight_ih: Tensor | None,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    table_rows: int,
    inputs_wanted: bool,
    h0_wanted: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, H = h.shape
    shape: tuple[int, ...] = (T, B, 4 * H) if ids is None else (table_rows, 4 * H)
    d_weight_ih, d_bias = weight_hh.new_empty(0), weight_hh.new_empty(0)
    if weight_ih is not None:
        shape = (T, B, weight_ih.shape[1]) if inputs_wanted else (0,)
        d_weight_ih = weight_hh.new_empty(weight_ih.shape)
        d_bias = d_bias if bias_ih is None else weight_hh.new_empty(4 * H)
    d_weight_hh, dh0 = weight_hh.new_empty(4 * H, H), weight_hh.new_empty((B, H) if h0_wanted else (0,))
    dc0 = weight_hh.new_empty(B, H, dtype=cell_dtype(weight_hh.dtype))
    return weight_hh.new_empty(shape), d_weight_hh, dh0, dc0, d_weight_ih, d_bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    values, weight_hh, h0, c0, ids, resets, weight_ih, bias_ih, bias_hh, units, cells_dtype, save_gates, backend = (
        inputs
    )
    h, _, cells, gates = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates)
    ctx.table_rows = 0 if ids is None else values.shape[0]
    ctx.backend = backend
    ctx.has_backward = units is None and cells_dtype == cell_dtype(weight_hh.dtype)
    if save_gates and weight_ih is None:
        values = None
    ctx.save_for_backward(
        *(gates if save_gates else None, h, cells, weight_hh, h0, c0, values, ids, resets, weight_ih, bias_ih, bias_hh)
    )


def _backward(
    ctx: Any, dh: Tensor | None, dc_n: Tensor | None, dc: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if not ctx.has_backward:
        raise RuntimeError("fastlstm::lstm_forward ran without keeping every c_t, so that it has no backward")
    gates, h, cells, weight_hh, h0, c0, *others = ctx.saved_tensors
    stateful, dense = h0 is not None, others[3] is not None
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[2])
    given = (dh, dc_n, dc, gates, h, cells, weight_hh, h0, c0, *others, ctx.table_rows, *wanted)
    d_inputs, d_weight_hh, dh0, dc0, d_weight_ih, d_bias = _lstm_backward(*given, ctx.backend)
    of_inputs = (d_inputs if ctx.needs_input_grad[0] else None, d_weight_hh)
    of_state = (dh0 if wanted[1] else None, dc0 if stateful else None)
    biased = dense and others[4] is not None
    of_dense = (d_weight_ih if dense else None, *((d_bias, d_bias) if biased else (None, None)))
    return (*of_inputs, *of_state, None, None, *of_dense, None, None, None, None)


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
def _elsewhere(tensor: Tensor) -> Iterator[None]:
    on_device = torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
    with on_device, torch.autocast(tensor.device.type, enabled=False):
        yield


def settled(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """On the device of ``tensor``, which a kernel's launch does not look at, and without autocast."""
    here = not tensor.is_cuda or tensor.device.index == torch.cuda.current_device()
    if here and not torch.is_autocast_enabled(tensor.device.type):
        return HERE
    return _elsewhere(tensor)


def check_ids(ids: Tensor, rows: int) -> None:
    """The kernels read a table row for each id unseen; on a GPU the check is an assertion there, without waiting."""
    if rows >= BYTE_VALUES:
        return
    if ids.is_cuda:
        torch._assert_async((ids < rows).all(), f"ids: expected values below {rows}")
    elif ids.numel() and int(ids.max()) >= rows:
        raise ValueError(f"ids: expected values below {rows}, got {int(ids.max())}")


def unseen(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether nobody watches the operators go by, as a trace or a tensor of another class does.

    Then the kernel can be called without them, which took 17 of 22 us of a call on a CPU (torch 2.13).
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    return PLAIN.issuperset(map(type, tensors))


def lstm_layer(
    inputs: Inputs,
    weight_hh: Tensor,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    resets: Tensor | None = None,
    return_cells: bool = False,
    cells_dtype: torch.dtype | None = None,
    units: Tensor | None = None,
    recompute: bool = False,
    backend: str = "torch",
) -> tuple[Tensor, State, Tensor | None]:
    """One LSTM layer over T steps: every h_t (T, B, H), h_n and c_n, every c_t (T, B, H) with ``return_cells``.

    h_n and c_n, (B, H), are tensors of their own.

    ``inputs``: see ``Inputs``. ``weight_hh`` (4H, H); ``h0``, ``c0`` (B, H), both or neither (then zero); ``resets``
    (T, B) bool zeroes the state before a step. c is float32 whatever the dtype of the weights (float64 for float64).
    Gradients reach every argument but ``ids`` and ``resets``; ``recompute`` computes the gates again in the backward in
    place of keeping them, (T, B, 4H). Without a gradient c_t may be had in ``cells_dtype``, and of chosen ``units``
    (U,) alone, (T, B, U). ``backend`` is "hopper", "triton" or "torch".
    """
    values, ids, weight_ih, bias_ih, bias_hh = inputs
    tensors = (values, weight_hh, h0, c0, ids, resets, weight_ih, bias_ih, bias_hh, units)
    trained = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    if trained or (return_cells and cells_dtype is None):
        cells_dtype = cell_dtype(weight_hh.dtype)
    if not trained and unseen(tensors):
        h, c_n, cells, _, h_n = _run_forward(*tensors, cells_dtype, False, backend)
    else:
        check_shapes(values, ids, weight_hh, h0, c0, resets, weight_ih, bias_ih, bias_hh)
        h, c_n, cells, _ = _lstm_forward(*tensors, cells_dtype, trained and not recompute, backend)
        h_n = None
    return h, (h[-1].clone() if h_n is None else h_n, c_n), cells if return_cells else None


__all__ = ["Inputs", "State", "cell_dtype", "layer_inputs", "lstm_layer", "settled"]
