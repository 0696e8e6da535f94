"""fastlstm.LSTM on the Hopper kernels, on an H100."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from test_lstm import compiles, make, some_resets
from test_ops import BACKWARD, FORWARD, TRITON_KINDS, arguments, backward_arguments
from torch import Tensor

from fastlstm import LSTM
from fastlstm.ops import Inputs, lstm_layer
from plain_lstm import assert_right, module_lstm
from recurrences import CUDA, DEVICE, Case
from tolerance import assert_as_good_as

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        CUDA and torch.cuda.get_device_capability() != (9, 0), reason="needs a GPU of compute capability 9.0"
    ),
]
H, BF16 = 256, torch.bfloat16


def layer(T: int, B: int, dtype: torch.dtype = BF16, **options: Any) -> tuple[LSTM, Tensor, tuple[Tensor, Tensor]]:
    return make(T, B, 5, H, dtype=dtype, backend="hopper", **options)


@pytest.mark.parametrize("dtype", [torch.float16, BF16])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 2), (1, 3), (19, 1), (19, 2), (19, 3)])
def test_every_output_and_gradient_is_right(B: int, T: int, resets: bool, dtype: torch.dtype) -> None:
    assert_right(*layer(T, B, dtype), resets=some_resets(T, B) if resets else None)


@pytest.mark.parametrize(
    "options", [{"recompute": True}, {"bias": False}, {"num_layers": 2}, {"bidirectional": True}], ids=str
)
def test_options_are_right(options: dict[str, Any]) -> None:
    assert_right(*layer(3, 19, **options), resets=some_resets(3, 19))


@pytest.mark.parametrize("recompute", [False, True])
def test_ids_are_read_as_one_hot_vectors(recompute: bool) -> None:
    lstm, _, hx = layer(3, 19, recompute=recompute)
    ids = torch.randint(0, 5, (3, 19), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    assert_right(lstm, ids, hx, resets=some_resets(3, 19))


@pytest.mark.parametrize("kind", TRITON_KINDS, ids=str)
def test_the_operators_pass_opcheck(kind: dict[str, int]) -> None:
    case = Case(2, 2, H, BF16, resets=0.3, **kind)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(FORWARD, arguments(case, save_gates=True, backend="hopper"), test_utils=checks)
    for recompute in (False, True):
        torch.library.opcheck(BACKWARD, backward_arguments(case, "hopper", recompute=recompute), test_utils=checks)


def plain_layer(inputs: Tensor, weight_hh: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every h_t, the last c and every c_t, all in the dtype of the arguments."""
    hs, cs = [], []
    for step in inputs:
        i, f, g, o = (step + h @ weight_hh.t()).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        hs.append(h)
        cs.append(c)
    return torch.stack(hs), c, torch.stack(cs)


@pytest.mark.parametrize("wanted", [("h",), ("c_n",), ("cells",), ("h", "c_n"), ("c_n", "cells")], ids="+".join)
def test_gradients_that_do_not_come_are_zeros(wanted: tuple[str, ...]) -> None:
    """Of h, of every c_t and of the last c: each on its own way, and each may be None."""
    case = Case(3, 19, H, BF16)
    given = (case.inputs, case.weight_hh, case.h0, case.c0)

    def gradients(outputs: tuple[Tensor, Tensor, Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
        found = dict(zip(("h", "c_n", "cells"), outputs, strict=True))
        upstream = {"h": case.dh, "c_n": case.dc[0], "cells": case.dc}
        chosen = [found[name] for name in wanted]
        return torch.autograd.grad(chosen, leaves, [upstream[name].to(found[name].dtype) for name in wanted])

    def plain(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in given]
        return gradients(plain_layer(*leaves), leaves)

    leaves = [tensor.clone().requires_grad_() for tensor in given]
    h, (_, c_n), cells = lstm_layer(Inputs(leaves[0]), *leaves[1:], return_cells=True, backend="hopper")
    assert cells is not None
    results = (gradients((h, c_n, cells), leaves), plain(BF16), plain(torch.float64))
    for name, kernel, naive, truth in zip(("inputs", "weight_hh", "h0", "c0"), *results, strict=True):
        assert_as_good_as(name, kernel, naive, truth)


@compiles
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")  # advice of inductor's
def test_compile_takes_the_whole_call() -> None:
    torch._dynamo.reset()
    lstm, _, _ = layer(7, 3)
    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend="aot_eager")
    for T in (7, 9, 6):
        _, x, hx = layer(T, 3)
        expected, got = module_lstm(lstm, x, hx), module_lstm(lstm, x, hx, compiled=compiled)
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor), name


def test_another_thread_gets_the_same() -> None:
    given = layer(3, 19)
    expected = module_lstm(*given)
    got: list[dict[str, Tensor]] = []

    def run() -> None:
        got.append(module_lstm(*given))
        torch.cuda.synchronize()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(threads)
    for one, (name, tensor) in itertools.product(got, expected.items()):
        assert torch.equal(one[name], tensor), name


def test_two_streams_at_once_give_the_same() -> None:
    given = layer(9, 130, num_layers=2)
    expected = module_lstm(*given)
    streams = [torch.cuda.Stream() for _ in range(2)]
    got: list[dict[str, Tensor]] = []
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                got.append(module_lstm(*given))
    torch.cuda.synchronize()
    for one, (name, tensor) in itertools.product(got, expected.items()):
        assert torch.equal(one[name], tensor), name


@pytest.mark.parametrize("B", [1, 19])
def test_two_hundred_calls_are_bit_equal(B: int) -> None:
    given = layer(5, B)
    expected = module_lstm(*given, resets=some_resets(5, B))
    for _ in range(200):
        for name, tensor in module_lstm(*given, resets=some_resets(5, B)).items():
            assert torch.equal(tensor, expected[name]), name


# A process each: what was loaded once stays loaded.
FIRST_USE = """
import threading, torch
import fastlstm
from fastlstm_kernels.hopper import launch

lstm = fastlstm.LSTM(64, 256, backend="hopper", device="cuda", dtype=torch.bfloat16)
x = torch.randn(5, 19, 64, device="cuda", dtype=torch.bfloat16)
parameters = list(lstm.parameters())

def step(backend):
    lstm.backend = backend
    output = lstm(x)[0]
    return output.detach(), *torch.autograd.grad(output.float().sum(), parameters)

# cuBLAS and torch's own kernels, as torch wants it; of ours nothing.
stream = torch.cuda.Stream()
stream.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(stream):
    step("torch")
torch.cuda.current_stream().wait_stream(stream)
assert not launch._kernels
"""
IN_A_CAPTURE = """
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = step("hopper")
assert launch._kernels
for tensor in captured:
    tensor.fill_(torch.nan)
graph.replay()
graph.replay()
for got, expected in zip(captured, step("hopper"), strict=True):
    assert torch.equal(got, expected)
"""
ON_A_THREAD = """
loaded = []

def load():
    loaded.append(launch.kernel("backward", "lstm_backward_2x16", 256, torch.bfloat16, 0))

thread = threading.Thread(target=load)
thread.start()
thread.join()
assert loaded
for got, again in zip(step("hopper"), step("hopper"), strict=True):
    assert torch.equal(got, again)
"""
SHARED = """
import ctypes
from fastlstm_kernels.hopper import binary
from cuda.bindings import driver
for direction in binary.DIRECTIONS:
    for H in (256, 2048):
        module, code = launch._module(direction, H, torch.bfloat16)
        for name, shared in binary.shared_memory(code).items():
            address, size = launch._checked(driver.cuModuleGetGlobal(module, f"{name}_shared".encode()))
            held = ctypes.c_int()
            launch._checked(driver.cuMemcpyDtoH(ctypes.addressof(held), address, size))
            assert held.value == shared, name
"""


@pytest.mark.parametrize("then", [IN_A_CAPTURE, ON_A_THREAD, SHARED], ids=["capture", "thread", "shared"])
def test_the_first_use_may_be_anywhere(then: str) -> None:
    # The packages may come from pytest's own path, not from an installation.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", FIRST_USE + then]
    made = subprocess.run(run, capture_output=True, text=True, timeout=300, env=environment)
    assert made.returncode == 0, made.stderr
