"""A stack of LSTM layers as a function of its weights; ``fastlstm.LSTM`` calls it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fastlstm import onednn
from fastlstm.backends import Call, choose, warn_of_fallback
from fastlstm.ops import State, cell_dtype, layer_inputs, lstm_layer, settled
from fastlstm_kernels.launch import capability_of

# weight_ih, weight_hh, bias_ih and bias_hh of one layer and direction.
Recurrence = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def lstm(
    input: Tensor,
    hx: State | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    return_cells: bool = False,
    cells_dtype: torch.dtype | None = None,
    cell_units: Tensor | None = None,
    recompute: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, State] | tuple[Tensor, State, Tensor]:
    """Run a stack of LSTM layers.

    ``input`` (T, B, I), or (B, T, I) with ``batch_first``, or (T, I) without a batch; or uint8 ids of the same shape
    less the last dimension, read as one-hot vectors of width I. ``hx``: h_0 and c_0, each (num_layers * directions, B,
    H), zeros if None. ``weights`` in torch.nn.LSTM's order: for each layer, for each direction, weight_ih (4H, I),
    weight_hh (4H, H), and with ``bias`` bias_ih (4H), bias_hh (4H); gates i, f, g, o.

    - ``resets``: bool, (T, B) or (B, T) as the input. A true value separates a step from the one before it, in both
      directions: no state and no gradient passes between them, and a forward direction starts from zero there.
    - ``lengths``: integers (B,). Steps past a sequence's length are not read: outputs and cells there are zero, and the
      final state is the one after its last step, as with packed sequences.
    - ``cells_dtype``, ``cell_units``: with ``return_cells`` and without a gradient, c_t in this floating-point dtype
      and at these units (U,) alone, different integers below directions * H, in their order.
    - ``recompute``: the backward computes the gates again, (T, B, 4H), which else the forward keeps for it.
    - ``backend``: "auto", "hopper", "triton", "cudnn" or "torch", see ``fastlstm.explain``.

    Under torch.autocast, input and weights are cast once, to its dtype. Returns the last layer's h_t (T, B,
    directions * H), ``(h_n, c_n)``, and with ``return_cells`` its c_t, both in the layout of the input. c_n and c_t are
    float32 whatever the dtype of the weights (float64 for float64). Raises ``ValueError`` or ``TypeError`` naming the
    argument, what came and what was expected.
    """
    call = describe(
        input,
        weights,
        num_layers=num_layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        resets=resets is not None,
        lengths=lengths is not None,
        cells=return_cells,
        recompute=recompute,
    )
    choice = choose(call, backend)
    if choice.fallback:
        warn_of_fallback(choice.backend, choice.reason)

    batched = input.dim() == (2 if call.ids else 3)
    if resets is not None and resets.shape != input.shape[: 2 if batched else 1]:
        raise ValueError(
            f"resets: expected shape {tuple(input.shape[: 2 if batched else 1])}, got {tuple(resets.shape)}"
        )
    cast = call.dtype != weights[0].dtype  # autocast
    if cast:
        weights = [weight.to(call.dtype) for weight in weights]
    x = input if call.ids or input.dtype == call.dtype else input.to(call.dtype)
    x = _time_major(x, batched, batch_first)
    resets = None if resets is None else _time_major(resets, batched, batch_first)
    T, B = call.steps, call.batch_size
    lengths = None if lengths is None else _check_lengths(lengths, T, B, batched, x.device)
    directions = 2 if bidirectional else 1
    layers = _stack(weights, bias, num_layers, directions)
    state = None if hx is None else _check_state(hx, len(layers), B, batched, weights[1])
    if cells_dtype is not None or cell_units is not None:
        trained = call.training or (torch.is_grad_enabled() and hx is not None and any(s.requires_grad for s in hx))
        width = directions * call.hidden_size
        cell_units = _check_extraction(cells_dtype, cell_units, return_cells, trained, width, x.device)

    cells: Tensor | None = None
    if choice.backend == "cudnn":
        with warnings.catch_warnings() if cast else contextlib.nullcontext():
            # Parameters can lie in one block, copies in another dtype cannot.
            if cast:
                warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
            output, h_n, c_n = _cudnn(
                x, state, weights, bias, num_layers, dropout if training else 0.0, training, bidirectional
            )
    else:
        run = _Run(resets, None if lengths is None else _Ends(lengths, T), recompute, choice.backend)
        # One direction's cells can leave the kernel as they are wanted, unless where they end is looked up in them.
        inside = not bidirectional and lengths is None
        finals: list[State] = []
        output = x
        for k in range(num_layers):
            kept = None
            if return_cells and k + 1 == num_layers:
                kept = _Kept(cells_dtype, cell_units) if inside else _Kept(None, None)
            sides = []
            for direction in range(directions):
                j = k * directions + direction
                h0, c0 = (None, None) if state is None else (state[0][j], state[1][j])
                h, cells_of_side, final = run.layer(layers[j], output, h0, c0, kept, reverse=direction == 1)
                sides.append((h, cells_of_side))
                finals.append(final)
            output = torch.cat([h for h, _ in sides], 2) if bidirectional else sides[0][0]
            if dropout and k + 1 < num_layers:
                output = F.dropout(output, dropout, training)
        if return_cells:
            every = [side for _, side in sides if side is not None]
            cells = torch.cat(every, 2) if bidirectional else every[0]
            if not inside:
                cells = cells if cell_units is None else cells.index_select(2, cell_units)
                cells = cells if cells_dtype is None else cells.to(cells_dtype)
        if len(finals) == 1:
            h_n, c_n = finals[0][0].unsqueeze(0), finals[0][1].unsqueeze(0)
        else:
            h_n, c_n = (torch.stack(states) for states in zip(*finals, strict=True))
    if not batched:
        h_n, c_n = h_n.squeeze(1), c_n.squeeze(1)
    output = _user_layout(output, batched, batch_first)
    if cells is None:
        return output, (h_n, c_n)
    return output, (h_n, c_n), _user_layout(cells, batched, batch_first)


def describe(
    input: Tensor,
    weights: Sequence[Tensor],
    *,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
    resets: bool,
    lengths: bool,
    cells: bool,
    recompute: bool,
) -> Call:
    """The call as ``choose`` sees it, ``input`` and ``weights`` as given to ``lstm``. Raises on a wrong ``input``."""
    weight_ih = weights[0]
    _check_input(input, weight_ih)
    ids = input.dtype == torch.uint8
    device, dtype = weight_ih.device, weight_ih.dtype
    device_type = device.type
    shape = input.shape
    steps, batch_size = shape[0], 1
    if len(shape) == (2 if ids else 3):
        batch_size = shape[1]
        if batch_first:
            steps, batch_size = batch_size, steps
    if dtype != torch.float64 and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    return Call(
        hidden_size=weights[1].shape[1],
        batch_size=batch_size,
        dtype=dtype,
        device=device_type,
        steps=steps,
        input_size=weight_ih.shape[1],
        num_layers=num_layers,
        bidirectional=bidirectional,
        ids=ids,
        resets=resets,
        lengths=lengths,
        cells=cells,
        recompute=recompute,
        compiling=torch.compiler.is_compiling(),
        training=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (input, *weights)),
        capability=capability_of(device) if device_type == "cuda" else None,
        device_index=device.index or 0,
    )


class _Kept(NamedTuple):
    """How every c_t is wanted: in which dtype and of which units (None: the kernel's own, all)."""

    dtype: torch.dtype | None
    units: Tensor | None


class _Ends(NamedTuple):
    """Where sequences end: ``lengths`` (B,) int64 in a batch of T steps."""

    lengths: Tensor
    steps: int

    def past(self) -> Tensor:
        """(T, B) bool: steps after a sequence's last."""
        return torch.arange(self.steps, device=self.lengths.device).unsqueeze(1) >= self.lengths

    def reversed(self, tensor: Tensor) -> Tensor:
        """``tensor`` (T, B, ...) with every sequence turned round within its length, the rest left in its place."""
        t = torch.arange(self.steps, device=self.lengths.device).unsqueeze(1)
        order = torch.where(t < self.lengths, self.lengths - 1 - t, t)
        return tensor.gather(0, order.view(*order.shape, *(1,) * (tensor.dim() - 2)).expand(tensor.shape))

    def last(self, states: Tensor, first: Tensor | None) -> Tensor:
        """(B, H): ``states`` (T, B, H) after each sequence's last step; ``first`` (B, H), or 0, where it has none."""
        at = (self.lengths - 1).clamp_min(0).view(1, -1, 1).expand(1, *states.shape[1:])
        return torch.where((self.lengths > 0).unsqueeze(1), states.gather(0, at)[0], 0 if first is None else first)


class _Run(NamedTuple):
    """What all layers of a call share."""

    resets: Tensor | None
    ends: _Ends | None
    recompute: bool
    backend: str

    def layer(
        self, layer: Recurrence, x: Tensor, h0: Tensor | None, c0: Tensor | None, kept: _Kept | None, *, reverse: bool
    ) -> tuple[Tensor, Tensor | None, State]:
        """h_t and, as ``kept``, c_t (T, B, H) of one direction, in the order of time, and its final state."""
        resets = self.resets
        if self.ends is not None and x.dim() == 3:
            # What is past the end must not matter, not even if it is NaN.
            x = x.masked_fill(self.ends.past().unsqueeze(2), 0)
        if reverse:
            x = self._reversed(x)
            if resets is not None:
                # Going back, a sequence is cut after the step before which the reset stands.
                after = torch.cat((resets[1:], torch.zeros_like(resets[:1])))
                resets = self._reversed(after)
                if self.ends is not None:
                    resets = torch.cat((torch.zeros_like(resets[:1]), resets[1:]))
        keep = kept is not None or self.ends is not None
        done = None
        if self.backend == "torch" and resets is None:
            done = onednn.lstm_layer(x, *layer, h0, c0, return_cells=keep)
        if done is not None:
            h, final, cells = done
            if kept is not None and cells is not None:
                cells = cells if kept.units is None else cells.index_select(2, kept.units)
                cells = cells if kept.dtype is None else cells.to(kept.dtype)
        else:
            weight_ih, weight_hh, bias_ih, bias_hh = layer
            h, final, cells = lstm_layer(
                layer_inputs(x, weight_ih, bias_ih, bias_hh, backend=self.backend),
                *(weight_hh, h0, c0),
                resets=resets,
                return_cells=keep,
                cells_dtype=None if kept is None else kept.dtype,
                units=None if kept is None else kept.units,
                recompute=self.recompute,
                backend=self.backend,
            )
        if self.ends is not None:
            assert cells is not None
            final = (self.ends.last(h, h0), self.ends.last(cells, c0))
            past = self.ends.past().unsqueeze(2)
            h, cells = h.masked_fill(past, 0), cells.masked_fill(past, 0)
        if kept is None:
            cells = None
        if reverse:
            h, cells = self._reversed(h), None if cells is None else self._reversed(cells)
        return h, cells, final

    def _reversed(self, tensor: Tensor) -> Tensor:
        return tensor.flip(0) if self.ends is None else self.ends.reversed(tensor)


def _cudnn(
    x: Tensor,
    state: State | None,
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.nn.LSTM's own kernel on a GPU: output, h_n and c_n of time-major ``x``."""
    if state is None:
        recurrences = num_layers * (2 if bidirectional else 1)
        h0 = c0 = x.new_zeros(recurrences, x.shape[1], weights[1].shape[1])
    else:
        h0, c0 = state[0].contiguous(), state[1].to(x.dtype).contiguous()
    # cuDNN's backward needs the training mode, whatever mode the module is in.
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, h0, c0, *weights))
    with settled(x):
        output, h_n, c_n = torch._VF.lstm(
            x,
            (h0, c0),
            tuple(weights),
            bias,
            num_layers,
            dropout,
            training or trained,
            bidirectional,
            False,
        )
    return output, h_n, c_n.to(cell_dtype(x.dtype))


def _check_input(input: Tensor, weight_ih: Tensor) -> None:
    """Raise on a wrong input, in torch.nn.LSTM's words where it has some."""
    if isinstance(input, PackedSequence):
        raise TypeError(
            "input: expected a tensor, got a PackedSequence; give the padded tensor and lengths=, or use torch.nn.LSTM"
        )
    if input.dtype == torch.uint8:
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTM: Expected ids to be 1D or 2D, got {input.dim()}D instead")
        return
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating-point dtype, or torch.uint8 for ids, got {input.dtype}")
    if input.dim() not in (2, 3):
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
    if input.dtype != weight_ih.dtype and not torch.is_autocast_enabled(input.device.type):
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight_ih.dtype}). "
            f"Convert input: input.to({weight_ih.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.shape[-1] != weight_ih.shape[1]:
        raise ValueError(
            f"input.size(-1) must be equal to input_size. Expected {weight_ih.shape[1]}, got {input.shape[-1]}"
        )


def _check_lengths(lengths: Tensor, T: int, B: int, batched: bool, device: torch.device) -> Tensor:
    """``lengths`` as int64 on ``device``. Values are looked at only on a CPU, where that is no wait."""
    if not batched:
        raise ValueError("lengths: expected None for an input without a batch")
    if lengths.shape != (B,):
        raise ValueError(f"lengths: expected shape ({B},), got {tuple(lengths.shape)}")
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected an integer dtype, got {lengths.dtype}")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > T:
            raise ValueError(f"lengths: expected values from 0 to T={T}, got {low if low < 0 else high}")
    return lengths.to(device, torch.int64)


def _stack(weights: Sequence[Tensor], bias: bool, num_layers: int, directions: int) -> list[Recurrence]:
    each = 4 if bias else 2
    if len(weights) != each * num_layers * directions:
        raise ValueError(f"weights: expected {each * num_layers * directions} tensors, got {len(weights)}")
    missing = () if bias else (None, None)
    return [(*weights[j : j + each], *missing) for j in range(0, len(weights), each)]


def _check_state(hx: State, recurrences: int, B: int, batched: bool, weight_hh: Tensor) -> State:
    """h_0 and c_0, each (recurrences, B, H), in the dtypes that the layers keep."""
    H = weight_hh.shape[1]
    wanted = (recurrences, B, H) if batched else (recurrences, H)
    h0, c0 = hx
    if h0.shape != wanted or c0.shape != wanted:
        if h0.dim() != len(wanted) or c0.dim() != len(wanted):
            kind = "batched" if batched else "unbatched"
            raise ValueError(
                f"For {kind} {len(wanted)}-D input, hx and cx should also be {len(wanted)}-D "
                f"but got ({h0.dim()}-D, {c0.dim()}-D) tensors"
            )
        name, state = ("hidden[0]", h0) if h0.shape != wanted else ("hidden[1]", c0)
        raise ValueError(f"Expected {name} size {wanted}, got {list(state.shape)}")
    if not batched:
        h0, c0 = h0.unsqueeze(1), c0.unsqueeze(1)
    h_dtype, c_dtype = weight_hh.dtype, cell_dtype(weight_hh.dtype)
    return h0 if h0.dtype == h_dtype else h0.to(h_dtype), c0 if c0.dtype == c_dtype else c0.to(c_dtype)


def _check_extraction(
    dtype: torch.dtype | None,
    units: Tensor | None,
    return_cells: bool,
    trained: bool,
    width: int,
    device: torch.device,
) -> Tensor | None:
    """``units`` as int64 on ``device``; on a GPU their values are looked at by an assertion there, without waiting."""
    if not return_cells:
        raise ValueError("cells_dtype, cell_units: expected None without return_cells=True")
    if trained:
        raise ValueError("cells_dtype, cell_units: expected None where a gradient is wanted; use torch.no_grad()")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"cells_dtype: expected a floating-point dtype, got {dtype}")
    if units is None:
        return None
    if units.dim() != 1 or units.numel() == 0:
        raise ValueError(f"cell_units: expected shape (U,) with U >= 1, got {tuple(units.shape)}")
    if units.is_floating_point() or units.dtype == torch.bool:
        raise TypeError(f"cell_units: expected an integer dtype, got {units.dtype}")
    if torch.compiler.is_compiling():
        return units.to(device, torch.int64)
    inside = (units >= 0).all() & (units < width).all()
    different = units.sort().values.diff().ne(0).all()
    message = f"cell_units: expected different units from 0 to {width - 1}"
    if units.is_cuda:
        torch._assert_async(inside & different, message)
    elif not (inside and different):
        raise ValueError(f"{message}, got {units.tolist()}")
    return units.to(device, torch.int64)


def _time_major(tensor: Tensor, batched: bool, batch_first: bool) -> Tensor:
    if not batched:
        return tensor.unsqueeze(1)
    return tensor.transpose(0, 1) if batch_first else tensor


def _user_layout(tensor: Tensor, batched: bool, batch_first: bool) -> Tensor:
    if not batched:
        return tensor.squeeze(1)
    return tensor.transpose(0, 1) if batch_first else tensor


__all__ = ["State", "describe", "lstm"]
