"""Bytes a second of whole training: fastlstm's update and the plain loop around torch.nn.LSTM, in one run.

    python bench/train.py --data CORPUS                              # the study's recipe, B = 256 and 1024, H = 4096
    python bench/train.py --data CORPUS --shapes 2048x128x128 --seconds 60
    python bench/train.py --data CORPUS --backends hopper triton --plain none
    torchrun --nproc-per-node 2 bench/train.py --data CORPUS --shapes 2048x256x128   # fastlstm alone, B over all GPUs
    python bench/train.py --data CORPUS --device cpu --shapes 64x8x32 --seconds 1

First the losses of a few updates are held against float64. Contestants then take turns; each turn is cut in blocks of
about a second, at whose ends alone the device is waited for, and a row holds the quantiles of the blocks' rates. Cases:
`loader`, a new window of the corpus for every update; `no_loader`, the same window again. fastlstm's update is a CUDA
graph; nn.LSTM's loop is eager, and captured too with `--plain eager graph`. `peak_memory` is what building a
contestant and its first updates take. Rows go to bench/results/train.csv.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench.contestants import Shape  # noqa: E402
from bench.loops import Loop, gate, ours, plain  # noqa: E402
from bench.lstm import parse_shape, say  # noqa: E402
from bench.records import RESULTS, Row, complete, machine, quantiles, save  # noqa: E402
from fastlstm.config import load_config  # noqa: E402
from fastlstm.corpus.shards import Corpus  # noqa: E402
from fastlstm.training.config import TrainConfig, resolved  # noqa: E402
from fastlstm.training.distributed import World, processes  # noqa: E402

SHAPES = (Shape(2048, 128, 128), Shape(2048, 256, 128), Shape(2048, 1024, 128), Shape(4096, 128, 128))
BLOCK = 1.0  # seconds between the moments at which the device is waited for
GATE_BATCH = 16  # streams of the check against float64
CASES = ("loader", "no_loader")
SHOWN = ("case", "contestant", "version", "dtype", "mode", "H", "B", "T", "metric", "median", "unit")


def configuration(options: argparse.Namespace, shape: Shape, dtype: str, backend: str) -> TrainConfig:
    sizes = [f"model.hidden_size={shape.H}", f"data.batch_size={shape.B}", f"data.window={shape.T}", "data.passes=1000"]
    how = [f"optimizer.precision={dtype}", f"run.backend={backend}", f"run.device={options.device}"]
    return resolved(load_config(TrainConfig, options.recipe, [*sizes, *how, *options.overrides]), options.device_used)


def contestants(options: argparse.Namespace, shape: Shape, corpus: Corpus, world: World) -> list[tuple[Loop, float]]:
    """Everyone at this size, with the MiB that each took; one that fails is named and left out."""
    device = options.device_used
    makers: list[tuple[str, Callable[[], Loop]]] = []
    for dtype in options.dtypes:
        for backend in options.backends:
            config = configuration(options, shape, dtype, backend)
            makers.append((f"fastlstm {dtype}", lambda config=config: ours(config, corpus, device, world)))
    config = configuration(options, shape, options.dtypes[0], "auto")

    for dtype in options.baselines if world.size == 1 else []:
        for mode in options.plain:
            graph = mode == "graph"
            makers.append(
                (f"nn.LSTM {dtype}", lambda dtype=dtype, graph=graph: plain(config, corpus, device, dtype, graph=graph))
            )
    found = []
    for name, make in makers:
        try:
            found.append(_measured(make, device))
        except RuntimeError as error:  # out of memory, or a library that cannot be captured
            say(f"{name} at {shape}: left out, {str(error).splitlines()[0]}")
    return found


def _measured(make: Callable[[], Loop], device: torch.device) -> tuple[Loop, float]:
    """A contestant that has made its first updates, and the MiB beyond what was there before."""
    on_gpu = device.type == "cuda"
    gc.collect()
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    loop = make()
    for _ in range(3):
        loop.fed()
    if on_gpu:
        torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else 0.0
    return loop, peak


def rates(update: Callable[[], None], size: int, seconds: float, count: int, wait: Callable[[], None]) -> list[float]:
    """Bytes a second of each block of ``count`` updates of ``size`` bytes, for about ``seconds``."""
    found: list[float] = []
    wait()
    end = time.perf_counter() + seconds
    begin = time.perf_counter()
    while not found or begin < end:
        for _ in range(count):
            update()
        wait()
        now = time.perf_counter()
        found.append(count * size / (now - begin))
        begin = now
    return found


def updates_a_block(update: Callable[[], None], wait: Callable[[], None]) -> int:
    """How many updates take about a second."""
    update()
    wait()
    begin = time.perf_counter()
    for _ in range(3):
        update()
    wait()
    return max(1, int(BLOCK * 3 / (time.perf_counter() - begin)))


def measure(options: argparse.Namespace, shape: Shape, found: Sequence[tuple[Loop, float]], world: World) -> list[Row]:
    """Rows of one size."""
    size = {"suite": "train", "H": shape.H, "B": shape.B, "T": shape.T, "gpus": world.size}
    wait: Callable[[], None] = torch.cuda.synchronize if options.device_used.type == "cuda" else _nothing
    calls = {(loop, case): loop.fed if case == "loader" else loop.update for loop, _ in found for case in options.cases}
    counts = {key: world.largest(updates_a_block(call, wait)) for key, call in calls.items()}
    speeds: dict[tuple[Loop, str], list[float]] = {key: [] for key in calls}
    for turn in range(options.turns):
        for key, call in calls.items():
            seconds = options.seconds / options.turns
            if world.size > 1:  # every process makes the same number of updates
                blocks = max(1, round(seconds / BLOCK))
                speeds[key] += [rates(call, shape.B * shape.T, 0.0, counts[key], wait)[0] for _ in range(blocks)]
            else:
                speeds[key] += rates(call, shape.B * shape.T, seconds, counts[key], wait)
            if world.first:
                say(f"{shape} {key[0]} {key[1]} turn {turn + 1}: {speeds[key][-1]:,.0f} bytes/s")
    rows = []
    for (loop, case), values in speeds.items():
        about = loop.columns() | {"case": case, "metric": "throughput", "unit": "bytes/s"}
        rows.append(complete(size | about | quantiles(values)))
    if options.device_used.type == "cuda":
        for loop, peak in found:
            about = loop.columns() | {"case": "loader", "metric": "peak_memory", "unit": "MiB"}
            rows.append(complete(size | about | quantiles([peak])))
    return rows


def _nothing() -> None:
    """A CPU is not waited for."""


def wrong(options: argparse.Namespace, shape: Shape, corpus: Corpus) -> list[str]:
    """What is wrong with our update at this H, one line for each way to run it."""
    found = []
    small = shape._replace(B=min(shape.B, GATE_BATCH))
    for dtype in options.dtypes:
        for backend in options.backends:
            try:
                gate(configuration(options, small, dtype, backend), corpus, options.device_used)
            except Exception as error:  # a wrong result or a kernel that does not run: nothing to time
                found.append(f"{dtype} {backend}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, for our update")
    parser.add_argument("--data", type=Path, required=True, help="corpus folder (from fastlstm prepare)")
    parser.add_argument("--recipe", default="carvalho2018")
    parser.add_argument("--shapes", nargs="+", type=parse_shape, metavar="HxBxT", default=SHAPES)
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp16", "fp32"), help="ours; default bf16, CPU fp32")
    parser.add_argument("--baselines", nargs="+", choices=("bf16", "fp16", "fp32"), help="nn.LSTM's; default bf16 fp16")
    parser.add_argument("--backends", nargs="+", default=["auto"], help="of our LSTM, as run.backend")
    parser.add_argument(
        "--plain", nargs="+", choices=("eager", "graph", "none"), default=["eager"], help="nn.LSTM loop"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing a contestant and case")
    parser.add_argument("--turns", type=int, default=2, help="in how many turns")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", help="for the results; default: what git says")
    parser.add_argument("--out", type=Path, default=RESULTS / "train.csv")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu measures on the CPU")
    options.dtypes = options.dtypes or (["bf16"] if on_gpu else ["fp32"])
    options.baselines = options.baselines or (["bf16", "fp16"] if on_gpu else ["fp32"])
    options.plain = [mode for mode in options.plain if mode == "eager" or (mode == "graph" and on_gpu)]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    corpus, failed = Corpus(options.data), False
    with processes(torch.device(options.device)) as (world, device):
        options.device_used = device
        about = machine(options.device, options.commit)
        for shape in options.shapes:
            problems = wrong(options, shape, corpus) if world.size == 1 else []
            for problem in problems:
                say(f"{shape}: NOT TIMED, {problem}")
            failed = failed or bool(problems)
            if problems:
                continue
            rows = measure(options, shape, contestants(options, shape, corpus, world), world)
            gc.collect()
            if world.first:
                save(options.out, (row | about for row in rows))
                for row in rows:
                    names = (
                        "case",
                        "contestant",
                        "version",
                        "dtype",
                        "mode",
                        "H",
                        "B",
                        "T",
                        "metric",
                        "median",
                        "unit",
                    )
                    say(" ".join(row[name] for name in names))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
