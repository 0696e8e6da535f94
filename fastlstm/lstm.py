"""``fastlstm.LSTM``: torch.nn.LSTM's parameters and call, with every cell state and resets on request."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlstm.ops import cell_dtype, lstm_layer

State = tuple[Tensor, Tensor]


class LSTM(nn.Module):
    """A stack of LSTM layers with torch.nn.LSTM's parameter names, gate order (i, f, g, o) and initialisation.

    Beside what torch.nn.LSTM does:

    - a ``uint8`` input (T, B) is read as ids: the same result as one-hot vectors of width ``input_size``, without
      building them;
    - ``resets`` (T, B) bool zeroes the state of a sequence before a step and cuts the gradient there;
    - ``return_cells=True`` returns every c_t of the last layer as a third value, with gradients through it;
    - c is kept, and returned, in float32 (float64 for float64 parameters).

    A state dict of a torch.nn.LSTM with the same arguments loads as it is, and the other way round.
    """

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout: expected a probability in [0, 1], got {dropout}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        gates = 4 * hidden_size
        for k in range(num_layers):
            width = input_size if k == 0 else hidden_size
            self._add(f"weight_ih_l{k}", (gates, width), device, dtype)
            self._add(f"weight_hh_l{k}", (gates, hidden_size), device, dtype)
            if bias:
                self._add(f"bias_ih_l{k}", (gates,), device, dtype)
                self._add(f"bias_hh_l{k}", (gates,), device, dtype)
        self.reset_parameters()

    def _add(
        self, name: str, shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn.LSTM does and in its order."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do: kept so that code written for torch.nn.LSTM runs."""

    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        resets: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[Tensor, State] | tuple[Tensor, State, Tensor]:
        """Run the stack.

        ``input`` (T, B, input_size), or (B, T, input_size) with ``batch_first``, or (T, input_size) without a batch;
        or uint8 ids of the same shape less the last dimension. ``hx``: h_0 and c_0, each (num_layers, B, H), zeros if
        None. ``resets``: bool, the shape of the ids.

        Returns ``output`` (the last layer's h_t), ``(h_n, c_n)``, and with ``return_cells`` the last layer's c_t in the
        layout of ``output``. Raises ``ValueError`` or ``TypeError`` naming the argument, what came and what was
        expected.
        """
        has_ids = input.dtype == torch.uint8
        time_dims = input.dim() if has_ids else input.dim() - 1
        if time_dims not in (1, 2):
            expected = "(T, B) or (T)" if has_ids else f"(T, B, {self.input_size}) or (T, {self.input_size})"
            raise ValueError(f"input: expected shape {expected}, got {tuple(input.shape)}")
        if not has_ids and input.shape[-1] != self.input_size:
            raise ValueError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        batched = time_dims == 2
        x = self._time_major(input, batched)
        resets = None if resets is None else self._time_major(resets, batched)
        h0, c0 = self._initial_state(hx, x.shape[1], batched)

        last_h, last_c = [], []
        cells = x
        for k in range(self.num_layers):
            ids = x if k == 0 and has_ids else None
            inputs = self._input_product(k, None if ids is not None else x)
            x, cells = lstm_layer(inputs, self._weight("weight_hh", k), h0[k], c0[k], ids=ids, resets=resets)
            last_h.append(x[-1])
            last_c.append(cells[-1])
            if self.dropout and k + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        h_n, c_n = torch.stack(last_h), torch.stack(last_c)
        if not batched:
            h_n, c_n = h_n.squeeze(1), c_n.squeeze(1)
        output = self._user_layout(x, batched)
        if return_cells:
            return output, (h_n, c_n), self._user_layout(cells, batched)
        return output, (h_n, c_n)

    def _weight(self, name: str, layer: int) -> Tensor:
        weight: Tensor = getattr(self, f"{name}_l{layer}")
        return weight

    def _input_product(self, layer: int, x: Tensor | None) -> Tensor:
        """x W_ih^T + b_ih + b_hh (T, B, 4H); for x None its table over the ids (input_size, 4H)."""
        weight = self._weight("weight_ih", layer)
        bias = self._weight("bias_ih", layer) + self._weight("bias_hh", layer) if self.bias else None
        if x is not None:
            return F.linear(x, weight, bias)
        table = weight.t()
        return table.contiguous() if bias is None else table + bias

    def _time_major(self, tensor: Tensor, batched: bool) -> Tensor:
        if not batched:
            return tensor.unsqueeze(1)
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def _user_layout(self, tensor: Tensor, batched: bool) -> Tensor:
        if not batched:
            return tensor.squeeze(1)
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def _initial_state(self, hx: State | None, B: int, batched: bool) -> State:
        weight = self._weight("weight_hh", 0)
        shape = (self.num_layers, B, self.hidden_size)
        if hx is None:
            h0 = weight.new_zeros(shape)
            return h0, h0.to(cell_dtype(weight.dtype))
        states = []
        for name, state, dtype in zip(
            ("hidden[0]", "hidden[1]"), hx, (weight.dtype, cell_dtype(weight.dtype)), strict=True
        ):
            batch_state = state if batched else state.unsqueeze(1)
            if batch_state.shape != shape:
                wanted = shape if batched else (self.num_layers, self.hidden_size)
                raise ValueError(f"Expected {name} size {wanted}, got {tuple(state.shape)}")
            states.append(batch_state.to(dtype))
        return states[0], states[1]

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        shown += [
            f"{name}={getattr(self, name)}" for name, default in defaults.items() if getattr(self, name) != default
        ]
        return ", ".join(shown)
