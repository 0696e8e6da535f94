"""How large a tile each kernel works on: a table by size, not a search at run time."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """One program's share of a step, and how it is compiled.

    ``block_b`` sequences by ``block_h`` units, ``block_k`` of the summed dimension at a time; ``stages`` of loads in
    flight; ``warps`` of 32 threads; ``early``: the step's inputs are loaded before the wait for the step before (they
    occupy registers through the product); ``split``: programs that share one tile's sum (backward only).
    """

    block_b: int
    block_h: int
    block_k: int
    stages: int
    warps: int
    early: bool = True
    split: int = 1


def forward_tile(H: int, B: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(16 if B <= 16 else 64, 16, 32, 3, 4)
    if B <= 16:
        return Tile(16, 16, 128, 4, 4)
    return Tile(128, 16, 64, 4, 8)


def backward_tile(H: int, B: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return Tile(16 if B <= 16 else 64, 32, 32, 3, 4, split=2)
    if B <= 16:
        return Tile(16, 64, 128, 4, 4, split=4)
    return Tile(128, 64, 64, 4, 8, split=4)


def resident_programs(device: torch.device) -> int:
    """Programs that are sure to run at the same time: one on each multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def dot_precision(dtype: torch.dtype) -> str:
    """Full float32 products unless torch may use TensorFloat-32 for its own."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "ieee"
