"""One LSTM layer against torch.nn.LSTM in fp16 and bf16 and against other kernels: rows of bench/results/lstm.csv.

    python bench/lstm.py --warm 12 --budget 240        # the grid, what matters most first, for four minutes
    python bench/lstm.py --shapes 2048x128x128         # H x B x T
    python bench/lstm.py --rivals                      # TorchRL and FlashRNN as well, at two shapes
    python bench/lstm.py --device cpu --shapes 512x16x32

First the layer is held against float64 at every H and B, with the tests' tolerance and T = 5; one that fails is not
timed. What is timed is a layer through its public module (see contestants.py) in bf16, and in fp16 too at the sizes
with a bar, where cuDNN keeps fp16 weights on the chip, and at single steps; `fastlstm-auto` is the layer left to its
own choice, where that is none of those timed anyway. `forward_infer` keeps every h_t alone, `forward_cells` every c_t
too, `forward_train` what the backward needs, `forward_backward` runs that as well. Times are the GPU's work alone (mode
`queued`); for single steps, which are given a state, the whole call too, in eager mode and as a CUDA graph. Rows are
saved after every shape. Then `python bench/tables.py --write` renews README's table and the plot.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench import rivals  # noqa: E402
from bench.contestants import (  # noqa: E402
    AUTO,
    CASES,
    DTYPES,
    RECOMPUTED,
    RECURRENCE,
    Contestant,
    Data,
    Shape,
    chosen,
    gate,
    ours,
    torch_lstm,
)
from bench.records import RESULTS, Row, complete, machine, quantiles, save  # noqa: E402
from bench.timing import Budget, Call, captured, peak_memory, time_queued, time_whole  # noqa: E402
from fastlstm_kernels.hopper.plans import COMPILED_SIZES  # noqa: E402
from fastlstm_kernels.launch import HOPPER  # noqa: E402

HIDDEN_SIZES = (2048, 1024, 4096, 512, 256)
BATCH_SIZES = (128, 512, 16, 1, 64, 2048)
STEPS = (128, 1, 512)
BARS = ((2048, 128), (1024, 128), (2048, 512), (4096, 128))
SMALL = (1, 16)
EVERY_CASE = (*CASES, RECOMPUTED, RECURRENCE)
WHOLE = ((2048, 128), (1024, 128))  # timed as whole calls and without the products around the recurrence too
CUDNN_PERSISTENT = (32, 1024)  # B and H
BAR_SHARE = 4  # how many times longer a size with a bar is timed
# Bytes for each of T x B x H of the hungriest case: input product and its gradient, gates, their gradient, cells, h.
BYTES_EACH = 40


def say(line: str) -> None:
    print(line, flush=True)


def has_bar(shape: Shape) -> bool:
    """Whether this is one of the sizes that the layer is judged by."""
    return shape.T == 128 and (shape.H, shape.B) in BARS


def is_whole(shape: Shape) -> bool:
    """Whether whole calls of many steps are timed, eager and as CUDA graphs, and parts of the backward alone."""
    return shape.T > 1 and (shape.H, shape.B) in WHOLE


def importance(shape: Shape) -> tuple[int, ...]:
    """Sorts the grid: sizes with a bar, then single sequences and small batches, then the rest, T = 512 last."""
    H, B, T = shape
    bar = BARS.index((H, B)) if (H, B) in BARS else len(BARS)
    tier = 0 if has_bar(shape) else 1 if B in SMALL and T != 512 else 2
    return tier, STEPS.index(T), bar, HIDDEN_SIZES.index(H), BATCH_SIZES.index(B)


def grid() -> list[Shape]:
    """Every size of the suite, the most important first."""
    return sorted(itertools.starmap(Shape, itertools.product(HIDDEN_SIZES, BATCH_SIZES, STEPS)), key=importance)


def parse_shape(text: str) -> Shape:
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"expected HxBxT, three positive numbers, got {text!r}")
    return Shape(*map(int, numbers))


def bytes_needed(shape: Shape) -> int:
    """About what the hungriest case allocates: what grows with T, and a handful of copies of the weights."""
    return BYTES_EACH * shape.T * shape.B * shape.H + 64 * shape.H * (shape.H + 256)


def affordable(shapes: Sequence[Shape], limit: float) -> Iterator[Shape]:
    """The shapes that need less than ``limit`` bytes; the others are named."""
    for shape in shapes:
        if bytes_needed(shape) <= limit:
            yield shape
        else:
            say(f"{shape}: left out, needs about {bytes_needed(shape) / 2**30:.1f} GiB of {limit / 2**30:.1f}")


class Layer(NamedTuple):
    """A way to run our layer: dtype, kind of input, and kernel."""

    dtype: str
    kind: str
    backend: str


def layers(options: argparse.Namespace, shape: Shape) -> list[Layer]:
    """What of ours is checked and timed at a size."""
    persistent = CUDNN_PERSISTENT[0] >= shape.B and CUDNN_PERSISTENT[1] >= shape.H
    dtypes = options.dtypes or (["bf16", "fp16"] if persistent or has_bar(shape) or shape.T == 1 else ["bf16"])
    every = itertools.starmap(Layer, itertools.product(dtypes, options.inputs, options.backends))
    either = has_bar(shape)
    compiled = shape.H in COMPILED_SIZES
    return [one for one in every if one.backend != "hopper" or (compiled and (either or one.dtype == "bf16"))]


def by_kernel(auto: Contestant, shape: Shape, timed: Collection[str]) -> Iterator[Contestant]:
    """The layer left to its own choice, for each kernel that it chooses in some case, unless that is timed anyway."""
    kernel_of = {case: chosen(shape, auto.dtype, case) for case in auto.calls}
    for kernel in sorted({*kernel_of.values()} - {*timed}):
        calls = {case: call for case, call in auto.calls.items() if kernel_of[case] == kernel}
        yield replace(auto, version=f"{auto.version} {kernel}", calls=calls)


def entrants(options: argparse.Namespace, shape: Shape, ways: Sequence[Layer]) -> list[Contestant]:
    """Our layer, in these ways and where it chooses none of them by itself, and nn.LSTM."""
    dtypes = dict.fromkeys(way.dtype for way in ways)
    data = {
        dtype: Data.draw(shape, DTYPES[dtype], options.device) for dtype in dict.fromkeys([*dtypes, *options.baselines])
    }
    contestants = [
        ours(
            *(shape, way.dtype, options.device, data[way.dtype]),
            backend=way.backend,
            ids=way.kind == "ids",
            parts=options.device == "cuda" and is_whole(shape),
        )
        for way in ways
    ]
    if options.device == "cuda" and "dense" in options.inputs:
        for dtype in dtypes:
            timed = {way.backend for way in ways if way[:2] == (dtype, "dense")}
            auto = ours(shape, dtype, options.device, data[dtype], backend=AUTO)
            contestants += by_kernel(auto, shape, timed)
    return contestants + [torch_lstm(shape, dtype, options.device, data[dtype]) for dtype in options.baselines]


def measure(shape: Shape, contestants: Sequence[Contestant], options: argparse.Namespace) -> list[Row]:
    """Rows of one shape: times a step, and on a GPU the peak memory and, at some shapes, whole calls."""
    size = {"suite": "lstm", "H": shape.H, "B": shape.B, "T": shape.T}
    by_name = {str(contestant): contestant for contestant in contestants}
    rows: list[Row] = []

    def add(case: str, mode: str, times: Mapping[str, list[float]]) -> None:
        for name, milliseconds in times.items():
            steps = quantiles([1e3 * call / shape.T for call in milliseconds])
            about = by_name[name].columns(case) | {"metric": "time_per_step", "unit": "us", "mode": mode}
            rows.append(complete(size | about | steps))

    for case in options.cases:
        calls = {name: one.calls[case] for name, one in by_name.items() if case in one.calls}
        if not calls:
            continue
        seconds = options.seconds * len(calls) * (BAR_SHARE if has_bar(shape) else 1)
        if options.device == "cpu":
            add(case, "eager", time_whole(calls, seconds, lambda: None))
            continue
        add(case, "queued", time_queued(calls, seconds))
        for name, call in calls.items():
            about = by_name[name].columns(case) | {"metric": "peak_memory", "unit": "MiB"}
            rows.append(complete(size | about | quantiles([peak_memory(call)])))
        if (shape.T == 1 and case == "forward_infer") or is_whole(shape):
            add(case, "eager", time_whole(calls, seconds, torch.cuda.synchronize))
            add(case, "graph", time_whole(graphs(calls, shape), seconds, torch.cuda.synchronize))
    return rows


def graphs(calls: Mapping[str, Call], shape: Shape) -> dict[str, Call]:
    """The calls as CUDA graphs; one that cannot be captured is named and left out."""
    replays = {}
    for name, call in calls.items():
        try:
            replays[name] = captured(call)
        except RuntimeError as error:
            say(f"{name} at {shape}: no CUDA graph, {rivals.first_line(error)}")
    return replays


def warm(job: tuple[Shape, str, list[Layer]]) -> str:
    """Compile the kernels of a shape into Triton's cache; what went wrong, or nothing."""
    shape, device, ways = job
    try:
        for way in ways:
            data = Data.draw(shape, DTYPES[way.dtype], device)
            contestant = ours(shape, way.dtype, device, data, backend=way.backend, ids=way.kind == "ids")
            for call in contestant.calls.values():
                call()
    except Exception as error:  # it will fail again, and count, when it is checked
        return f"{shape}: {rivals.first_line(error)}"
    return ""


def warm_up(options: argparse.Namespace, shapes: Sequence[Shape]) -> None:
    """Compile in several processes at once, since Triton takes seconds for a kernel; stops after --warm-seconds."""
    # One step has a kernel of its own, any other number another.
    sizes = dict.fromkeys(
        (shape._replace(T=min(shape.T, 2)), way) for shape in shapes for way in layers(options, shape)
    )
    jobs = [(shape, options.device, [way]) for shape, way in sizes]
    begin, done = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(min(options.warm, len(jobs))) as pool:
        results = pool.imap(warm, jobs)
        for _ in jobs:
            try:
                problem = results.next(max(0.0, begin + options.warm_seconds - time.monotonic()))
            except multiprocessing.TimeoutError:
                break
            done += 1
            if problem:
                say(f"compiling ahead: {problem}")
    say(f"compiled ahead: {done} of {len(jobs)} kernels in {time.monotonic() - begin:.0f} s")


def wrong(options: argparse.Namespace, shape: Shape, way: Layer) -> str:
    """What is wrong with our layer, run in this way, at this H and B; nothing if it is right."""
    try:
        gate(shape, way.dtype, options.device, backend=way.backend, ids=way.kind == "ids")
    except Exception as error:  # a wrong result, or a kernel that does not compile: either way nothing to time
        return f"{' '.join(way)}: {rivals.first_line(error)}"
    return ""


def run(options: argparse.Namespace, shape: Shape, ways: Sequence[Layer], failed: rivals.Failures) -> list[Row]:
    """Rows of one shape, the rivals' too; running out of memory is said and gives none."""
    try:
        contestants = entrants(options, shape, ways)
        if options.rivals:
            data = Data.draw(shape, torch.bfloat16, options.device)
            contestants += rivals.usable(shape, options.device, data, options.cases, failed, options.rival_seconds)
        return measure(shape, contestants, options)
    except torch.cuda.OutOfMemoryError as error:
        say(f"{shape}: left out, {rivals.first_line(error)}")
        return []


def report(rows: Sequence[Row]) -> None:
    for row in rows:
        if row["metric"] == "time_per_step":
            names = ("case", "contestant", "dtype", "input", "mode", "H", "B", "T", "median", "unit")
            say(" ".join(row[name] for name in names))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=parse_shape, metavar="HxBxT", help="default: the whole grid")
    parser.add_argument("--steps", nargs="+", type=int, metavar="T", help="of the shapes, these T only")
    parser.add_argument("--cases", nargs="+", choices=EVERY_CASE, default=EVERY_CASE)
    parser.add_argument("--inputs", nargs="+", choices=("dense", "ids"), default=("dense", "ids"), help="of our layer")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        help="of our layer; default: as above, on a CPU fp32",
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=("hopper", "triton", "torch"),
        help="of our layer; default: triton, and hopper where there is one, on a CPU torch",
    )
    parser.add_argument("--rivals", action="store_true", help="TorchRL and FlashRNN too, by default at two shapes")
    parser.add_argument("--rival-seconds", type=float, default=120.0, help="how long a rival may take to build and run")
    parser.add_argument("--rival-logs", type=Path, default=ROOT / "out" / "rivals", help="what their builds say")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="for the whole run")
    parser.add_argument("--seconds", type=float, default=0.08, help="of timing a contestant and case; a bar's, 4 times")
    parser.add_argument("--memory", type=float, metavar="GIB", help="default: 4/5 of the GPU's, on a CPU 2")
    parser.add_argument("--warm", type=int, default=0, metavar="N", help="compile in N processes before anything else")
    parser.add_argument("--warm-seconds", type=float, default=90.0, help="how long that may take at most")
    parser.add_argument("--commit", help="for the results; default: what git says")
    parser.add_argument("--out", type=Path, default=RESULTS / "lstm.csv")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu measures the layer on the CPU")
    if options.rivals and not on_gpu:
        parser.error("--rivals: they need a GPU")
    if not on_gpu:
        options.dtypes = options.dtypes or ["fp32"]
    options.baselines = ["fp16", "bf16"] if on_gpu else ["fp32"]
    has_hopper = on_gpu and torch.cuda.get_device_capability() == HOPPER
    options.backends = options.backends or (["hopper", "triton"] if has_hopper else ["triton" if on_gpu else "torch"])
    options.shapes = options.shapes or (list(rivals.SHAPES) if options.rivals else grid())
    if options.steps:
        options.shapes = [shape for shape in options.shapes if shape.T in options.steps]
    total = torch.cuda.get_device_properties(0).total_memory * 0.8 if on_gpu else 2 * 2**30
    options.memory = options.memory * 2**30 if options.memory else total
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    budget, about = Budget(options.budget), machine(options.device, options.commit)
    shapes = list(affordable(options.shapes, options.memory))
    if options.warm and shapes:
        warm_up(options, shapes)
    failed: rivals.Failures = {}
    if options.rivals:
        failed = rivals.try_all(shapes, options.cases, options.rival_seconds, options.rival_logs)
    verdicts: dict[tuple[int, int, Layer], str] = {}
    for shape in budget.fitting(shapes):
        ways = layers(options, shape)
        for way in ways:
            key = (shape.H, shape.B, way)
            if key not in verdicts:
                verdicts[key] = wrong(options, shape, way)
                if verdicts[key]:
                    say(f"{shape}: NOT TIMED, {verdicts[key]}")
        ways = [way for way in ways if not verdicts[shape.H, shape.B, way]]
        if not ways:
            continue
        rows = run(options, shape, ways, failed)
        save(options.out, (row | about for row in rows))
        report(rows)
    for (name, shape, case), reason in failed.items():
        say(f"{name} {case} at {shape}: {reason}")
    save(options.out, (row | about for row in rivals.without_number(failed)))
    if budget.left_out:
        say(f"the budget ended before {len(budget.left_out)} of {len(shapes)} shapes, first {budget.left_out[0]}")
    return 1 if any(verdicts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
