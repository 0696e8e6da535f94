"""A small byte model learns no worse with our kernels than with torch.nn.LSTM, and ends at the same loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastlstm import LSTM
from fastlstm.corpus.grammar import generate

STEPS, B, T, H = 1000, 64, 64, 256
NOISE_RUNS = 3


def windows() -> Tensor:
    """(steps, T + 1, B) uint8 of grammar text: B contiguous streams, cut in windows."""
    text = np.frombuffer(generate(0, 0, 1 + STEPS * B * T // 140).text, dtype=np.uint8)[: STEPS * B * T + B]
    streams = torch.from_numpy(text.reshape(B, -1).copy())
    return torch.stack([streams[:, step * T : step * T + T + 1].t() for step in range(STEPS)])


def losses(lstm: nn.Module, by_id: bool, dtype: torch.dtype, data: Tensor, jitter: float) -> Tensor:
    """Mean loss (nats) of each tenth of the training; ``jitter`` scales the weights: a run-to-run difference."""
    torch.manual_seed(0)
    head = nn.Linear(H, 256, device="cuda")
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.uniform_(-(H**-0.5), H**-0.5).mul_(1 + jitter)
    parameters = [*lstm.parameters(), *head.parameters()]
    adam = torch.optim.Adam(parameters, lr=2e-3, fused=True)
    state, every = None, torch.zeros(STEPS, device="cuda")
    for step in range(STEPS):
        ids, targets = data[step, :-1], data[step, 1:]
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            x = ids if by_id else nn.functional.one_hot(ids.long(), 256).float()
            h, state = lstm(x, state)
            loss = nn.functional.cross_entropy(head(h).flatten(0, 1).float(), targets.flatten().long())
        state = tuple(part.detach() for part in state)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        every[step] = loss.detach()
    return every.view(10, -1).mean(1).cpu()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_curve_is_no_worse_and_ends_the_same(dtype: torch.dtype) -> None:
    data = windows().cuda()
    theirs = torch.stack(
        [losses(nn.LSTM(256, H, device="cuda"), False, dtype, data, run * 1e-6) for run in range(NOISE_RUNS)]
    )
    ours = losses(LSTM(256, H, device="cuda", backend="triton"), True, dtype, data, 0.0)
    low, high = theirs.min(0).values, theirs.max(0).values
    # The spread of three runs understates the noise of a tenth; the largest of the ten spreads stands for it.
    noise = (high - low).max()
    assert theirs[0, -1] < 0.5 * theirs[0, 0], "nn.LSTM learned too little to compare with"
    assert bool((ours <= high + 2 * noise).all()), f"{ours=} {theirs=}"
    # From below only the end is held: in bf16 ours was up to 0.09 nats lower on the way (H200; the cause is not known).
    assert ours[-1] >= low[-1] - 2 * noise, f"{ours=} {theirs=}"
