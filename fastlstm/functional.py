"""A stack of LSTM layers as a function of its weights; ``fastlstm.LSTM`` calls it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fastlstm import onednn
from fastlstm.backends import Call, choose, warn_of_fallback
from fastlstm.ops import cell_dtype, lstm_layer
from fastlstm_kernels import eager

State = tuple[Tensor, Tensor]


class Recurrence(NamedTuple):
    """Weights of one layer and direction."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None


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
    - ``recompute``: the backward computes the gates again, (T, B, 4H), which else the forward keeps for it.
    - ``backend``: "auto", "triton", "cudnn" or "torch", see ``fastlstm.explain``.

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
    if choice.fallback and not torch.compiler.is_compiling():
        warn_of_fallback(choice)

    batched = input.dim() == (2 if call.ids else 3)
    if resets is not None and resets.shape != input.shape[: 2 if batched else 1]:
        raise ValueError(
            f"resets: expected shape {tuple(input.shape[: 2 if batched else 1])}, got {tuple(resets.shape)}"
        )
    weights = tuple(weight.to(call.dtype) for weight in weights)
    x = _time_major(input if call.ids else input.to(call.dtype), batched, batch_first)
    resets = None if resets is None else _time_major(resets, batched, batch_first)
    T, B = x.shape[:2]
    lengths = None if lengths is None else _check_lengths(lengths, T, B, batched, x.device)
    directions = 2 if bidirectional else 1
    layers = _stack(weights, bias, num_layers, directions)
    h0, c0 = _initial_state(hx, len(layers), B, batched, weights[1])

    cells: Tensor | None = None
    if choice.backend == "cudnn":
        output, h_n, c_n = _cudnn(
            x, h0, c0, weights, bias, num_layers, dropout if training else 0.0, training, bidirectional
        )
    else:
        run = _Run(resets, None if lengths is None else _Ends(lengths, T), return_cells, recompute, choice.backend)
        finals: list[State] = []
        output = x
        for k in range(num_layers):
            sides = []
            for direction in range(directions):
                j = k * directions + direction
                h, cells_of_side, state = run.layer(layers[j], output, h0[j], c0[j], reverse=direction == 1)
                sides.append((h, cells_of_side))
                finals.append(state)
            output = torch.cat([h for h, _ in sides], 2) if bidirectional else sides[0][0]
            if dropout and k + 1 < num_layers:
                output = F.dropout(output, dropout, training)
        if return_cells:
            kept = [side for _, side in sides if side is not None]
            cells = torch.cat(kept, 2) if bidirectional else kept[0]
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
    _check_input(input, weights[0])
    ids = input.dtype == torch.uint8
    batched = input.dim() == (2 if ids else 3)
    device, dtype = weights[0].device, weights[0].dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return Call(
        hidden_size=weights[1].shape[1],
        batch_size=input.shape[0 if batch_first else 1] if batched else 1,
        dtype=dtype,
        device=device.type,
        input_size=weights[0].shape[1],
        num_layers=num_layers,
        bidirectional=bidirectional,
        ids=ids,
        resets=resets,
        lengths=lengths,
        cells=cells,
        recompute=recompute,
        compiling=torch.compiler.is_compiling(),
        training=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (input, *weights)),
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
    )


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

    def last(self, states: Tensor, first: Tensor) -> Tensor:
        """(B, H): ``states`` (T, B, H) after each sequence's last step; ``first`` (B, H) where it has none."""
        at = (self.lengths - 1).clamp_min(0).view(1, -1, 1).expand(1, *states.shape[1:])
        return torch.where((self.lengths > 0).unsqueeze(1), states.gather(0, at)[0], first)


class _Run(NamedTuple):
    """What all layers of a call share."""

    resets: Tensor | None
    ends: _Ends | None
    return_cells: bool
    recompute: bool
    backend: str

    def layer(
        self, layer: Recurrence, x: Tensor, h0: Tensor, c0: Tensor, *, reverse: bool
    ) -> tuple[Tensor, Tensor | None, State]:
        """h_t and c_t (T, B, H) of one direction, in the order of time, and its final state."""
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
        keep = self.return_cells or self.ends is not None
        if self.backend == "torch" and resets is None and onednn.serves(x, *layer, h0, c0):
            h, c_n, cells = onednn.lstm_layer(x, *layer, h0, c0, return_cells=keep)
        else:
            ids = x if x.dim() == 2 else None
            h, c_n, cells = lstm_layer(
                *(_input_product(layer, None if ids is not None else x), layer.weight_hh, h0, c0),
                ids=ids,
                resets=resets,
                return_cells=keep,
                recompute=self.recompute,
                backend=self.backend,
            )
        final = (h[-1], c_n)
        if self.ends is not None:
            assert cells is not None
            final = (self.ends.last(h, h0), self.ends.last(cells, c0))
            past = self.ends.past().unsqueeze(2)
            h, cells = h.masked_fill(past, 0), cells.masked_fill(past, 0)
        if not self.return_cells:
            cells = None
        if reverse:
            h, cells = self._reversed(h), None if cells is None else self._reversed(cells)
        return h, cells, final

    def _reversed(self, tensor: Tensor) -> Tensor:
        return tensor.flip(0) if self.ends is None else self.ends.reversed(tensor)


def _cudnn(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """torch.nn.LSTM's own kernel on a GPU: output, h_n and c_n of time-major ``x``."""
    # cuDNN's backward needs the training mode, whatever mode the module is in.
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, h0, c0, *weights))
    with warnings.catch_warnings(), torch.autocast(x.device.type, enabled=False):
        # Packing the weights at every call is a copy of them; packing them for good would make parameters share memory.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        output, h_n, c_n = torch._VF.lstm(
            x,
            (h0.contiguous(), c0.to(h0.dtype).contiguous()),
            tuple(weights),
            bias,
            num_layers,
            dropout,
            training or trained,
            bidirectional,
            False,
        )
    return output, h_n, c_n.to(c0.dtype)


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
    groups = [weights[j : j + each] for j in range(0, len(weights), each)]
    return [Recurrence(group[0], group[1], group[2] + group[3] if bias else None) for group in groups]


def _input_product(layer: Recurrence, x: Tensor | None) -> Tensor:
    """x W_ih^T + b_ih + b_hh (T, B, 4H); for x None its table over the ids (I, 4H)."""
    weight, bias = layer.weight_ih, layer.bias
    if x is None:
        table = weight.t()
        return table.contiguous() if bias is None else table + bias
    trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if trained or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return eager.linear(x, weight, bias)


def _initial_state(hx: State | None, recurrences: int, B: int, batched: bool, weight_hh: Tensor) -> State:
    H = weight_hh.shape[1]
    shape = (recurrences, B, H)
    dtypes = (weight_hh.dtype, cell_dtype(weight_hh.dtype))
    if hx is None:
        h0, c0 = (weight_hh.new_zeros(shape, dtype=dtype) for dtype in dtypes)
        return h0, c0
    dims = 3 if batched else 2
    if hx[0].dim() != dims or hx[1].dim() != dims:
        kind = "batched 3-D" if batched else "unbatched 2-D"
        raise ValueError(
            f"For {kind} input, hx and cx should also be {dims}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    wanted = shape if batched else (recurrences, H)
    for name, state in zip(("hidden[0]", "hidden[1]"), hx, strict=True):
        if state.shape != wanted:
            raise ValueError(f"Expected {name} size {wanted}, got {list(state.shape)}")
    h0, c0 = ((state if batched else state.unsqueeze(1)).to(dtype) for state, dtype in zip(hx, dtypes, strict=True))
    return h0, c0


def _time_major(tensor: Tensor, batched: bool, batch_first: bool) -> Tensor:
    if not batched:
        return tensor.unsqueeze(1)
    return tensor.transpose(0, 1) if batch_first else tensor


def _user_layout(tensor: Tensor, batched: bool, batch_first: bool) -> Tensor:
    if not batched:
        return tensor.squeeze(1)
    return tensor.transpose(0, 1) if batch_first else tensor


__all__ = ["State", "describe", "lstm"]
