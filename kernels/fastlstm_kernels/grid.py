"""A barrier for all programs of one cooperative launch.

A counter in global memory, zero at launch, only grows: each program adds one when it has arrived, and waits until the
counter has reached its target. Nothing is ever reset while the kernel runs, so no program can be overtaken.
"""
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrive(counter):
    """Publish what this program has written, and count it as arrived."""
    tl.debug_barrier()  # every thread's stores come before the release of the one that adds
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target):
    """Block until ``target`` arrivals; afterwards what they published can be read."""
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < target:
        pass
    tl.debug_barrier()
