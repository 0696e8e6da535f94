"""``dump --verify``: is a finished store what its model and text say, and are its bytes what was written?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from tqdm import tqdm

from fastlstm.module import State
from fastlstm.states.extraction import Extraction
from fastlstm.states.reader import States
from fastlstm.states.rows import COUNT_BYTES
from fastlstm.states.schema import StoreAttributes
from fastlstm.states.storage import Storage

# In a batch, or on another machine, a state is summed in another order, and its last bits differ: up to 8.2 eps of the
# largest state of a document were measured (H = 128 with weights three times a new model's, float32, a CPU).
ROUNDINGS = 64
RUNNING_BYTES = 1 << 16  # of a running state, which can only be read from the start


@dataclass(frozen=True)
class Verified:
    """chunks: with a right checksum. documents, rows: read again. problems: one line for each, none if all is well."""

    chunks: int
    documents: int
    rows: int
    problems: tuple[str, ...]


def verify_checksums(store: Storage, show: bool) -> tuple[int, list[str]]:
    """Read every chunk through Zarr, which checks its CRC-32C: how many there are, and what is wrong."""
    root = zarr.open_group(store.zarr(read_only=True), mode="r", zarr_format=3)
    arrays = [(name, item) for name, item in root.members(max_depth=1) if isinstance(item, zarr.Array)]
    total = sum(array.nbytes for _, array in arrays)
    chunks, problems = 0, []
    with tqdm(total=total, unit="B", unit_scale=True, desc="checksums", disable=not show) as bar:
        for name, array in arrays:
            rows = array.shards[0] if array.shards else array.chunks[0] if array.shape else 1
            for start in range(0, array.shape[0], rows):
                try:
                    values = np.asarray(array[start : start + rows])
                except (ValueError, OSError) as error:
                    problems.append(f"{name}, rows {start} to {start + rows}: {' '.join(str(error).split())}")
                    continue
                if name == "states" and not np.isfinite(values).all():
                    problems.append(f"{name}, rows {start} to {start + rows}: a chunk is missing")
                chunks += int(np.prod([-(-n // c) for n, c in zip(values.shape, array.chunks, strict=True)]))
                bar.update(values.nbytes)
    return chunks, problems


def verify_rows(states: States, extraction: Extraction, documents: int) -> tuple[int, int, list[str]]:
    """Read some documents again, one at a time: how many documents and rows were compared, and what is wrong."""
    text, rule = extraction.text, extraction.rule
    problems = []
    for start, stop in text.ranges(COUNT_BYTES):
        first, last = np.searchsorted(states.position, (start, stop))
        if not np.array_equal(states.position[first:last], rule.positions(text, start, stop)):
            problems.append(f"position: the rows of bytes {start} to {stop} are not those of {rule}")
        if not np.array_equal(states.text[start:stop], text.read(start, stop)):
            problems.append(f"text: bytes {start} to {stop} are not the corpus's")
    if problems:
        return 0, 0, problems
    rows = 0
    chosen = _chosen(extraction, documents)
    for document, again in zip(chosen, _read_again(extraction, chosen), strict=True):
        first, last = (int(row) for row in extraction.row_offset[document : document + 2])
        stored = states.read(first, last)
        eps = max(torch.finfo(extraction.dtype).eps, torch.finfo(extraction.model.head.weight.dtype).eps)
        difference = np.abs(stored - again).max(initial=0)
        allowed = ROUNDINGS * eps * max(1.0, float(np.abs(again).max(initial=0)))
        if not difference <= allowed:
            problems.append(
                f"document {text.ids[document]!r}, rows {first} to {last}: states differ by {difference:.3g}, at most "
                f"{allowed:.3g} was expected"
            )
        rows += last - first
    return len(chosen), rows, problems


def _chosen(extraction: Extraction, documents: int) -> list[int]:
    """Documents with rows: drawn at random, or of a running state the first ones."""
    offset = extraction.text.document_offset
    if extraction.running:
        return list(range(max(1, min(documents, int(np.searchsorted(offset[1:], RUNNING_BYTES))))))
    with_rows = np.flatnonzero(np.diff(extraction.row_offset))
    count = min(documents, len(with_rows))
    return sorted(np.random.default_rng().choice(with_rows, count, replace=False).tolist())


def _read_again(extraction: Extraction, documents: list[int]) -> Iterator[npt.NDArray[Any]]:
    """The rows (n, U) float32 of each document, which is read alone."""
    text, rule = extraction.text, extraction.rule
    state: State | None = None
    for document in documents:
        begin, end = (int(offset) for offset in text.document_offset[document : document + 2])
        ids = torch.from_numpy(text.read(begin, end)).unsqueeze(1).to(extraction.device)
        cells, state = extraction.model.cells(
            ids, state if extraction.running else None, units=extraction.columns, dtype=torch.float32
        )
        values = cells[:, 0].cpu().numpy()
        positions = rule.positions(text, begin, end) - begin
        if not rule.mean:
            yield values[positions]
            continue
        begins = rule.begins(text, begin, end)[: len(positions)] - begin
        yield np.stack([values[a : b + 1].mean(0) for a, b in zip(begins, positions, strict=True)])


def verify(
    store: Storage, extraction: Extraction, attributes: StoreAttributes, *, documents: int, show: bool
) -> Verified:
    """Check every checksum of a finished store, its text and positions, and read ``documents`` of it again.

    Each time others are drawn.
    """
    chunks, problems = verify_checksums(store, show)
    read = rows = 0
    if "states" in attributes.keeps and not problems:
        read, rows, problems = verify_rows(States(store, attributes), extraction, documents)
    return Verified(chunks, read, rows, tuple(problems))
