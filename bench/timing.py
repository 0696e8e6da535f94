"""Clocks: the GPU's work alone, whole calls, peak memory; contestants in turns, so that clocks drift for all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

Item = TypeVar("Item")
Call = Callable[[], object]
WARM_UP = 2
LEAST_ROUNDS, MOST_ROUNDS = 5, 50
# torch.cuda._sleep counts clock cycles: at an H200's highest clock this many are a second, at lower clocks more.
CYCLES_A_SECOND = 2e9
LONGEST_BACKLOG = 0.1  # seconds


def rounds_within(seconds: float, round_seconds: float) -> int:
    """How many rounds to time, if one takes ``round_seconds``."""
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / max(round_seconds, 1e-9))))


def time_queued(calls: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of GPU work of each call, for about ``seconds`` in all.

    A call is queued while the GPU waits, so that the host's time to launch it stays out; a queue holds about 1,000
    launches, so in a call with more the host may still be what is measured.
    """
    backlog, turns = {}, []
    for name, call in calls.items():
        for _ in range(WARM_UP):
            call()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        launched = time.perf_counter() - begin
        torch.cuda.synchronize()
        backlog[name] = min(LONGEST_BACKLOG, 2e-4 + 1.3 * launched)
        turns.append(time.perf_counter() - begin + backlog[name])
    rounds = rounds_within(seconds, sum(turns))
    times: dict[str, list[float]] = {name: [] for name in calls}
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(rounds):
        for name, call in calls.items():
            torch.cuda._sleep(int(backlog[name] * CYCLES_A_SECOND))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end))
    return times


def time_whole(calls: Mapping[str, Call], seconds: float, wait: Call) -> dict[str, list[float]]:
    """Milliseconds from each call until ``wait`` (for the device) returns, for about ``seconds`` in all.

    Each timed call comes right after one of its own that is not: a user's loop makes one call again and again, while
    contestants in turns leave the host's caches to one another, up to 90 us of a call that takes 170.
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    wait()

    def turn(call: Call) -> float:
        call()
        wait()
        begin = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - begin

    rounds = rounds_within(seconds, 2 * sum(turn(call) for call in calls.values()))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(1e3 * turn(call))
    return times


def captured(call: Call) -> Call:
    """The replay of ``call``, captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    held = (call, output)  # what the graph reads and writes must not be freed and given to others

    def replay() -> object:
        graph.replay()
        return held[1]

    return replay


def peak_memory(call: Call) -> float:
    """MiB that one call allocates beyond what was there before it, its results included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del output
    return peak / 2**20


def peak_resident() -> float:
    """MiB that this process held at most; getrusage's ru_maxrss begins with what the process held that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Budget:
    """Yields what fits into ``seconds``: nothing is started that would not end in time if it took as long as lately.

    ``left_out`` holds what was not started.
    """

    RECENT = 5

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._begin = clock()
        self.left_out: list[object] = []

    def left(self) -> float:
        """Seconds that remain."""
        return self._seconds - (self._clock() - self._begin)

    def fitting(self, items: Sequence[Item]) -> Iterator[Item]:
        durations: list[float] = []
        for k, item in enumerate(items):
            expected = statistics.median(durations[-self.RECENT :]) if durations else 0.0
            if self.left() <= expected:
                self.left_out.extend(items[k:])
                return
            begin = self._clock()
            yield item
            durations.append(self._clock() - begin)
