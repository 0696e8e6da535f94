"""Making things in a thread, a few ahead of their use."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator
from typing import TypeVar

Item = TypeVar("Item")

LOOK = 0.1  # seconds between looks at whether anybody still wants what is made


def ahead(source: Generator[Item], count: int, name: str) -> Generator[Item]:
    """The items of ``source``, of which up to ``count`` wait ready; all of it runs in a thread called ``name``.

    What it raises is raised here. When this generator is closed, ``source`` is closed and the thread has ended.
    """
    items: queue.Queue[tuple[Item] | BaseException | None] = queue.Queue(count)
    stopped = threading.Event()

    def put(item: tuple[Item] | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=LOOK)
                return

    def make() -> None:
        try:
            with contextlib.closing(source):
                for item in source:
                    put((item,))
                    if stopped.is_set():
                        return
            put(None)
        except BaseException as error:  # handed to who waits, whatever it is
            put(error)

    thread = threading.Thread(target=make, name=name, daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        stopped.set()
        thread.join()
