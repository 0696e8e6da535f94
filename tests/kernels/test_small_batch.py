"""The small-batch forward against float64: in Triton's interpreter step by step, on a GPU as it runs there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastlstm_kernels import small_batch
from fastlstm_kernels.forward import lstm_forward
from fastlstm_kernels.launch import ANY, SMALL_BATCH, SmallTile, forward_tile, small_batch_programs
from fastlstm_kernels.launch import small_batch_tile as chosen_tile
from recurrences import DEVICE, Case, assert_as_good_as_naive, poisoned_memory, run_forward

DTYPES = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
# T, B, H, tile: whole tiles, odd B, H that fills neither the K of the warps nor the last tile, one step, one warp.
SHAPES = [
    (3, 8, 64, SmallTile(8, 8, 2)),
    (4, 19, 128, SmallTile(16, 16, 4)),
    (3, 11, 40, SmallTile(8, 16, 1)),
    (2, 5, 72, SmallTile(16, 4, 4)),
    (1, 1, 24, SmallTile(8, 8, 2)),
    (2, 17, 8, SmallTile(16, 8, 8)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "B", "H", "tile"), SHAPES)
def test_every_output_is_right(T: int, B: int, H: int, tile: SmallTile, dtype: torch.dtype) -> None:
    case = Case(T, B, H, dtype)
    assert_as_good_as_naive(case, run_forward(case, tile))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", [SmallTile(8, 8, 2), SmallTile(16, 16, 2, peek=True)])
def test_resets_and_ids(tile: SmallTile, dtype: torch.dtype) -> None:
    case = Case(5, 11, 40, dtype, resets=0.3, rows=9)
    assert_as_good_as_naive(case, run_forward(case, tile))


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_gates(dtype: torch.dtype) -> None:
    case = Case(3, 4, 64, dtype, scale=100.0)
    assert_as_good_as_naive(case, run_forward(case, SmallTile(8, 8, 2)))


def test_a_reset_forgets_even_nan() -> None:
    case, tile = Case(2, 3, 40, torch.float16), SmallTile(8, 8, 2)
    case.h0.fill_(torch.nan)
    case.c0.fill_(torch.inf)
    case.resets = torch.tensor([[True] * 3, [False] * 3], device=DEVICE)
    got = run_forward(case, tile)
    case.h0.zero_()
    case.c0.zero_()
    for name, tensor in run_forward(case, tile).items():
        assert torch.equal(got[name], tensor), name


def test_chosen_units_in_their_own_dtype() -> None:
    case, tile = Case(3, 5, 40, torch.float16), SmallTile(8, 16, 2)
    units = torch.tensor([37, 0, 3], device=DEVICE)
    given = (case.inputs, case.weight_hh, case.h0, case.c0)
    every = lstm_forward(*given, cells_dtype=torch.float32, tile=tile)
    with poisoned_memory():
        chosen = lstm_forward(*given, cells_dtype=torch.float16, units=units, tile=tile)
    assert every.cells is not None
    assert chosen.cells is not None
    assert torch.equal(chosen.cells, every.cells[:, :, units].half())
    assert torch.equal(chosen.h, every.h)
    assert torch.equal(chosen.c_n, every.c_n)


def test_what_begins_anywhere_in_memory() -> None:
    case, tile = Case(3, 4, 40, torch.float16), SmallTile(8, 8, 2)
    expected = run_forward(case, tile)
    for name in ("inputs", "weight_hh", "h0", "c0"):
        tensor = getattr(case, name)
        moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=DEVICE)[1:].view(tensor.shape)
        setattr(case, name, moved.copy_(tensor))
    for name, tensor in run_forward(case, tile).items():
        assert torch.equal(expected[name], tensor), name


def test_what_the_kernel_cannot_do_is_named() -> None:
    case = Case(1, 1, 20, torch.float16)
    with pytest.raises(ValueError, match="weight_hh: expected H in multiples of 8 for a small-batch tile, got 20"):
        run_forward(case, SmallTile(8, 8, 2))
    case = Case(1, 1, 16, torch.float32)
    with pytest.raises(TypeError, match=r"weight_hh: expected float16 or bfloat16 .*, got torch\.float32"):
        run_forward(case, SmallTile(8, 8, 2))


def test_who_is_served() -> None:
    for row in SMALL_BATCH:
        assert row.B < ANY
        assert small_batch_programs(int(row.H), int(row.B), row.tile) <= 132
    assert chosen_tile(256, 16, torch.float16) is not None
    assert chosen_tile(256, 16, torch.float32) is None
    assert chosen_tile(260, 16, torch.float16) is None
    assert chosen_tile(2048, 16, torch.float16) is None
    assert chosen_tile(256, 16, torch.float16, (8, 0)) is None
    assert chosen_tile(256, 16, torch.float16, resident=16) is None


# The interpreter never sees the layouts nor the PTX; the compiler needs no GPU.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from fastlstm_kernels.small_batch import lstm_small_batch_kernel as kernel

pointers = dict(inputs="*i32", weight="*bf16", h0="*bf16", state="*fp32", h="*bf16")
constants = dict(H=1024, BLOCK_B=16, BLOCK_H=8, WARPS=8, SHARE=128, PEEK=False, HAS_IDS=False, HAS_RESETS=False)
constants |= dict(SAVE_GATES=False, SAVE_CELLS=False, CHOSEN=False, PERSISTENT=True)
constants |= dict.fromkeys(("ids", "resets", "gates", "cells", "columns"))
signature = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
attrs = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(kernel.arg_names) if name in pointers}
source = GluonASTSource(kernel, signature, constants, attrs)
options = dict(num_warps=8, maxnreg=255, launch_cooperative_grid=True)
print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])
"""


def test_what_a_step_loads_and_waits_for(tmp_path: Path) -> None:
    here = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, _, step = done.stdout.partition("POLL:")
    # A thread's weights: 8 warps x 32 threads hold 32 rows of 1,024, two in a register.
    assert len(re.findall(r"ld\.global(?:\.v\d)?\.b(?:16|32)", before)) >= 32 * 1024 // (8 * 32) // 2
    assert step.count("mma.sync") == 32
    assert step.count("ld.relaxed.gpu.global.v4.b32") == 8
    assert len(re.findall(r"ld\.global", step)) == 4  # one input for each gate; no weights
    assert step.count("st.global") == 2  # h, and c after the last step
    assert step.count("bar.sync") == 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("T", "B", "H"), [(33, 1, 256), (17, 5, 264), (40, 16, 512), (65, 13, 1024), (9, 32, 1024)])
def test_one_launch_equals_a_launch_a_step(T: int, B: int, H: int, dtype: torch.dtype) -> None:
    case = Case(T, B, H, dtype, resets=0.1)
    tile = chosen_tile(H, B, dtype)
    steps = run_forward(case, tile, persistent=False)
    assert_as_good_as_naive(case, steps)
    for _ in range(5):
        once = run_forward(case, tile)
        for name, tensor in once.items():
            assert torch.equal(tensor, steps[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nan_does_not_stop_it(dtype: torch.dtype) -> None:
    """Above all the NaN that means "not there yet", in every argument."""
    sentinel = torch.tensor(-1, dtype=torch.int16, device=DEVICE).view(dtype)
    tile = chosen_tile(256, 16, dtype)
    for name in ("inputs", "h0", "weight_hh", "c0"):
        case = Case(12, 16, 256, dtype)
        tensor = getattr(case, name)
        at = (5, 3) if name == "inputs" else (3,)
        tensor[at] = sentinel if tensor.dtype == dtype else -torch.nan
        got = run_forward(case, tile)["h"]
        torch.cuda.synchronize()
        expected = run_forward(case, forward_tile(256, 16, dtype))["h"]
        assert torch.equal(got.isnan(), expected.isnan()), name
        assert got.isnan().any(), name
        assert not (got.view(torch.int16) == small_batch.SENTINEL.value).any(), name


@pytest.mark.gpu
def test_a_cuda_graph_replays_it() -> None:
    case = Case(9, 16, 256, torch.bfloat16)
    expected = run_forward(case, None)["h"]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = lstm_forward(case.inputs, case.weight_hh, case.h0, case.c0)
    for n in range(4):
        # Other inputs each time: without a fill, what the replay before left would be taken for h.
        case.inputs.neg_()
        graph.replay()
        assert torch.equal(out.h, expected) == (n % 2 == 1), n
