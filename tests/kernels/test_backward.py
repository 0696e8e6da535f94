"""The Triton backward recurrence against float64: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from fastlstm_kernels import reference
from fastlstm_kernels.backward import lstm_backward
from fastlstm_kernels.forward import lstm_forward
from fastlstm_kernels.gradients import table_gradient, table_weight_gradient, weight_factors, weight_gradient
from fastlstm_kernels.launch import Tile, backward_tile, forward_tile, input_block
from fastlstm_kernels.recompute import recompute_gates
from recurrences import DEVICE, DTYPES, Case, poisoned_memory
from tolerance import assert_as_good_as

SMALL = Tile(16, 16, 16, 2, 4, split=2)
SHAPES = [
    (3, 16, 32, SMALL),
    (4, 19, 37, SMALL),
    (2, 1, 20, SMALL),
    (2, 40, 1, SMALL),
    (1, 5, 20, SMALL),
    (3, 33, 48, Tile(32, 32, 32, 2, 4, split=4)),
    (3, 5, 20, Tile(16, 16, 16, 2, 4, split=1)),
    (2, 3, 40, None),
]


def run(
    case: Case,
    tile: Tile | None = SMALL,
    *,
    with_dh: bool = True,
    with_dc: bool = True,
    dc_n: torch.Tensor | None = None,
    persistent: bool | None = None,
) -> dict[str, torch.Tensor]:
    out = lstm_forward(
        case.inputs,
        case.weight_hh,
        case.h0,
        case.c0,
        ids=case.ids,
        resets=case.resets,
        save_gates=True,
        cells_dtype=torch.float32,
    )
    assert out.cells is not None
    assert out.gates is not None
    with poisoned_memory():
        result = lstm_backward(
            case.dh if with_dh else None,
            case.dc if with_dc else None,
            out.gates,
            out.cells,
            case.c0,
            case.weight_hh,
            dc_n=dc_n,
            resets=case.resets,
            tile=tile,
            persistent=persistent,
        )
    return result._asdict()


def assert_right(case: Case, got: dict[str, torch.Tensor], **upstream: bool) -> None:
    truth, naive = case.run(torch.float64, **upstream), case.run(case.dtype, **upstream)
    for name, tensor in got.items():
        assert_as_good_as(name, tensor, naive[name], truth[name])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "B", "H", "tile"), SHAPES)
def test_every_gradient_is_right(T: int, B: int, H: int, tile: Tile | None, dtype: torch.dtype) -> None:
    case = Case(T, B, H, dtype)
    assert_right(case, run(case, tile))


@pytest.mark.parametrize("dtype", DTYPES)
def test_resets_cut_gradients(dtype: torch.dtype) -> None:
    case = Case(6, 7, 20, dtype, resets=0.3)
    assert case.resets is not None
    case.resets[0, 0] = True
    got = run(case)
    assert_right(case, got)
    assert not got["dh0"][0].any()
    assert not got["dc0"][0].any()


@pytest.mark.parametrize("missing", ["with_dh", "with_dc"])
def test_a_missing_gradient_is_zero(missing: str) -> None:
    case = Case(4, 3, 16, torch.float32)
    assert_right(case, run(case, **{missing: False}), **{missing: False})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_dc", [False, True])
def test_the_last_cell_has_its_own_gradient(with_dc: bool, dtype: torch.dtype) -> None:
    case = Case(4, 19, 20, dtype, resets=0.3)
    dc_n = torch.randn(19, 20, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    got = run(case, with_dc=with_dc, dc_n=dc_n)
    # The same as a gradient of the last of every c_t, which a reset before the next window does not cut.
    case.dc = case.dc if with_dc else torch.zeros_like(case.dc)
    case.dc[-1] += dc_n
    assert_right(case, got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates(dtype: torch.dtype) -> None:
    case = Case(3, 4, 16, dtype, scale=100.0)
    assert_right(case, run(case))


def test_serpentine_sums_the_same_terms() -> None:
    case = Case(3, 2, 20, torch.float32)
    assert_right(case, run(case, Tile(16, 16, 16, 2, 4, split=2, serpentine=True)))


def test_two_runs_are_bit_equal() -> None:
    case = Case(4, 5, 20, torch.float32)
    first, second = run(case), run(case)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "features"), [(0, 0), (9, 0), (0, 21)])
def test_recomputed_gates_are_the_saved_ones(rows: int, features: int, dtype: torch.dtype) -> None:
    case = Case(5, 19, 20, dtype, resets=0.3, rows=rows, features=features)
    given = {"resets": case.resets, "tile": Tile(16, 16, 16, 2, 4, serpentine=True)} | case.kind
    out = lstm_forward(case.inputs, case.weight_hh, case.h0, case.c0, save_gates=True, **given)  # type: ignore[arg-type]
    with poisoned_memory():
        gates = recompute_gates(case.inputs, case.weight_hh, case.h0, out.h, **given)  # type: ignore[arg-type]
    assert out.gates is not None
    assert torch.equal(gates, out.gates)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "resets"), [(1, 0.0), (5, 0.0), (5, 0.3)])
def test_weight_gradient_is_right(T: int, resets: float, dtype: torch.dtype) -> None:
    case = Case(T, 6, 20, dtype, resets=resets)
    d_gates, h = torch.randn(T, 6, 80, device=DEVICE).to(dtype), torch.randn(T, 6, 20, device=DEVICE).to(dtype)
    for h0, given in ((case.h0, case.h0), (torch.zeros_like(case.h0), None)):
        truth = reference.weight_gradient(d_gates.double(), h.double(), h0.double(), case.resets)
        naive = reference.weight_gradient(d_gates, h, h0, case.resets)
        assert_as_good_as("weight", weight_gradient(weight_factors(d_gates, h, given, case.resets)), naive, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [9, 256])
def test_table_gradient_is_right(rows: int, dtype: torch.dtype) -> None:
    ids = torch.randint(0, rows, (7, 5), dtype=torch.uint8, device=DEVICE)
    d_gates = torch.randn(7, 5, 80, device=DEVICE).to(dtype)
    truth = reference.table_gradient(d_gates.double(), ids, rows)
    naive = reference.table_gradient(d_gates, ids, rows)
    assert_as_good_as("table", table_gradient(d_gates, ids, rows), naive, truth)
    assert_as_good_as("weight_ih", table_weight_gradient(d_gates, ids, rows), naive.t(), truth.t())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T", "B", "H"), [(17, 130, 272), (33, 16, 1024), (9, 600, 512)])
def test_one_launch_equals_a_launch_a_step(T: int, B: int, H: int, dtype: torch.dtype) -> None:
    case = Case(T, B, H, dtype, resets=0.1)
    steps = run(case, None, persistent=False)
    assert_right(case, steps)
    for _ in range(3):
        once = run(case, None)
        for name, tensor in once.items():
            assert torch.equal(tensor, steps[name]), name


@pytest.mark.gpu
def test_a_cuda_graph_replays_it() -> None:
    case = Case(9, 20, 64, torch.bfloat16)
    out = lstm_forward(case.inputs, case.weight_hh, case.h0, case.c0, save_gates=True, cells_dtype=torch.float32)
    assert out.cells is not None
    assert out.gates is not None
    given = (case.dh, case.dc, out.gates, out.cells, case.c0, case.weight_hh)
    expected = lstm_backward(*given).d_gates
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = lstm_backward(*given)
    for _ in range(3):
        result.d_gates.fill_(torch.nan)
        graph.replay()
        assert torch.equal(result.d_gates, expected)


@pytest.mark.parametrize("H", [1, 100, 256, 1024, 2048, 4096, 6000])
@pytest.mark.parametrize("B", [1, 16, 17, 128, 513, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_the_launch_table_fits_shared_memory(H: int, B: int, dtype: torch.dtype, capability: tuple[int, int]) -> None:
    limit = {(8, 0): 99 * 1024, (9, 0): 227 * 1024}[capability]  # the least of each generation
    for tile, columns in (
        (forward_tile(H, B, dtype, capability), 4),
        (backward_tile(H, B, dtype, capability), 1),
    ):
        stage = (tile.block_b + columns * tile.block_h) * tile.block_k * dtype.itemsize
        assert tile.stages * stage <= limit
        assert tile.split & (tile.split - 1) == 0
    tile = forward_tile(H, B, dtype, capability)
    _, block = input_block(torch.empty(4 * H, 512, dtype=dtype, device="meta"), tile)
    assert block is not None
    assert tile.input_stages * (tile.block_b + 4 * tile.block_h) * block * dtype.itemsize <= limit
