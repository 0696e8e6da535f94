"""The Triton forward recurrence against float64: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastlstm_kernels.forward import lstm_forward
from fastlstm_kernels.launch import Tile
from recurrences import DEVICE, DTYPES, Case, assert_as_good_as_naive, poisoned_memory, run_forward

SMALL = Tile(16, 16, 16, 2, 4)
# T, B, H, tile: whole tiles, odd everything, less than a tile, one step, more tiles than one.
SHAPES = [
    (3, 16, 32, SMALL),
    (4, 19, 37, SMALL),
    (2, 1, 20, SMALL),
    (2, 40, 1, SMALL),
    (1, 5, 20, SMALL),
    (3, 33, 48, Tile(32, 8, 32, 2, 4)),
    (2, 3, 40, None),
]


def run(case: Case, tile: Tile | None = SMALL, **options: Any) -> dict[str, torch.Tensor]:
    return run_forward(case, tile, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "B", "H", "tile"), SHAPES)
def test_every_output_is_right(T: int, B: int, H: int, tile: Tile | None, dtype: torch.dtype) -> None:
    case = Case(T, B, H, dtype)
    assert_as_good_as_naive(case, run(case, tile))


@pytest.mark.parametrize("dtype", DTYPES)
def test_resets_and_ids(dtype: torch.dtype) -> None:
    case = Case(5, 6, 20, dtype, resets=0.3, rows=9)
    assert_as_good_as_naive(case, run(case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("T", "B", "H", "features", "tile"),
    [
        (3, 16, 32, 16, SMALL),
        (4, 19, 37, 37, SMALL),  # more than one tile of features, the last one not full
        (2, 5, 20, 1, SMALL),
        (1, 3, 16, 5, SMALL),
        (3, 33, 48, 32, Tile(32, 8, 32, 2, 4, input_stages=1)),
        (2, 3, 40, 100, None),
    ],
)
def test_dense_inputs_are_multiplied_inside(
    T: int, B: int, H: int, features: int, tile: Tile | None, dtype: torch.dtype
) -> None:
    case = Case(T, B, H, dtype, features=features, resets=0.2)
    assert_as_good_as_naive(case, run(case, tile))


def test_dense_inputs_without_biases() -> None:
    case = Case(2, 5, 20, torch.float32, features=7)
    case.bias_ih = case.bias_hh = None
    assert_as_good_as_naive(case, run(case))


@pytest.mark.parametrize(("rows", "features"), [(0, 0), (9, 0), (0, 7)])
def test_no_state_is_a_state_of_zeros(rows: int, features: int) -> None:
    case = Case(3, 5, 20, torch.float32, rows=rows, features=features, resets=0.3)
    zeros = torch.zeros_like(case.h0), torch.zeros_like(case.c0)
    options = {"cells_dtype": torch.float32, "save_gates": True, "tile": SMALL, "resets": case.resets} | case.kind
    given = lstm_forward(case.inputs, case.weight_hh, *zeros, **options)  # type: ignore[arg-type]
    with poisoned_memory():
        none = lstm_forward(case.inputs, case.weight_hh, **options)  # type: ignore[arg-type]
    assert given.h_n is none.h_n is None
    for name, tensor in given._asdict().items():
        assert name == "h_n" or torch.equal(getattr(none, name), tensor), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates(dtype: torch.dtype) -> None:
    case = Case(3, 4, 16, dtype, scale=100.0)
    assert_as_good_as_naive(case, run(case))


def test_a_reset_forgets_even_nan() -> None:
    case = Case(2, 3, 16, torch.float32)
    case.h0.fill_(torch.nan)
    case.c0.fill_(torch.inf)
    case.resets = torch.tensor([[True] * 3, [False] * 3], device=DEVICE)
    got = run(case)
    case.h0.zero_()
    case.c0.zero_()
    for name, tensor in run(case).items():
        assert torch.equal(got[name], tensor), name


def test_serpentine_sums_the_same_terms() -> None:
    case = Case(3, 2, 40, torch.float32)
    assert_as_good_as_naive(case, run(case, Tile(16, 16, 16, 2, 4, serpentine=True)))


def test_chosen_units_in_their_own_dtype() -> None:
    case = Case(3, 5, 20, torch.float32)
    units = torch.tensor([17, 0, 3], device=DEVICE)
    given = (case.inputs, case.weight_hh, case.h0, case.c0)
    every = lstm_forward(*given, cells_dtype=torch.float32, tile=SMALL)
    with poisoned_memory():
        chosen = lstm_forward(*given, cells_dtype=torch.float16, units=units, tile=SMALL)
    assert every.cells is not None
    assert chosen.cells is not None
    assert torch.equal(chosen.cells, every.cells[:, :, units].half())
    assert torch.equal(chosen.h, every.h)


def test_nothing_is_kept_that_nobody_asked_for() -> None:
    case = Case(2, 2, 16, torch.float32)
    out = lstm_forward(case.inputs, case.weight_hh, case.h0, case.c0, tile=SMALL)
    assert out.cells is None
    assert out.gates is None


@pytest.mark.parametrize("tile", [None, SMALL])
def test_one_step_alone_has_its_last_h_apart(tile: Tile | None) -> None:
    case = Case(1, 3, 20, torch.float16)
    with poisoned_memory():
        out = lstm_forward(case.inputs, case.weight_hh, case.h0, case.c0, tile=tile)
    assert out.h_n is not None
    assert torch.equal(out.h_n, out.h[0])
    assert out.h_n.untyped_storage().data_ptr() != out.h.untyped_storage().data_ptr()


def test_arguments_are_left_alone() -> None:
    case = Case(2, 2, 16, torch.float32)
    before = case.c0.clone()
    run(case)
    assert torch.equal(case.c0, before)


def test_noncontiguous_arguments() -> None:
    case = Case(3, 4, 16, torch.float32, features=5)
    expected = run(case)
    for name in ("inputs", "weight_ih", "weight_hh", "h0", "c0"):
        tensor = getattr(case, name)
        setattr(case, name, tensor.transpose(-1, -2).contiguous().transpose(-1, -2))
    for name, tensor in run(case).items():
        assert torch.equal(expected[name], tensor), name


def test_a_dtype_without_a_kernel_is_named() -> None:
    case = Case(1, 1, 4, torch.float64)
    with pytest.raises(TypeError, match=r"weight_hh: expected float32, float16 or bfloat16, got torch\.float64"):
        lstm_forward(case.inputs, case.weight_hh, case.h0, case.c0.double())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("features", [0, 100, 256])
@pytest.mark.parametrize(("T", "B", "H"), [(17, 130, 272), (33, 16, 1024), (9, 600, 512), (5, 128, 2048)])
def test_one_launch_equals_a_launch_a_step(T: int, B: int, H: int, features: int, dtype: torch.dtype) -> None:
    case = Case(T, B, H, dtype, resets=0.1, features=features)
    steps = run(case, None, persistent=False)
    assert_as_good_as_naive(case, steps)
    for _ in range(3):
        once = run(case, None)
        for name, tensor in once.items():
            assert torch.equal(tensor, steps[name]), name


@pytest.mark.gpu
def test_a_cuda_graph_replays_it() -> None:
    case = Case(9, 20, 64, torch.bfloat16)
    expected = run(case, None)["h"]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = lstm_forward(case.inputs, case.weight_hh, case.h0, case.c0)
    for _ in range(3):
        out.h.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out.h, expected)
