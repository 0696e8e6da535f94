"""The Hopper kernels: how they are built and divide a batch, and on an H100 their results against float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlstm_kernels.hopper import backward, binary, forward, order, plans
from fastlstm_kernels.hopper.arguments import ALIGNMENT, BackwardArguments, ForwardArguments
from recurrences import CUDA, DEVICE, Case, poisoned_memory
from tolerance import assert_as_good_as

HALF = [torch.float16, torch.bfloat16]
DIRECTIONS = {"forward": plans.FORWARD, "backward": plans.BACKWARD}
SHIPPED = list(itertools.product(binary.DIRECTIONS, plans.COMPILED_SIZES, HALF))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("H", range(plans.MULTIPLE, plans.LARGEST + 1, plans.MULTIPLE))
@pytest.mark.parametrize("B", [1, 16, 17, 64, 77, 128, 129, 600])
def test_every_sequence_is_in_one_launch(direction: str, H: int, B: int) -> None:
    plan, launches = plans.divide(DIRECTIONS[direction], H, B)
    assert [one.begin for one in launches] == [0, *(one.end for one in launches)][:-1]
    assert launches[-1].end == B
    for one in launches:
        assert 0 < one.groups * plans.blocks_of_a_group(H) <= plans.MOST_BLOCKS
        assert (one.groups - 1) * plan.columns < one.end - one.begin <= one.groups * plan.columns


@pytest.mark.parametrize("H", [0, 128, 1000, 2304, 4096])
def test_other_sizes_are_refused_with_the_reason(H: int) -> None:
    assert plans.size_refusal(H) == (f"they hold the weights of H = 256, 512, ... 2048 on the chip, and H is {H}")


@pytest.mark.parametrize(("direction", "H", "dtype"), SHIPPED)
def test_what_is_shipped_was_made_from_these_sources(direction: str, H: int, dtype: torch.dtype) -> None:
    manifest = binary.manifest()
    assert manifest["sources"][direction] == binary.source_hash(direction), "run make cubins"
    assert "cuda_" in manifest["compiler"]
    machine_code = binary.shipped(direction, H, dtype)
    assert machine_code is not None
    assert machine_code.startswith(b"\x7fELF")
    figures = manifest["kernels"][binary.file_name(direction, H, dtype)]
    assert set(figures) == {plan.kernel for plan in DIRECTIONS[direction]}
    for kernel, figure in figures.items():
        assert kernel.encode() in machine_code
        # 65,536 registers / 512 threads at the start; the roles trade them with setmaxnreg. Spills come back from L2.
        assert figure == {"registers": 128, "serialized": 0, "stack": 0, "spill_stores": 0, "spill_loads": 0}


def test_a_changed_source_is_not_run_with_old_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary, "source_hash", lambda direction: "0" * 64)
    assert binary.shipped.__wrapped__("forward", 2048, torch.bfloat16) is None


def test_ptxas_figures_are_read() -> None:
    report = (
        "ptxas info    : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized due to "
        "insufficient register resources for the function 'slow'\n"
        "ptxas info    : Compiling entry function 'slow' for 'sm_90a'\n"
        "    96 bytes stack frame, 128 bytes spill stores, 120 bytes spill loads\n"
        "ptxas info    : Used 128 registers, used 3 barriers\n"
        "ptxas info    : Compiling entry function 'fast' for 'sm_90a'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 90 registers\n"
    )
    assert binary.ptxas_figures(report) == {
        "slow": {"serialized": 1, "stack": 96, "spill_stores": 128, "spill_loads": 120, "registers": 128},
        "fast": {"serialized": 0, "stack": 0, "spill_stores": 0, "spill_loads": 0, "registers": 90},
    }


def test_argument_structures_are_whole_alignments() -> None:
    for structure in (ForwardArguments, BackwardArguments):
        assert structure.map.offset == 0
        assert structure.weight.offset % ALIGNMENT == 0


def test_gates_are_brought_by_unit_and_back() -> None:
    stacked = torch.arange(4 * 5 * 3).view(20, 3)
    by_unit = order.rows_by_unit(stacked)
    for unit, gate in itertools.product(range(5), range(4)):
        assert torch.equal(by_unit[4 * unit + gate], stacked[5 * gate + unit])
    assert torch.equal(order.rows_stacked(by_unit), stacked)


@pytest.mark.parametrize(("rows", "H"), [(1, 1), (3, 5), (2, 512), (7, 700)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_columns_are_brought_by_unit_and_back(rows: int, H: int, dtype: torch.dtype) -> None:
    stacked = torch.randn(rows, 4 * H, device=DEVICE).to(dtype)
    got = order.columns_by_unit(stacked)
    assert torch.equal(got, stacked.view(rows, 4, H).transpose(1, 2).flatten(1))
    assert torch.equal(order.columns_stacked(got), stacked)


def by_unit(gates: Tensor) -> Tensor:
    """(..., 4H) stacked -> (..., H, 4)."""
    return gates.unflatten(-1, (4, -1)).transpose(-1, -2).contiguous()


def results(case: Case, **options: Any) -> dict[str, Tensor]:
    """Forward and backward of the kernels, gates back in torch's order."""
    with poisoned_memory():
        out = forward.lstm_forward(
            by_unit(case.inputs),
            case.weight_hh,
            case.h0,
            case.c0,
            ids=case.ids,
            resets=case.resets,
            save_gates=True,
            cells_dtype=torch.float32,
            plans=options.get("forward", plans.FORWARD),
        )
        assert out.cells is not None
        assert out.gates is not None
        given = (case.dh, case.dc, None, out.gates, out.cells, case.c0, case.weight_hh)
        d_gates, dc0 = backward.lstm_backward(*given, resets=case.resets, plans=options.get("backward", plans.BACKWARD))
    if not torch.cuda.is_current_stream_capturing():
        assert torch.equal(out.h[0], case.h0)
        assert torch.equal(out.c_n, out.cells[-1])
    gates, d_gates = (tensor.transpose(2, 3).flatten(2) for tensor in (out.gates, d_gates))
    return {"h": out.h[1:], "c": out.cells, "gates": gates, "d_gates": d_gates, "dc0": dc0}


on_an_h100 = pytest.mark.skipif(
    CUDA and torch.cuda.get_device_capability() != (9, 0), reason="needs a GPU of compute capability 9.0"
)
SIZES = [
    (2048, 128, 7),
    (2048, 77, 5),
    (2048, 1, 4),
    (2048, 130, 1),
    (1536, 128, 5),
    (1536, 33, 6),
    (1024, 128, 9),
    (1024, 300, 5),
    (1024, 5, 20),
    (512, 20, 9),  # compiled by NVRTC when it is asked for
]


@pytest.mark.gpu
@on_an_h100
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("H", "B", "T"), SIZES)
def test_every_result_is_right_and_the_same_again(H: int, B: int, T: int, dtype: torch.dtype) -> None:
    case = Case(T, B, H, dtype, resets=0.2)
    got, truth, naive = results(case), case.run(torch.float64), case.run(dtype)
    for name, tensor in got.items():
        assert_as_good_as(name, tensor, naive[name], truth[name])
    for name, tensor in results(case).items():
        assert torch.equal(tensor, got[name]), name


@pytest.mark.gpu
@on_an_h100
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_ids_and_saturated_gates(scale: float) -> None:
    case = Case(6, 128, 1024, torch.bfloat16, resets=0.1, rows=200, scale=scale)
    got, truth, naive = results(case), case.run(torch.float64), case.run(torch.bfloat16)
    for name, tensor in got.items():
        assert_as_good_as(name, tensor, naive[name], truth[name])


@pytest.mark.gpu
@on_an_h100
@pytest.mark.parametrize("plan", [*plans.FORWARD, *plans.BACKWARD], ids=lambda plan: plan.kernel)
def test_every_plan_at_a_size_that_leaves_room(plan: plans.Plan) -> None:
    case = Case(6, 19, 1024, torch.bfloat16, resets=0.2)
    direction = "forward" if plan in plans.FORWARD else "backward"
    got, truth, naive = results(case, **{direction: (plan,)}), case.run(torch.float64), case.run(torch.bfloat16)
    for name, tensor in got.items():
        assert_as_good_as(name, tensor, naive[name], truth[name])


@pytest.mark.gpu
@on_an_h100
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cells_in_another_dtype_are_those_of_float32(dtype: torch.dtype) -> None:
    case = Case(5, 40, 1024, torch.bfloat16)
    given = (by_unit(case.inputs), case.weight_hh, case.h0, case.c0)
    exact = forward.lstm_forward(*given, cells_dtype=torch.float32)
    rounded = forward.lstm_forward(*given, cells_dtype=dtype)
    assert exact.cells is not None
    assert rounded.cells is not None
    assert torch.equal(rounded.cells, exact.cells.to(dtype))


@pytest.mark.gpu
@on_an_h100
def test_a_cuda_graph_and_another_stream_give_the_same() -> None:
    case = Case(9, 128, 2048, torch.bfloat16)
    expected = results(case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        beside = results(case)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(case)
    for _ in range(3):
        for tensor in captured.values():
            tensor.fill_(torch.nan)
        graph.replay()
        for name, tensor in captured.items():
            assert torch.equal(tensor, expected[name]), name
            assert torch.equal(beside[name], expected[name]), name


def test_devices_without_the_kernels_are_named() -> None:
    if not CUDA:
        pytest.skip("needs a CUDA GPU")
    from fastlstm_kernels.hopper.launch import device_refusal

    refusal = device_refusal(torch.device(DEVICE).index or 0)
    assert (refusal is None) == (torch.cuda.get_device_capability() == (9, 0)), refusal
