"""Which groups this process reads: those of jobs that are not done and that no other process reads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastlstm.errors import InputError
from fastlstm.states.plan import Group
from fastlstm.states.progress import Progress


@dataclass(frozen=True)
class Worker:
    """This process is number ``index`` (from 0) of ``count`` that work on the same store."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise InputError(f"worker: expected K/N with 0 <= K < N, got {self.index}/{self.count}")

    @classmethod
    def of_torchrun(cls) -> Worker:
        """As torchrun's environment says; alone without it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @classmethod
    def parse(cls, text: str) -> Worker:
        """From "K/N"; InputError if it is not."""
        index, slash, count = text.partition("/")
        if not (slash and index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
            raise InputError(f"worker: expected K/N, for example 0/4, got {text!r}")
        return cls(int(index), int(count))

    def order(self, jobs: int) -> list[int]:
        """Its own share first; then the others' backwards, so that who helps meets who is helped only once."""
        first, last = (share * jobs // self.count for share in (self.index, self.index + 1))
        return [*range(first, last), *reversed([*range(first), *range(last, jobs)])]


class Claims:
    """The groups that this process may read now, in order; each claim is held until its groups are done.

    Iterated in one thread, told of what is done by another.
    """

    def __init__(self, progress: Progress, groups: Sequence[Group], jobs: Sequence[range], worker: Worker) -> None:
        self._progress = progress
        self._groups = groups
        self._jobs = jobs
        self._order = worker.order(len(jobs))
        self._held: dict[int, tuple[contextlib.ExitStack, set[int]]] = {}
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Group]:
        done = self._progress.groups()
        for job in self._order:
            if done.issuperset(self._jobs[job]):
                continue
            stack = contextlib.ExitStack()
            if not stack.enter_context(self._progress.claim(job)):
                stack.close()
                continue
            missing = self._progress.unfinished_groups(self._jobs[job])  # without what the last holder did
            if not missing:
                stack.close()
                continue
            with self._lock:
                self._held[job] = (stack, set(missing))
            yield from (self._groups[index] for index in missing)

    def done(self, group: int) -> None:
        """``group`` is marked as done."""
        with self._lock:
            for job, (stack, missing) in list(self._held.items()):
                missing.discard(group)
                if not missing:
                    stack.close()
                    del self._held[job]

    def close(self) -> None:
        """Give back what is not done."""
        with self._lock:
            for stack, _ in self._held.values():
                stack.close()
            self._held.clear()
