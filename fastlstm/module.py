"""``fastlstm.LSTM``: torch.nn.LSTM's parameters and call, with every cell state, resets and lengths on request."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.backends.cudnn import rnn as cudnn_rnn

from fastlstm.backends import FORCED, Call, Choice, choose
from fastlstm.functional import State, describe, lstm

CUDNN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LSTM(nn.Module):
    """A stack of LSTM layers with torch.nn.LSTM's parameter names, gate order (i, f, g, o) and initialisation.

    Beside what torch.nn.LSTM does:

    - a ``uint8`` input (T, B) is read as ids: the same result as one-hot vectors of width ``input_size``, without
      building them;
    - ``resets`` (T, B) bool zeroes the state of a sequence before a step and cuts the gradient there;
    - ``lengths`` (B,) stands in for packed sequences;
    - ``return_cells=True`` returns every c_t of the last layer as a third value, with gradients through it; without
      gradients in any ``cells_dtype`` and of chosen ``cell_units`` alone;
    - c is kept, and returned, in float32 (float64 for float64 parameters);
    - ``recompute=True`` spares the memory of the gates between forward and backward;
    - ``backend`` forces a kernel ("hopper", "triton", "cudnn", "torch"); ``fastlstm.explain`` says which runs, and why.

    A state dict of a torch.nn.LSTM with the same arguments loads as it is, and the other way round. There is no
    ``proj_size``, and no second derivative.
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
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
        backend: str = "auto",
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
        if proj_size != 0:
            raise ValueError(f"proj_size: expected 0, got {proj_size}; torch.nn.LSTM has projections")
        if backend not in ("auto", *FORCED):
            raise ValueError(f"backend: expected 'auto', 'hopper', 'triton', 'cudnn' or 'torch', got {backend!r}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.proj_size = 0
        self.recompute = recompute
        self.backend = backend
        gates = 4 * hidden_size
        names = []
        for k in range(num_layers):
            width = input_size if k == 0 else hidden_size * (2 if bidirectional else 1)
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, width), "weight_hh": (gates, hidden_size)}
            if bias:
                shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
            for side in ("", "_reverse") if bidirectional else ("",):
                for name, shape in shapes.items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    names.append(f"{name}_l{k}{side}")
                    self.register_parameter(names[-1], parameter)
        self._names = tuple(names)
        self.flatten_parameters()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), as torch.nn.LSTM does and in its order."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """On a GPU, move the parameters' values into one block, which cuDNN would else copy them into on every call.

        Done at construction and when the module moves or changes its dtype, as by torch.nn.LSTM, and in bfloat16 too.
        Nothing happens elsewhere, where parameters differ in device or dtype or share memory, or where they are 2^31
        numbers or more, which torch's routine cannot count.
        """
        weights = self.weights()
        first = weights[0]
        if first.device.type != "cuda" or first.dtype not in CUDNN_DTYPES or not torch._use_cudnn_rnn_flatten_weight():
            return
        if any((weight.device, weight.dtype) != (first.device, first.dtype) for weight in weights):
            return
        if any(type(weight) is not nn.Parameter for weight in weights):
            return
        if len({weight.data_ptr() for weight in weights}) < len(weights):
            return
        if sum(weight.numel() for weight in weights) >= 2**31:
            return
        with torch.cuda.device(first.device), torch.no_grad():
            torch._cudnn_rnn_flatten_weight(
                list(weights),
                4 if self.bias else 2,
                self.input_size,
                cudnn_rnn.get_cudnn_mode("LSTM"),  # type: ignore[no-untyped-call]
                self.hidden_size,
                self.proj_size,
                self.num_layers,
                self.batch_first,
                self.bidirectional,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LSTM:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.flatten_parameters()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.flatten_parameters()  # a copy's parameters have memory of their own

    def weights(self) -> tuple[Tensor, ...]:
        """The parameters in the order of ``fastlstm.lstm``, which is torch.nn.LSTM's."""
        own: Mapping[str, Any] = self._parameters  # a seventh of getattr's time; what is parametrized is not there
        return tuple([own[name] if name in own else getattr(self, name) for name in self._names])

    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
        return_cells: bool = False,
        cells_dtype: torch.dtype | None = None,
        cell_units: Tensor | None = None,
    ) -> tuple[Tensor, State] | tuple[Tensor, State, Tensor]:
        """Run the stack: ``output, (h_n, c_n)`` as torch.nn.LSTM, and the cells with ``return_cells``.

        Shapes, dtypes and errors are those of ``fastlstm.lstm``.
        """
        return lstm(
            input,
            hx,
            self.weights(),
            bias=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            resets=resets,
            lengths=lengths,
            return_cells=return_cells,
            cells_dtype=cells_dtype,
            cell_units=cell_units,
            recompute=self.recompute,
            backend=self.backend,
        )

    def choice(
        self,
        input: Tensor,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
        return_cells: bool = False,
    ) -> Choice:
        """The kernel that ``forward`` would run, see ``fastlstm.explain``."""
        call = describe(
            input,
            self.weights(),
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            resets=resets is not None,
            lengths=lengths is not None,
            cells=return_cells,
            recompute=self.recompute,
        )
        return choose(call, self.backend)

    def extra_repr(self) -> str:
        shown = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "recompute": False,
            "backend": "auto",
        }
        shown += [
            f"{name}={getattr(self, name)}" for name, default in defaults.items() if getattr(self, name) != default
        ]
        return ", ".join(shown)


@overload
def explain(
    lstm: LSTM,
    input: Tensor,
    *,
    resets: Tensor | None = None,
    lengths: Tensor | None = None,
    return_cells: bool = False,
) -> Choice: ...
@overload
def explain(
    *, hidden_size: int, batch_size: int, dtype: torch.dtype, backend: str = "auto", **asked: Any
) -> Choice: ...
def explain(lstm: LSTM | None = None, input: Tensor | None = None, **asked: Any) -> Choice:
    """Which kernel runs a call, and why; nothing is computed.

    Either an ``LSTM`` and what it would be called with: ``explain(lstm, x, return_cells=True)``. Or sizes:
    ``explain(hidden_size=2048, batch_size=128, dtype=torch.bfloat16)``, and as wanted the other fields of
    ``fastlstm.backends.Call`` (``device="cuda"``, ``input_size``, ``ids``, ``resets``, ``cells`` ...) and ``backend``.

    ``print`` the answer, or read its ``backend`` and ``reason``. A forced kernel that cannot run the call raises
    ``ValueError`` saying why.
    """
    if lstm is None:
        backend = asked.pop("backend", "auto")
        return choose(Call(**asked), backend)
    if input is None:
        raise TypeError("input: expected the tensor that the LSTM would be called with, got None")
    return lstm.choice(input, **asked)


__all__ = ["LSTM", "State", "explain"]
