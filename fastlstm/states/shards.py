"""From the rows of a group on the model's device to shards in the store: nothing waits that need not, nothing grows.

The rows of a group are brought into the order of their files on the device, in one of two buffers; a writing thread
takes a shard of it, on a GPU through two pinned pieces of its own (one is filled while the other is written), and
writes it as one file. While threads write one group, the model reads the next into the other buffer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from fastlstm.states.layout import Layout
from fastlstm.states.packing import Packed, Window
from fastlstm.states.schema import STORED_DTYPES
from fastlstm.states.storage import Block, Storage
from fastlstm_kernels.rows import put_rows_

BUFFERS = 2
PIECE_BYTES = 1 << 24  # of a copy to the host, or a block if that is more
LARGEST: dict[str, float] = {name: torch.finfo(getattr(torch, name)).max for name in STORED_DTYPES}


class UnfitError(Exception):
    """A row of ``buffer`` is not what the dtype can hold."""

    def __init__(self, buffer: GroupBuffer) -> None:
        super().__init__("a state is not finite, or beyond its dtype")
        self.buffer = buffer


class GroupBuffer:
    """The rows first_row:last_row of a store's states, in the order of their files, on the model's device."""

    def __init__(self, layout: Layout, rows: int, device: torch.device) -> None:
        blocks = -(-rows // layout.block_rows)
        dtype = getattr(torch, layout.dtype.name)
        self._layout = layout
        self._whole = torch.empty((blocks, *layout.block_shape), dtype=dtype, device=device)
        self._largest = LARGEST[layout.dtype.name]
        self._unfit = torch.zeros(1, dtype=torch.int32, device=device)
        self.event: torch.cuda.Event | None = None

    def begin(self, first_row: int, last_row: int) -> None:
        """Make room for these rows: the first of a shard, and its last or the last of all."""
        self.first_row, self.last_row = first_row, last_row
        count = last_row - first_row
        self._blocks = -(-count // self._layout.block_rows)
        if count % self._layout.block_rows:
            self._whole[self._blocks - 1].fill_(float("nan"))  # Zarr's fill value, past the end of the array
        self._unfit.zero_()

    def take(self, cells: Tensor, packed: Packed, window: Window) -> None:
        """Put the rows among the states of a window where they belong."""
        self.put(cells.flatten(0, 1), *packed.rows(window))

    def put(self, cells: Tensor, where: Tensor | None, row: Tensor) -> None:
        """Rows ``where`` (m,) int64 of ``cells`` (n, U), None = all, are the rows ``row`` (m,) int64 of the group."""
        put_rows_(self._whole, self._unfit, cells, where, row, self._largest)

    def check(self) -> None:
        """`UnfitError` if a row is not what the dtype can hold: not finite, or beyond ``LARGEST``."""
        if self._unfit.item():
            raise UnfitError(self)

    def find_unfit(self) -> tuple[int, int, float]:
        """The first row (of the store) that is not what the dtype can hold, its first such column, and the value."""
        block_rows = self._layout.block_rows
        for block in range(self._blocks):
            first = self.first_row + block * block_rows
            values = self._whole[block].transpose(0, 1).flatten(1)[: self.last_row - first, : self._layout.units]
            if len(wrong := (~(values.abs() <= self._largest)).nonzero()):
                row, column = wrong[0].tolist()
                return first + row, column, float(values[row, column])
        raise AssertionError("every row fits")

    def shards(self) -> range:
        """The shards of the store that are here."""
        shard_rows = self._layout.shard_rows
        return range(self.first_row // shard_rows, -(-self.last_row // shard_rows))

    def blocks(self, shard: int) -> Tensor:
        """The blocks of a shard that have rows, (blocks, columns, block_rows, block_units)."""
        first = shard * self._layout.shard_blocks - self.first_row // self._layout.block_rows
        return self._whole[first : min(first + self._layout.shard_blocks, self._blocks)]


class _Pinned(threading.local):
    """Of each writing thread: two pieces of pinned memory, and a stream to fill them on."""

    def __init__(self) -> None:
        self.slots: list[Tensor] = []
        self.stream: torch.cuda.Stream | None = None


class ShardWriters:
    """``threads`` threads that write the shards of finished groups."""

    def __init__(self, storage: Storage, layout: Layout | None, threads: int, device: torch.device) -> None:
        self._storage = storage
        self._device = device
        self._layout = layout
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shards")
        self._pinned = _Pinned()

    def fetch(self, tensors: dict[str, Tensor], event: torch.cuda.Event | None) -> Future[None]:
        """Begin to replace small ``tensors``, ready at ``event``, by copies in the host's memory."""
        return self._pool.submit(self._fetch, tensors, event)

    def _fetch(self, tensors: dict[str, Tensor], event: torch.cuda.Event | None) -> None:
        with self._stream_after(event):
            for name, tensor in tensors.items():
                tensors[name] = tensor.cpu()

    def write(self, buffer: GroupBuffer) -> list[Future[None]]:
        """Begin to write every shard of ``buffer``, which must not change until the last of them is done."""
        return [self._pool.submit(self._write, buffer, shard) for shard in buffer.shards()]

    def _write(self, buffer: GroupBuffer, shard: int) -> None:
        assert self._layout is not None
        with self._stream_after(buffer.event):
            buffer.check()
            blocks = buffer.blocks(shard)
            on_host = self._on_host(blocks) if blocks.device.type == "cuda" else iter(blocks.numpy())
            self._storage.write_shard(shard, self._layout, on_host)

    def _on_host(self, blocks: Tensor) -> Iterator[Block]:
        slots = self._pinned.slots
        at_once = max(1, PIECE_BYTES // (blocks[0].numel() * blocks.element_size()))
        if not slots:
            shape = (at_once, *blocks.shape[1:])
            slots += [torch.empty(shape, dtype=blocks.dtype, pin_memory=True) for _ in range(2)]
        pieces = torch.split(blocks, at_once)

        def copy(i: int) -> torch.cuda.Event:
            slots[i % 2][: len(pieces[i])].copy_(pieces[i], non_blocking=True)
            event: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
            return event

        copied = copy(0)
        for i, piece in enumerate(pieces):
            copied.synchronize()
            if i + 1 < len(pieces):
                copied = copy(i + 1)
            yield from slots[i % 2][: len(piece)].numpy()

    @contextmanager
    def _stream_after(self, event: torch.cuda.Event | None) -> Iterator[None]:
        """On a GPU, on a stream of this thread's own, after ``event``."""
        if event is None:
            yield
            return
        if self._pinned.stream is None:
            self._pinned.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream = self._pinned.stream
        stream.wait_event(event)
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            yield

    def close(self, *, cancel: bool) -> None:
        """Wait for the threads; with ``cancel`` shards that are not begun are left out."""
        self._pool.shutdown(cancel_futures=cancel)
