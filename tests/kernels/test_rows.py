"""Rows into blocks: against an assignment of each row, in plain PyTorch and in the Triton kernel."""

from __future__ import annotations

import math

import pytest
import torch

from fastlstm_kernels.rows import put_rows_

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCKS, BLOCK_ROWS = 3, 32
LARGEST = torch.finfo(torch.float16).max


@pytest.fixture(params=["kernel", "torch"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "torch":
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        return torch.device("cpu")
    return DEVICE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("units", "columns", "block_units"), [(16, 1, 16), (7, 1, 7), (512, 2, 256), (301, 2, 151)])
@pytest.mark.parametrize("every", [True, False])
def test_each_row_is_at_its_place(
    device: torch.device, dtype: torch.dtype, units: int, columns: int, block_units: int, every: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    cells = torch.randn(50, units, generator=draw).to(dtype)
    where = torch.randperm(50, generator=draw)[:37]
    count = 50 if every else 37
    row = torch.randperm(BLOCKS * BLOCK_ROWS, generator=draw)[:count]
    expected = torch.full((BLOCKS * BLOCK_ROWS, columns * block_units), -1.0, dtype=dtype)
    expected[row, :units] = cells if every else cells[where]
    expected[row, units:] = math.nan
    blocks = torch.full((BLOCKS, columns, BLOCK_ROWS, block_units), -1.0, dtype=dtype, device=device)
    unfit = torch.zeros(1, dtype=torch.int32, device=device)
    put_rows_(blocks, unfit, cells.to(device), None if every else where.to(device), row.to(device), LARGEST)
    found = blocks.transpose(1, 2).reshape(expected.shape).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert unfit.item() == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 65505.0 + 15, -70000.0])
def test_a_state_that_does_not_fit_is_told(device: torch.device, value: float) -> None:
    blocks = torch.zeros(1, 1, BLOCK_ROWS, 4, device=device)
    unfit = torch.zeros(1, dtype=torch.int32, device=device)
    cells = torch.tensor([[1.0, 2.0, 3.0, LARGEST], [4.0, 5.0, value, -LARGEST]], device=device)
    only_first = torch.tensor([0], device=device)
    put_rows_(blocks, unfit, cells, only_first, only_first, LARGEST)
    assert unfit.item() == 0
    put_rows_(blocks, unfit, cells, None, torch.tensor([3, 4], device=device), LARGEST)
    assert unfit.item() == 1


def test_no_rows(device: torch.device) -> None:
    blocks = torch.zeros(1, 1, BLOCK_ROWS, 4, device=device)
    unfit = torch.zeros(1, dtype=torch.int32, device=device)
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    put_rows_(blocks, unfit, torch.ones(2, 4, device=device), nothing, nothing, LARGEST)
    assert not blocks.any()
