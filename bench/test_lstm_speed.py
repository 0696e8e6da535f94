"""The `lstm` suite's cases under pytest-benchmark: `pytest bench --benchmark-only`, on a GPU.

Whole calls, awaited: what a caller sees. bench/lstm.py times the GPU's work alone and writes the results that are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bench.contestants import AUTO, CASES, DTYPES, Contestant, Data, Shape, ours, torch_lstm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SHAPES = (Shape(2048, 128, 128), Shape(1024, 128, 128), Shape(2048, 1, 1))
Enter = Callable[[Shape, Data], Contestant]


def layer(dtype: str, backend: str, *, ids: bool = False) -> tuple[str, Enter]:
    return dtype, lambda shape, data: ours(shape, dtype, "cuda", data, backend=backend, ids=ids)


CONTESTANTS: dict[str, tuple[str, Enter]] = {
    "fastlstm-triton-bf16": layer("bf16", "triton"),
    "fastlstm-triton-bf16-ids": layer("bf16", "triton", ids=True),
    "fastlstm-triton-fp16": layer("fp16", "triton"),
    "fastlstm-hopper-bf16": layer("bf16", "hopper"),
    "fastlstm-auto-bf16": layer("bf16", AUTO),
    "fastlstm-auto-fp16": layer("fp16", AUTO),
    "nn.LSTM-fp16": ("fp16", lambda shape, data: torch_lstm(shape, "fp16", "cuda", data)),
    "nn.LSTM-bf16": ("bf16", lambda shape, data: torch_lstm(shape, "bf16", "cuda", data)),
}


# torch.nn.LSTM keeps bfloat16 weights apart.
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@pytest.mark.parametrize("name", CONTESTANTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer(benchmark, shape: Shape, case: str, name: str) -> None:  # type: ignore[no-untyped-def]
    dtype, enter = CONTESTANTS[name]
    call = enter(shape, Data.draw(shape, DTYPES[dtype], "cuda")).calls.get(case)
    if call is None:
        pytest.skip("torch.nn.LSTM does not return every c_t")

    def awaited() -> None:
        call()
        torch.cuda.synchronize()

    benchmark.group = f"{case} {shape}"
    benchmark.pedantic(awaited, rounds=20, warmup_rounds=3)
