"""When a run ends before its last step: at a time limit, or when it is told to by SIGTERM or SIGUSR1.

A preemptible machine sends one of the two before it goes away; the run then writes a checkpoint and ends well.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fastlstm.training.distributed import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EVERY = 10  # updates between the moments at which several processes ask each other
TIME_LIMIT = 1


class Limits:
    """Ask after every update; ``seconds`` None is no limit of time."""

    def __init__(self, seconds: float | None, world: World) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._signal = 0
        self._world = world

    def told(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        self._signal = number

    def reached(self, step: int) -> str | None:
        """Why the run should end after ``step`` updates, the same for every process; None to go on."""
        if self._world.size > 1 and step % EVERY:
            return None
        # A signal's number is above that of the time limit.
        late = self._end is not None and time.monotonic() >= self._end
        reason = self._world.largest(self._signal or (TIME_LIMIT if late else 0))
        if reason == 0:
            return None
        return "the time limit" if reason == TIME_LIMIT else signal.Signals(reason).name


@contextmanager
def limits(seconds: float | None, world: World) -> Iterator[Limits]:
    """Limits that hear the signals, as long as they are open; only the main thread can hear."""
    limit = Limits(seconds, world)
    if threading.current_thread() is not threading.main_thread():
        yield limit
        return
    before = {number: signal.signal(number, limit.told) for number in SIGNALS}
    try:
        yield limit
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
