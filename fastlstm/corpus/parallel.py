"""An ordered map over processes with a bounded look-ahead: a stream of any length needs little memory."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

from fastlstm.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def worker_count(workers: int | None, small: bool) -> int:
    """`workers` as asked; by default 1 for a small job (a process takes a second to start), else all cores."""
    if workers is None:
        return 1 if small else len(os.sched_getaffinity(0))
    if workers < 1:
        raise InputError(f"workers: got {workers}, expected at least 1")
    return workers


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """function(item) for every item, in order; in `workers` fresh processes if more than one.

    At most 3 results per worker wait to be taken. `function` must be importable by name; a script that
    calls this with workers > 1 needs the usual `if __name__ == "__main__":`.
    """
    if workers == 1:
        yield from map(function, items)
        return
    # Not forked from this process, which may hold threads (progress bars, BLAS), nor spawned, which imports
    # everything once per worker: forked from a fresh process that has imported what `function` needs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastlstm.corpus.prepare"])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End a worker whose parent was killed: else it waits for work for ever, for its siblings hold the pipe too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
