"""``ByteLM``: a language model over bytes: one LSTM layer that reads bytes, a linear head over the next byte."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlstm.module import LSTM, State

BYTES = 256
Initialisation = Literal["glorot", "uniform"]


class ByteLM(nn.Module):
    """Predicts byte t + 1 from bytes 0..t.

    The input is the byte itself (one-hot, no embedding), as in Radford et al. 2017 and Carvalho 2018. ``init`` is
    "glorot" (every gate's matrix over its input and recurrent rows together, biases too: Carvalho's TensorFlow
    default) or "uniform" (torch.nn.LSTM's). ``forget_bias`` is added to the forget gate's bias.
    """

    def __init__(
        self, hidden_size: int, *, init: Initialisation = "glorot", forget_bias: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU
            torch.manual_seed(seed)
            self.lstm = LSTM(BYTES, hidden_size)
            self.head = nn.Linear(hidden_size, BYTES)
            self._initialise(init, forget_bias)

    @torch.no_grad()
    def _initialise(self, init: Initialisation, forget_bias: float) -> None:
        lstm, H = self.lstm, self.hidden_size
        if init == "glorot":
            gate_bound = math.sqrt(6 / (BYTES + H + H))
            nn.init.uniform_(lstm.weight_ih_l0, -gate_bound, gate_bound)
            nn.init.uniform_(lstm.weight_hh_l0, -gate_bound, gate_bound)
            nn.init.uniform_(lstm.bias_ih_l0, -math.sqrt(6 / (H + H)), math.sqrt(6 / (H + H)))
            head_bound = math.sqrt(6 / (H + BYTES))
            nn.init.uniform_(self.head.weight, -head_bound, head_bound)
            nn.init.uniform_(self.head.bias, -math.sqrt(6 / (2 * BYTES)), math.sqrt(6 / (2 * BYTES)))
        elif init != "uniform":
            raise ValueError(f"init: expected 'glorot' or 'uniform', got {init!r}")
        lstm.bias_ih_l0[H : 2 * H] += forget_bias
        # nn.LSTM's second bias adds nothing; trained, it would double the step of the first.
        lstm.bias_hh_l0.zero_().requires_grad_(False)

    def forward(self, ids: Tensor, state: State | None = None, resets: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits (T, B, 256) of the byte after each of ``ids`` (T, B) uint8, and the final state ((1, B, H) twice).

        ``state``: as returned, zeros if None; ``resets`` (T, B) bool zeroes the state before a byte is read.
        """
        h, state = self.lstm(ids, state, resets=resets)
        return self.head(h), state

    @torch.no_grad()
    def cells(
        self,
        ids: Tensor,
        state: State | None = None,
        resets: Tensor | None = None,
        *,
        units: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, State]:
        """Every cell state c_t (T, B, H) after reading byte t of ``ids`` (T, B) uint8, and the final state.

        ``units`` (U,): c_t of these cells alone, (T, B, U). ``dtype``: of c_t, float32 if None.
        """
        _, state, cells = self.lstm(ids, state, resets=resets, return_cells=True, cell_units=units, cells_dtype=dtype)
        return cells, state


def next_byte_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats and accuracy of ``logits`` (T, B, 256) for ``targets`` (T, B) uint8."""
    flat, wanted = logits.flatten(0, 1), targets.flatten().long()
    loss = F.cross_entropy(flat.float(), wanted)
    with torch.no_grad():
        accuracy = (flat.argmax(1) == wanted).float().mean()
    return loss, accuracy
