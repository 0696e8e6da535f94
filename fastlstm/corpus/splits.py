"""Which split a document belongs to: by hash of what must not be divided (a product, an article)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fastlstm.errors import InputError


def key_hash(key: str) -> int:
    """First 64 bits of the sha256 of a key."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big")


@dataclass(frozen=True)
class Fractions:
    """Shares of the text held out: valid and test, each in [0, 1), together below 1. The rest is train."""

    valid: float
    test: float

    def __post_init__(self) -> None:
        if not (0 <= self.valid < 1 and 0 <= self.test < 1 and self.valid + self.test < 1):
            raise InputError(
                f"valid_fraction {self.valid}, test_fraction {self.test}: expected each at least 0, together below 1"
            )


class HashSplits:
    """Split by the hash alone: a key has its split whatever else the corpus holds."""

    def __init__(self, fractions: Fractions) -> None:
        self._test_below = fractions.test * 2.0**64
        self._valid_below = (fractions.test + fractions.valid) * 2.0**64

    def __call__(self, key: int) -> str:
        return "test" if key < self._test_below else "valid" if key < self._valid_below else "train"


class CountedSplits:
    """Split of a small corpus, whose keys are too few for shares by hash alone.

    counts: documents per key hash. In the order of their hashes, keys go to test, then to valid, while
    they fit into its share of documents (rounded up); a split in which none fits gets the key with the
    fewest documents. So no split with a share is empty when there are three keys or more.
    """

    def __init__(self, counts: Mapping[int, int], fractions: Fractions) -> None:
        self._split: dict[int, str] = {}
        total = sum(counts.values())
        free = sorted(counts)
        for split, fraction in (("test", fractions.test), ("valid", fractions.valid)):
            room = math.ceil(total * fraction)
            left_for_others = 2 if split == "test" and fractions.valid else 1
            taken: set[int] = set()
            for key in free[: max(0, len(free) - left_for_others)]:
                if counts[key] <= room:
                    room -= counts[key]
                    taken.add(key)
            if not taken and room and len(free) > left_for_others:
                taken = {min(free, key=lambda key: (counts[key], key))}
            free = [key for key in free if key not in taken]
            self._split.update(dict.fromkeys(taken, split))

    def __call__(self, key: int) -> str:
        return self._split.get(key, "train")
