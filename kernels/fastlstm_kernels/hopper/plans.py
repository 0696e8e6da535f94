"""How the Hopper kernels divide a batch: which of the compiled kernels runs, how often, over how many blocks.

Blocks that share sequences are a group; as many groups run side by side as the 128 blocks that a launch may have hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MOST_BLOCKS = 128  # of the H100's 132 multiprocessors: pairs, and groups of a power of two
MULTIPLE, LARGEST = 256, 2048
COMPILED_SIZES = (1024, 1536, 2048)  # hidden sizes that are shipped compiled; NVRTC compiles the others when needed


@dataclass(frozen=True)
class Plan:
    """One compiled kernel: a group of blocks works in turn on ``subs`` sub-batches of ``width`` sequences."""

    kernel: str
    subs: int
    width: int

    @property
    def columns(self) -> int:
        """Sequences of a group."""
        return self.subs * self.width


# From few columns to many: the first that holds a group's sequences is taken.
FORWARD = (
    Plan("lstm_forward_2x16", 2, 16),
    Plan("lstm_forward_2x32", 2, 32),
    Plan("lstm_forward_2x64", 2, 64),
)
BACKWARD = (
    Plan("lstm_backward_2x16", 2, 16),
    Plan("lstm_backward_4x16", 4, 16),
    Plan("lstm_backward_4x32", 4, 32),
)


def blocks_of_a_group(H: int) -> int:
    """Forward a pair for every 32 units, backward 8 for every 128."""
    return H // 16


@dataclass(frozen=True)
class Launch:
    """Sequences ``begin`` to ``end`` by ``groups`` groups of blocks."""

    begin: int
    end: int
    groups: int


def divide(plans: tuple[Plan, ...], H: int, B: int) -> tuple[Plan, list[Launch]]:
    """The plan for ``B`` sequences, and its launches, one after the other."""
    most_groups = MOST_BLOCKS // blocks_of_a_group(H)
    plan = next((plan for plan in plans if plan.columns * most_groups >= B), plans[-1])
    return plan, list(_launches(plan.columns, most_groups, B))


def _launches(columns: int, most_groups: int, B: int) -> Iterator[Launch]:
    for begin in range(0, B, columns * most_groups):
        end = min(B, begin + columns * most_groups)
        yield Launch(begin, end, -(-(end - begin) // columns))


def size_refusal(H: int) -> str | None:
    """Why the kernels cannot run hidden size ``H``; None if they can."""
    if H % MULTIPLE or not 0 < H <= LARGEST:
        return f"they hold the weights of H = {MULTIPLE}, {2 * MULTIPLE}, ... {LARGEST} on the chip, and H is {H}"
    return None
