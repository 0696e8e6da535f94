"""The launch before the Hopper forward: h0, flags and the table of byte inputs."""

from __future__ import annotations

import pytest
import torch

from fastlstm_kernels.hopper.beginning import BLOCK, begin
from recurrences import DEVICE


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize(("B", "H", "V", "flags"), [(1, 8, 1, 1), (5, 24, 65, 64), (70, 64, 256, BLOCK + 1)])
def test_all_is_filled_and_nothing_else(B: int, H: int, V: int, flags: int, stateful: bool, biased: bool) -> None:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(DEVICE, torch.float16)

    weight, h0 = normal(4 * H, V), normal(B, H)
    biases = (normal(4 * H), normal(4 * H)) if biased else (None, None)
    h = torch.full((3, B, H), torch.nan, dtype=torch.float16, device=DEVICE)
    table = torch.full((V, H, 4), torch.nan, dtype=torch.float16, device=DEVICE)
    counts = torch.full((flags,), 7, dtype=torch.int32, device=DEVICE)
    begin(h, h0 if stateful else None, counts, weight, *biases, table)

    sums = weight.float() + sum(bias.float().unsqueeze(1) for bias in biases if bias is not None)
    assert torch.equal(table, sums.half().view(4, H, V).permute(2, 1, 0))
    assert torch.equal(h[0], h0 if stateful else torch.zeros_like(h0))
    assert h[1:].isnan().all()
    assert not counts.any()


def test_without_a_table_only_the_state_is_filled() -> None:
    h = torch.full((2, 3, 8), torch.nan, dtype=torch.float16, device=DEVICE)
    counts = torch.ones(5, dtype=torch.int32, device=DEVICE)
    begin(h, None, counts)
    assert not h[0].any()
    assert not counts.any()
    assert h[1].isnan().all()
