"""Where the time of an update goes: with and without the loader, by part, by kernel."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from fastlstm.corpus.shards import Corpus
from fastlstm.files import write_whole
from fastlstm.training.config import TrainConfig, resolved
from fastlstm.training.distributed import processes
from fastlstm.training.start import Training, choose_device, start
from fastlstm.training.step import PARTS

FILE = "profile.json"
UPDATES = {"cuda": 100, "cpu": 2}
MOST_KERNELS = 20
LONGEST_NAME = 70
BACKLOG_CYCLES = 40_000_000  # the GPU sleeps about 20 ms while an update's kernels are queued one by one


@dataclass(frozen=True)
class Kernel:
    """A kernel (on a CPU, an operator): how often an update calls it, and milliseconds an update in all calls."""

    name: str
    calls: float
    milliseconds: float


@dataclass(frozen=True)
class Profile:
    """An update's time in milliseconds.

    ``fed``: as training runs it, a new window each time; ``alone``: without the loader, the same window again;
    ``parts``: the same work kernel by kernel, split at PARTS; ``peak_memory`` in MiB, None on a CPU.
    """

    title: str
    fed: float
    alone: float
    bytes_per_second: float
    peak_memory: float | None
    parts: dict[str, float]
    kernels: list[Kernel]

    def table(self) -> str:
        """The tables that ``fastlstm train --profile`` prints."""
        whole = sum(self.parts.values())
        lines = [
            self.title,
            f"{'with the loader':24}{self.fed:10.3f} ms  {self.bytes_per_second:,.0f} bytes/s",
            f"{'without':24}{self.alone:10.3f} ms",
        ]
        if self.peak_memory is not None:
            lines.append(f"{'peak memory':24}{self.peak_memory:10,.0f} MiB")
        lines += ["", f"{'part':24}{'ms':>10}{'share':>9}"]
        lines += [f"{name:24}{ms:10.3f}{ms / whole:9.1%}" for name, ms in self.parts.items()]
        total = sum(kernel.milliseconds for kernel in self.kernels)
        lines += ["", f"{'kernel':{LONGEST_NAME}}{'calls':>8}{'ms':>10}{'share':>9}"]
        lines += [
            f"{kernel.name[: LONGEST_NAME - 1]:{LONGEST_NAME}}{kernel.calls:8.1f}{kernel.milliseconds:10.3f}"
            f"{kernel.milliseconds / total:9.1%}"
            for kernel in self.kernels[:MOST_KERNELS]
        ]
        return "\n".join(lines)


def profile_run(config: TrainConfig, corpus_folder: Path, run: Path) -> Profile:
    """Measure updates from the untrained model and write ``run/profile.json``; no weights are kept."""
    with processes(choose_device(config.run.device)) as (world, device):
        config = resolved(config, device)
        profile = measure(start(config, Corpus(corpus_folder), device, world), config)
        if world.first:
            run.mkdir(parents=True, exist_ok=True)
            write_whole(run / FILE, (json.dumps(dataclasses.asdict(profile), indent=2) + "\n").encode())
        return profile


def measure(training: Training, config: TrainConfig) -> Profile:
    """The profile of ``training``'s update; its weights are changed by some hundred updates."""
    step, feed = training.step, training.feed
    device = step.packet.block.device
    count = UPDATES[device.type]
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else _nothing

    def fed(number: int) -> None:
        if feed.load(number):
            step.zero_state()
        step()

    fed(0)
    wait()
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    milliseconds = [_time(run, count, wait) for run in (fed, lambda _: step())]
    size = config.data.batch_size * config.data.window
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Profile(
        title=f"an update of H={config.model.hidden_size} B={config.data.batch_size} T={config.data.window} "
        f"in {config.optimizer.precision} on {name}; LSTM: {step.choice()}",
        fed=milliseconds[0],
        alone=milliseconds[1],
        bytes_per_second=1e3 * size / milliseconds[0],
        peak_memory=memory,
        parts=_parts(training, max(1, count // 10)),
        kernels=_kernels(training, max(1, count // 10)),
    )


def _nothing() -> None:
    """A CPU is not waited for."""


def _time(run: Callable[[int], None], count: int, wait: Callable[[], None]) -> float:
    run(1)
    wait()
    begin = time.perf_counter()
    for number in range(count):
        run(2 + number)
    wait()
    return 1e3 * (time.perf_counter() - begin) / count


def _parts(training: Training, count: int) -> dict[str, float]:
    """Milliseconds of each of PARTS, medians of ``count`` updates run kernel by kernel."""
    step, device = training.step, training.step.packet.block.device
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(1 + count):
        marks: list[Any] = []
        if device.type == "cuda":
            torch.cuda._sleep(BACKLOG_CYCLES)  # type: ignore[no-untyped-call]

        def mark(part: str, marks: list[Any] = marks) -> None:
            if device.type == "cuda":
                event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                event.record()
                marks.append(event)
            else:
                marks.append(time.perf_counter())

        mark("begin")
        step.run(mark)
        if device.type == "cuda":
            torch.cuda.synchronize()
            spans = [begin.elapsed_time(end) for begin, end in pairwise(marks)]
        else:
            spans = [1e3 * (end - begin) for begin, end in pairwise(marks)]
        for part, span in zip(PARTS, spans, strict=True):
            times[part].append(span)
    return {part: sorted(values[1:])[count // 2] for part, values in times.items()}  # the first warms up


def _kernels(training: Training, count: int) -> list[Kernel]:
    """What the profiler of torch saw in ``count`` updates as training runs them, the longest first."""
    on_gpu = training.step.packet.block.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds, acc_events=True) as profiler:
        for _ in range(count):
            training.step()
        if on_gpu:
            torch.cuda.synchronize()
    found: list[Kernel] = []
    for event in profiler.key_averages():
        of_gpu = event.device_type.name != "CPU"
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if of_gpu == on_gpu and microseconds > 0:
            found.append(Kernel(event.key, event.count / count, microseconds / 1e3 / count))
    return sorted(found, key=lambda kernel: -kernel.milliseconds)
