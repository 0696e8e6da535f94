"""How large a tile each kernel works on: tables by size, not a search at run time.

Every row was the fastest of about ten tiles on an NVIDIA H200 (torch 2.11.0+cu130, triton 3.6.0, bfloat16), in
microseconds a step at the H and B named; rows marked (e) are estimates from their neighbours. NOTES.md has the rest.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

AnyTile = TypeVar("AnyTile", "Tile", "SmallTile")


@dataclass(frozen=True)
class Tile:
    """One program's share of a step, and how it is compiled.

    ``block_b`` sequences by ``block_h`` units, ``block_k`` of the summed dimension at a time; ``stages`` of loads in
    flight; ``warps`` of 32 threads; ``split``: programs that share one tile's sum (backward only); ``serpentine``:
    every other step sums in reverse, for weights that outgrow the L2 cache; ``input_stages`` of loads in flight in the
    product of dense inputs, whose buffers are free again when that of h needs them (forward only).
    """

    block_b: int
    block_h: int
    block_k: int
    stages: int
    warps: int
    split: int = 1
    serpentine: bool = False
    input_stages: int = 4


@dataclass(frozen=True)
class SmallTile:
    """One program's share of the small-batch kernel: ``block_b`` sequences by ``block_h`` units.

    ``warps`` of 32 threads share the sum over h; ``peek``: look whether the first part of h_{t-1} is there before
    asking for the rest.
    """

    block_b: int
    block_h: int
    warps: int
    peek: bool = False


@dataclass(frozen=True)
class Row(Generic[AnyTile]):
    """``tile`` for up to B sequences and up to H units; the first row that covers a size is taken."""

    B: float
    H: float
    tile: AnyTile


ANY = float("inf")

FORWARD = (
    Row(16, 1024, Tile(16, 8, 256, 3, 4)),  # 1024x16: 3.6; 16x16x128 4.2
    Row(16, 2048, Tile(16, 16, 128, 4, 4)),  # 2048x16: 6.7 with one barrier for all, as 6 stages 7.1; 3 stages 7.1
    Row(16, ANY, Tile(16, 32, 128, 4, 8, serpentine=True)),  # 4096x16: 30.2; without serpentine 34.4
    Row(64, 1024, Tile(64, 8, 64, 6, 4)),  # 1024x64: 4.9; 64x16x128 5.1
    Row(64, 2048, Tile(64, 16, 64, 6, 4)),  # (e) 128 programs; 64x32 leaves half the chip idle: 13.1
    Row(128, 512, Tile(64, 8, 64, 6, 4)),  # 512x128: 5.4; 64x16x128 5.6
    Row(128, 1024, Tile(64, 16, 128, 4, 4)),  # 1024x128: 5.7; 128x16x64 7.7
    Row(128, 2048, Tile(64, 32, 64, 4, 8)),  # 2048x128: 13.2; 128x16x64 14.4
    Row(128, ANY, Tile(128, 32, 64, 6, 8, serpentine=True)),  # 4096x128: 39.3; without serpentine 43.9
    Row(512, 512, Tile(64, 32, 64, 4, 8)),  # 512x512: 6.4; 128x16x64 6.7
    Row(512, 1024, Tile(128, 32, 64, 4, 8)),  # 1024x512: 12.6; 128x16x64 16.1
    Row(ANY, 512, Tile(128, 32, 64, 4, 8)),  # 512x2048: 18.2; 128x64x64 19.0
    # 2048x512: 34.2; 256x32x64 41.6. 2048x2048: 142; 256x32x64 167. Four input stages spill more.
    Row(ANY, ANY, Tile(128, 64, 64, 4, 8, input_stages=3)),
)

# NVIDIA H100, kernel alone, T = 128: of up to eleven tiles at each of H = 256, 512, 1024 and B = 1, 16, 32. Weights of
# 1024 units are all that registers hold.
SMALL_BATCH = (
    Row(64, 256, SmallTile(8, 16, 4)),  # 256x1: 0.87; x16: 0.88, 16x8 1.16; x32: 0.89; x64: 0.97, 16x8 1.34
    Row(32, 512, SmallTile(8, 16, 4)),  # 512x1: 1.10, 8x8 1.34; x16: 1.22, 16x16 w8 1.47; x32: 1.25
    Row(16, 1024, SmallTile(8, 16, 8)),  # 1024x1: 1.50; x8: 2.03, 1.82 with peek; x16: 1.66, 16x16 2.06, 1.77 with peek
    Row(32, 1024, SmallTile(16, 16, 8, peek=True)),  # 1024x32: 2.46, at T = 512 2.36; without peek 2.44, 2.60
)

# Without `split`, which fills the multiprocessors.
BACKWARD = (
    Row(16, 1024, Tile(16, 64, 128, 4, 4)),  # 1024x16: 4.8
    Row(16, ANY, Tile(16, 128, 64, 6, 4)),  # 2048x16: 7.9; 16x64x128 9.0. 4096x16: 35.7
    Row(64, 1024, Tile(64, 64, 64, 6, 4)),  # 1024x64: 6.7; 64x64x128 7.4
    Row(64, 2048, Tile(64, 128, 64, 4, 8)),  # 2048x64: 11.0
    Row(64, ANY, Tile(64, 128, 64, 4, 8, serpentine=True)),  # 4096x64: 36.8; without serpentine 39.6
    Row(128, 512, Tile(64, 64, 64, 6, 4)),  # 512x128: 6.1; 64x64x128 6.8
    Row(128, 1024, Tile(128, 64, 64, 4, 8)),  # 1024x128: 7.5
    Row(128, 2048, Tile(64, 128, 64, 6, 8)),  # 2048x128: 15.0; with 4 stages 16.4; 128x64x64 17.0
    Row(512, 512, Tile(64, 64, 128, 4, 8)),  # 512x512: 8.9
    Row(512, 1024, Tile(64, 128, 64, 4, 8)),  # 1024x512: 18.2
    Row(512, ANY, Tile(128, 128, 64, 4, 8)),  # 2048x512: 48.2; 4096x128: 49.3; 4096x512: 144
    Row(ANY, 512, Tile(64, 128, 64, 4, 8)),  # 512x2048: 24.2
    Row(ANY, 1024, Tile(128, 128, 64, 4, 8)),  # 1024x2048: 59
    Row(ANY, ANY, Tile(128, 256, 64, 4, 8)),  # 2048x2048: 163; 128x128x64 180. 4096x2048: 570
)

HOPPER = (9, 0)
PROGRAMS = 128
LEAST_K = 16  # of a product on tensor cores
MOST_SPLIT = 16
SMALL_MULTIPLE = 8  # of H, for the small-batch kernel: elements in a load of 16 bytes


def forward_tile(H: int, B: int, dtype: torch.dtype, capability: tuple[int, int] = HOPPER) -> Tile:
    """The forward's tile; float32, and GPUs with less shared memory than Hopper's, take small ones (not tuned)."""
    if dtype == torch.float32:
        return Tile(16 if B <= 16 else 64, 16, 32, 3, 4, input_stages=1)  # more of them spill
    if capability < HOPPER:
        return Tile(16 if B <= 16 else 64, 16, 64, 3, 4)
    return next(row.tile for row in FORWARD if B <= row.B and H <= row.H)


def small_batch_tile(
    H: int, B: int, dtype: torch.dtype, capability: tuple[int, int] = HOPPER, resident: int = PROGRAMS
) -> SmallTile | None:
    """The small-batch kernel's tile, or None where it does not serve: its programs must run at the same time."""
    if dtype == torch.float32 or capability < HOPPER or H % SMALL_MULTIPLE:
        return None
    tile = next((row.tile for row in SMALL_BATCH if B <= row.B and H <= row.H), None)
    return None if tile is None or small_batch_programs(H, B, tile) > resident else tile


def small_batch_programs(H: int, B: int, tile: SmallTile) -> int:
    """Programs of one launch of the small-batch kernel."""
    return -(-B // tile.block_b) * -(-H // tile.block_h)


def tile_of_call(
    T: int, H: int, B: int, dtype: torch.dtype, device: torch.device, *, fused: bool = False
) -> Tile | SmallTile:
    """The forward's tile on a device, with ``fused`` one that multiplies dense inputs itself.

    One step alone has nothing to wait for, which is what small tiles are for.
    """
    tile = _tile if torch.compiler.is_compiling() else _remembered_tile
    return tile(H, B, dtype, device, T > 1 and not fused)


def _tile(H: int, B: int, dtype: torch.dtype, device: torch.device, several_steps: bool) -> Tile | SmallTile:
    capability = capability_of(device)
    resident = resident_programs(device) if device.type == "cuda" else PROGRAMS
    small = small_batch_tile(H, B, dtype, capability, resident) if several_steps else None
    return small or forward_tile(H, B, dtype, capability)


def fuses_inputs(I: int, T: int, H: int, B: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the forward multiplies dense inputs of I features by itself, before each step waits for the one before.

    Else one large product does it for all steps, (T, B, 4H), which many features or sequences keep busy (e), and which
    the small-batch kernel reads. A single step of few features is spared the launch of another product.
    """
    if T == 1:
        return I <= 512
    return min(512, H // 2) >= I and B <= 512 and isinstance(tile_of_call(T, H, B, dtype, device), Tile)


def input_block(weight_ih: torch.Tensor | None, tile: Tile) -> tuple[int | None, int | None]:
    """I of ``weight_ih`` (4H, I), and how many features the forward multiplies at a time; None without it."""
    if weight_ih is None:
        return None, None
    features = weight_ih.shape[1]
    return features, min(tile.block_k, max(LEAST_K, 1 << (features - 1).bit_length()))


def backward_tile(H: int, B: int, dtype: torch.dtype, capability: tuple[int, int] = HOPPER) -> Tile:
    """The backward's tile, its sum split over as many programs as fill the multiprocessors."""
    if dtype == torch.float32:
        tile = Tile(16 if B <= 16 else 64, 32, 32, 3, 4)
    elif capability < HOPPER:
        tile = Tile(16 if B <= 16 else 64, 64, 64, 3, 4)
    else:
        tile = next(row.tile for row in BACKWARD if B <= row.B and H <= row.H)
    tiles = -(-B // tile.block_b) * -(-H // tile.block_h)
    return replace(tile, split=min(MOST_SPLIT, _power_of_two(PROGRAMS // tiles)))


def finish_tile(H: int, B: int, tile: Tile) -> tuple[int, int]:
    """Sequences and units whose pointwise gradient one program of the backward finishes: about 1/128 of all."""
    units = min(64, max(16, 1 << (H - 1).bit_length()))
    return min(32, tile.block_b, _power_of_two(B * H // (PROGRAMS * units))), units


def _power_of_two(n: int) -> int:
    """The largest power of two up to n, at least 1."""
    return 1 << max(0, n.bit_length() - 1)


def resident_programs(device: torch.device) -> int:
    """Programs that are sure to run at the same time: one on each multiprocessor."""
    return _multiprocessors(device) if torch.compiler.is_compiling() else _remembered_multiprocessors(device)


def capability_of(device: torch.device) -> tuple[int, int]:
    """The GPU's compute capability; for a CPU, where the interpreter runs, Hopper's."""
    if device.type != "cuda":
        return HOPPER
    if torch.compiler.is_compiling():
        return torch.cuda.get_device_capability(device)
    return _remembered_capability(device)


def _multiprocessors(device: torch.device) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


# torch.compile warns of what remembers.
_remembered_tile = functools.lru_cache(maxsize=4096)(_tile)
_remembered_multiprocessors = functools.cache(_multiprocessors)
_remembered_capability = functools.cache(torch.cuda.get_device_capability)


def dot_precision(dtype: torch.dtype) -> str:
    """Full float32 products unless torch may use TensorFloat-32 for its own."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return "ieee"
