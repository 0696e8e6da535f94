"""One LSTM layer against torch.nn.LSTM in fp16 and bf16, contestants interleaved: rows of bench/results/lstm.csv.

    python bench/lstm.py [--steps 128] [--rounds 5] [--shapes 2048x128 1024x128 ...]

First every shape's kernels are held against float64, with the tests' tolerance; a shape that fails is not timed. A
layer takes dense inputs of 256 features, as nn.LSTM does, and its input product is timed with it; `forward_infer` keeps
every h_t alone, `forward_cells` every c_t too. `forward_backward` ends with the gradients of weights, biases and
inputs.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

ROOT = Path(__file__).parents[1]
for folder in (ROOT, ROOT / "kernels", ROOT / "tests"):
    sys.path.insert(0, str(folder))

from fastlstm_kernels.backward import lstm_backward  # noqa: E402
from fastlstm_kernels.forward import TritonForward, lstm_forward  # noqa: E402
from fastlstm_kernels.gradients import weight_gradient  # noqa: E402
from tolerance import assert_as_good_as  # noqa: E402

INPUT_SIZE = 256
# Clock cycles of waiting on the GPU (about 1 ms) while the host queues a turn's calls: what is timed is the GPU's work.
BACKLOG = 2_000_000
SHAPES = ("2048x128", "1024x128", "2048x512", "4096x128", "2048x16", "2048x1", "1024x16")
COLUMNS = [
    *("suite", "case", "contestant", "H", "B", "T", "dtype", "metric", "unit", "median", "p20", "p80", "n"),
    *("gpu", "driver", "torch", "triton", "commit", "date"),
]
KEY = COLUMNS[:8]


class Layer(NamedTuple):
    """Parameters of one layer and its first state, on the GPU."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    h0: Tensor
    c0: Tensor


def make_layer(H: int, B: int, dtype: torch.dtype, seed: int = 0) -> Layer:
    generator = torch.Generator("cuda").manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=generator)

    return Layer(
        (draw(4 * H, INPUT_SIZE) / INPUT_SIZE**0.5).to(dtype),
        (draw(4 * H, H) / H**0.5).to(dtype),
        draw(4 * H).to(dtype),
        draw(B, H).to(dtype),
        draw(B, H),
    )


def naive(layer: Layer, inputs: Tensor, dtype: torch.dtype, dh: Tensor, dc: Tensor) -> dict[str, Tensor]:
    """Every h_t and c_t, and gradients, by autograd through the plain formulas, all in ``dtype``."""
    z_in, weight, h0, c0 = (
        tensor.to(dtype).requires_grad_() for tensor in (inputs, layer.weight_hh, layer.h0, layer.c0)
    )
    h, c, hs, cs = h0, c0, [], []
    for x in z_in:
        i, f, g, o = (x + h @ weight.t()).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        hs.append(h)
        cs.append(c)
    every_h, every_c = torch.stack(hs), torch.stack(cs)
    loss = (every_h * dh.to(dtype)).sum() + (every_c * dc.to(dtype)).sum()
    d_gates, dh0, dc0 = torch.autograd.grad(loss, (z_in, h0, c0))
    return {"h": every_h.detach(), "c": every_c.detach(), "d_gates": d_gates, "dh0": dh0, "dc0": dc0}


def gate(H: int, B: int, dtype: torch.dtype, T: int = 5) -> None:
    """Raise AssertionError unless the kernels are as good as naive code at this shape."""
    layer = make_layer(H, B, dtype, seed=1)
    inputs = torch.randn(T, B, 4 * H, device="cuda").to(dtype)
    dh, dc = torch.randn(T, B, H, device="cuda").to(dtype), torch.randn(T, B, H, device="cuda")
    out = lstm_forward(inputs, layer.weight_hh, layer.h0, layer.c0, save_gates=True, cells_dtype=torch.float32)
    assert out.cells is not None
    assert out.gates is not None
    back = lstm_backward(dh, dc, out.gates, out.cells, layer.c0, layer.weight_hh)
    got = {"h": out.h, "c": out.cells} | back._asdict()
    truth = naive(layer, inputs, torch.float64, dh, dc)
    plain = naive(layer, inputs, dtype, dh, dc)
    for name, tensor in got.items():
        assert_as_good_as(f"{name} at H={H} B={B}", tensor, plain[name], truth[name])


def triton_calls(T: int, B: int, H: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    layer = make_layer(H, B, dtype)
    x = torch.randn(T, B, INPUT_SIZE, device="cuda").to(dtype)
    dy = torch.randn(T, B, H, device="cuda").to(dtype)

    def forward(**options: Any) -> TritonForward:
        inputs = torch.nn.functional.linear(x, layer.weight_ih, layer.bias)
        return lstm_forward(inputs, layer.weight_hh, layer.h0, layer.c0, **options)

    def forward_backward() -> object:
        out = forward(save_gates=True, cells_dtype=torch.float32)
        assert out.gates is not None
        assert out.cells is not None
        d_gates = lstm_backward(dy, None, out.gates, out.cells, layer.c0, layer.weight_hh).d_gates
        rows = d_gates.flatten(0, 1)
        d_weight_hh = weight_gradient(d_gates, out.h, layer.h0)
        return d_weight_hh, rows.t() @ x.flatten(0, 1), rows @ layer.weight_ih, rows.sum(0)

    return {
        "forward_infer": forward,
        "forward_cells": lambda: forward(cells_dtype=torch.float32),
        "forward_train": lambda: forward(save_gates=True, cells_dtype=torch.float32),
        "forward_backward": forward_backward,
    }


def nn_calls(T: int, B: int, H: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    lstm = torch.nn.LSTM(INPUT_SIZE, H, device="cuda", dtype=dtype)
    lstm.flatten_parameters()
    x = torch.randn(T, B, INPUT_SIZE, device="cuda", dtype=dtype, requires_grad=True)
    dy = torch.randn(T, B, H, device="cuda", dtype=dtype)
    wanted = [x, *lstm.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return lstm(x)

    return {
        "forward_infer": forward,
        "forward_train": lambda: lstm(x),
        "forward_backward": lambda: torch.autograd.grad(lstm(x)[0], wanted, dy),
    }


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, repeats: int = 4) -> dict[str, list[float]]:
    """Milliseconds of each call, measured in turns so that clocks and neighbours meet all of them alike."""
    for call in calls.values():
        call()
        call()
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * rounds * repeats * len(calls))]
    spans: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            torch.cuda._sleep(BACKLOG)
            for _ in range(repeats):
                start, end = events.pop(), events.pop()
                start.record()
                call()
                end.record()
                spans[name].append((start, end))
        torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in spans.items()}


def measure(T: int, B: int, H: int, rounds: int) -> list[dict[str, object]]:
    """Rows of one shape: time per step of every case and contestant."""
    contestants = {
        ("fastlstm-triton", "bf16"): triton_calls(T, B, H, torch.bfloat16),
        ("nn.LSTM", "fp16"): nn_calls(T, B, H, torch.float16),
        ("nn.LSTM", "bf16"): nn_calls(T, B, H, torch.bfloat16),
    }
    rows: list[dict[str, object]] = []
    for case in ("forward_infer", "forward_cells", "forward_train", "forward_backward"):
        calls = {"/".join(who): calls[case] for who, calls in contestants.items() if case in calls}
        for who, times in interleaved(calls, rounds).items():
            contestant, dtype = who.split("/")
            steps = sorted(1e3 * time / T for time in times)
            p20, p80 = (steps[round(q * (len(steps) - 1))] for q in (0.2, 0.8))
            row: dict[str, object] = {"suite": "lstm", "case": case, "contestant": contestant, "H": H, "B": B, "T": T}
            row |= {"dtype": dtype, "metric": "time_per_step", "unit": "us"}
            row |= {"median": f"{statistics.median(steps):.3f}", "p20": f"{p20:.3f}", "p80": f"{p80:.3f}"}
            rows.append(row | {"n": len(steps)})
    return rows


def machine() -> dict[str, str]:
    def said(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": said("git", "rev-parse", "--short", "HEAD"),
        "date": datetime.date.today().isoformat(),
    }


def save(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Add rows to the CSV; a row replaces the old one of the same suite, case, contestant, shape, dtype and metric."""
    kept: dict[tuple[str, ...], dict[str, object]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for old in csv.DictReader(file):
                kept[tuple(old[name] for name in KEY)] = dict(old)
    for row in rows:
        kept[tuple(str(row[name]) for name in KEY)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".csv.new")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(kept.values())
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="HxB")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "lstm.csv")
    options = parser.parse_args()
    about = machine()
    for shape in options.shapes:
        H, B = map(int, shape.split("x"))
        gate(H, B, torch.bfloat16)
        rows = measure(options.steps, B, H, options.rounds)
        save(options.out, (row | about for row in rows))
        for row in rows:
            print(*(row[name] for name in ("case", "contestant", "dtype", "H", "B", "T", "median", "unit")), flush=True)


if __name__ == "__main__":
    main()
