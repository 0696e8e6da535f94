"""Reductions over lanes: against loops over single bytes, in plain PyTorch and in the Triton kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastlstm_kernels import reductions
from fastlstm_kernels.reductions import LEAST, Moments, accumulate_, add_segments_, keys_of, values_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
T, B, U, P, K = 23, 5, 131, 9, 3
LOW, WIDTH, BINS = -1.0, 0.5, 4
ROUNDING = 2 * T * B * 40 * np.finfo(np.float64).eps  # of so many sums of squares below 40


@pytest.fixture(params=["kernel", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "torch":
        monkeypatch.setattr(reductions, "_interpreted", lambda: False)
        return torch.device("cpu")
    return DEVICE


def window(seed: int, lanes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells, rows, pieces and tags: pieces follow each other in a lane, some bytes do not count."""
    draw = torch.Generator().manual_seed(seed)
    cells = torch.randn(T, lanes, U, generator=draw).mul(1.5).to(dtype)
    cells[2] = cells[1]  # equal states: the first counts
    piece = torch.stack([torch.arange(T) * 2 // T + 2 * lane for lane in range(lanes)], 1).clamp(max=P - 1).int()
    row = (torch.arange(T).unsqueeze(1) + T * torch.arange(lanes)).int() + 1000 * seed
    row[torch.rand(T, lanes, generator=draw) < 0.3] = -1
    tag = torch.randint(0, K + 2, (T, lanes), generator=draw, dtype=torch.uint8)
    return cells, row, piece, tag


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tags", [0, K])
def test_moments_are_those_of_single_bytes(way: torch.device, dtype: torch.dtype, tags: int) -> None:
    moments = Moments.zero(B, U, tags=tags, low=LOW, width=WIDTH, bins=BINS, device=way)
    best = torch.full((P, U), LEAST, device=way)
    label = torch.tensor([0, 1, math.nan, 0.5, -2, math.nan, 1, 0, 3], device=way)
    expected = {
        "x": np.zeros(U), "xx": np.zeros(U), "lx": np.zeros(U), "lxx": np.zeros(U), "lxy": np.zeros(U)
    }  # fmt: skip
    low, high = np.full(U, np.inf), np.full(U, -np.inf)
    histogram = np.zeros((BINS + 2, U), np.int64)
    tagged = np.zeros((tags, U))
    top: dict[int, list[tuple[float, int]]] = {}
    for seed, lanes in ((1, B), (2, 3)):  # two windows, the second with fewer lanes
        cells, row, piece, tag = window(seed, lanes, dtype)
        accumulate_(
            moments, best, *(part.to(way) for part in (cells, row, piece)), label, tag.to(way) if tags else None
        )
        for t in range(T):
            for b in range(lanes):
                if row[t, b] < 0:
                    continue
                x, y = cells[t, b].double().numpy(), float(label[piece[t, b]])
                expected["x"] += x
                expected["xx"] += x * x
                low, high = np.minimum(low, x), np.maximum(high, x)
                if not math.isnan(y):
                    expected["lx"] += x
                    expected["lxx"] += x * x
                    expected["lxy"] += x * y
                if tag[t, b] < tags:
                    tagged[tag[t, b]] += x
                histogram[np.clip(np.floor((x - LOW) / WIDTH), -1, BINS).astype(int) + 1, np.arange(U)] += 1
                for unit in (0, 17, U - 1):
                    top.setdefault(int(piece[t, b]) * U + unit, []).append((float(x[unit]), -int(row[t, b])))
    found = (*moments.sums.sum(1), *moments.labelled.sum(1))
    for name, sums in zip(expected, found, strict=True):
        assert np.abs(sums.cpu().numpy() - expected[name]).max() <= ROUNDING, name
    assert np.abs(moments.tagged.sum(1).cpu().numpy() - tagged).max(initial=0) <= ROUNDING
    np.testing.assert_array_equal(moments.extremes[0].amin(0).cpu().numpy(), low)
    np.testing.assert_array_equal(moments.extremes[1].amax(0).cpu().numpy(), high)
    np.testing.assert_array_equal(moments.histogram.cpu().numpy(), histogram)
    assert histogram[0].sum() > 0 < histogram[-1].sum()
    values, rows = (part.cpu() for part in values_of(best))
    for place, states in top.items():
        p, unit = divmod(place, U)
        assert (float(values[p, unit]), -int(rows[p, unit])) == max(states)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
def test_nan_and_infinity_are_seen(way: torch.device) -> None:
    moments = Moments.zero(1, 3, tags=0, low=LOW, width=WIDTH, bins=BINS, device=way)
    best = torch.full((1, 3), LEAST, device=way)
    cells = torch.tensor([[[1.0, math.nan, math.inf]], [[1.0, 0.0, -math.inf]]], device=way)
    row = torch.tensor([[0], [1]], dtype=torch.int32, device=way)
    accumulate_(moments, best, cells, row, torch.zeros_like(row), torch.zeros(1, device=way), None)
    assert moments.sums[0, 0].isfinite().tolist() == [True, False, False]
    assert moments.histogram.sum(0).tolist() == [2, 2, 2]


def test_keys_order_values_and_of_equal_ones_the_first() -> None:
    values = torch.tensor([[-math.inf], [-2.5], [-1e-30], [0.0], [1e-30], [7.0], [math.inf]])
    row = torch.arange(7)
    keys = keys_of(values, row).flatten()
    assert (keys.diff() > 0).all()
    assert keys.min() > LEAST
    back, rows = values_of(keys)
    assert torch.equal(back.unsqueeze(1), values)
    assert torch.equal(rows, row)
    early, late = keys_of(torch.ones(2, 1), torch.tensor([3, 4])).flatten()
    assert early > late


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_segments_add_up(way: torch.device, dtype: torch.dtype) -> None:
    sums = torch.zeros(2 * B * 2, U, device=way)
    expected = torch.zeros(2 * B * 2, U, dtype=torch.float64)
    for seed in (1, 2):
        cells, row, _, _ = window(seed, B, dtype)
        # Runs of three steps that go on in the next window, and steps of none.
        segment = torch.stack([torch.arange(T) // 12 + 2 * lane for lane in range(B)], 1).int()
        segment[(row < 0) & (torch.arange(T).unsqueeze(1) > 20)] = -1
        add_segments_(sums, cells.to(way), segment.to(way))
        for t in range(T):
            for b in range(B):
                if segment[t, b] >= 0:
                    expected[segment[t, b]] += cells[t, b].double()
    bound = 2 * T * torch.finfo(torch.float32).eps
    assert ((sums.cpu() - expected).abs() <= bound * 8).all()
    assert expected.std() > 1


def test_segments_of_one_value_are_exact(way: torch.device) -> None:
    run: Callable[[int], Tensor] = lambda value: torch.full((4, 1, 2), float(value), device=way)  # noqa: E731
    sums = torch.zeros(2, 2, device=way)
    segment = torch.tensor([[0], [0], [-1], [1]], dtype=torch.int32, device=way)
    add_segments_(sums, run(2), segment)
    add_segments_(sums, run(3), segment)
    assert sums.tolist() == [[10, 10], [5, 5]]
