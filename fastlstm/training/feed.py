"""From the shards to the device: what one update reads, in one block of bytes that one copy moves.

On a GPU the block of the next update is cut into pinned memory and copied on a stream of its own while the GPU still
works on the ones before: the host is about two updates ahead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastlstm.corpus.batches import TrainReader

ALIGNMENT = 128  # bytes


class Packet:
    """What one update reads, parts of ``block``, bytes on ``device``.

    ``ids`` (T + 1, B) uint8, each row the targets of the one before; ``resets`` (T, B) bool or None; ``rate`` ()
    float64.
    """

    def __init__(self, T: int, B: int, resets: bool, device: torch.device | str, *, pinned: bool = False) -> None:
        sizes = [(T + 1) * B, T * B if resets else 0, 8]
        padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        self.block = torch.zeros(sum(padded), dtype=torch.uint8, device=device, pin_memory=pinned)
        parts = torch.split(self.block, padded)
        ids, flags, rate = (part[:size] for part, size in zip(parts, sizes, strict=True))
        self.ids = ids.view(T + 1, B)
        self.resets = flags.view(torch.bool).view(T, B) if resets else None
        self.rate = rate.view(torch.float64)[0]


class _Slot:
    """A packet in pinned memory, its copy on the GPU, and the events after which each may be written again."""

    def __init__(self, T: int, B: int, resets: bool, device: torch.device) -> None:
        self.host = Packet(T, B, resets, "cpu", pinned=True)
        self.block = torch.empty_like(self.host.block, device=device)
        self.arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self.taken = torch.cuda.Event()  # type: ignore[no-untyped-call]


class Feed:
    """Fills ``packet`` for one update after another; ``rate`` gives the learning rate of an update."""

    def __init__(self, reader: TrainReader, packet: Packet, rate: Callable[[int], float]) -> None:
        self._reader = reader
        self._packet = packet
        self._rate = rate
        self._slots: list[_Slot] = []
        T, B, device = packet.ids.shape[0] - 1, packet.ids.shape[1], packet.block.device
        if device.type == "cuda":
            self._slots = [_Slot(T, B, packet.resets is not None, device) for _ in range(2)]
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def load(self, step: int) -> bool:
        """Queue the window of ``step`` into the packet; whether the state starts from zero before it."""
        if not self._slots:
            return self._write(step, self._packet)
        slot = self._slots[step % 2]
        slot.arrived.synchronize()
        from_zero = self._write(step, slot.host)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.taken)
            slot.block.copy_(slot.host.block, non_blocking=True)
            slot.arrived.record(self._stream)
        main = torch.cuda.current_stream(slot.block.device)
        main.wait_event(slot.arrived)
        self._packet.block.copy_(slot.block)
        slot.taken.record(main)
        return from_zero

    def _write(self, step: int, packet: Packet) -> bool:
        packet.rate.fill_(self._rate(step))
        resets = None if packet.resets is None else packet.resets.numpy()
        return self._reader.fill(step, packet.ids.numpy(), resets)
