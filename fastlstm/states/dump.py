"""``dump``: a checkpoint reads a text, and the states of its cells become a store."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from fastlstm.corpus.shards import Corpus
from fastlstm.errors import InputError
from fastlstm.files import only_writer
from fastlstm.states.extraction import Extraction
from fastlstm.states.plan import Unit, plan_units
from fastlstm.states.progress import Carry, remove_progress
from fastlstm.states.reader import open_states
from fastlstm.states.rows import COUNT_BYTES, RowRule
from fastlstm.states.schema import (
    BLOCK_VALUES,
    FORMAT_VERSION,
    STATE_RULES,
    STORED_DTYPES,
    ModelAttributes,
    StateRule,
    StoreAttributes,
    StoredDtype,
    TextAttributes,
)
from fastlstm.states.text import Integers, Text, choose_splits, open_text
from fastlstm.states.writer import StoreWriter, Stream, find_store
from fastlstm.training.checkpoint import load_model
from fastlstm.training.start import choose_device
from fastlstm.version import __version__

MAX_BATCH_SIZE = 1 << 16


@dataclass(frozen=True)
class DumpSummary:
    """rows, text_bytes: of the store. seconds: of this call. already_complete: nothing was to be done."""

    rows: int
    text_bytes: int
    seconds: float
    already_complete: bool


def dump(
    checkpoint: str | Path,
    corpus_folder: str | Path,
    out: str | Path,
    *,
    rows: str = "all",
    units: Sequence[int] | None = None,
    dtype: StoredDtype = "float16",
    state: StateRule = "document",
    splits: Sequence[str] | None = None,
    documents: int | None = None,
    untrained: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    progress: bool = True,
) -> DumpSummary:
    """Write the cell states of a model that reads a corpus to the states store ``out`` (`schema.py`).

    ``checkpoint``: a checkpoint or run folder; ``untrained`` takes the weights that its run started from.
    ``rows``: which bytes, "all", "document", "word" or "every:K" (`rows.py`). ``units``: which cells, None = all.
    ``state``: "document" starts every document at zero; "running" carries the state through all documents in
    order, a batch of 1 (slow). ``splits``: None = all there are; ``documents``: the first so many of each.
    ``batch_size``: lanes of text that are read together, at most 65,536.

    Killed at any moment, the same call goes on from where it was seconds before and ends with the same bytes (on
    the same kind of machine with the same number of threads). A finished store of the same input is left as it is;
    an unfinished one of other input is begun anew if not a row of it counts yet.

    Memory, beside the model, the store's indices (about 100 bytes a document, 17 an annotated word) and 150 MB for a
    window of the recurrence: the rows of a unit, at most batch_size * min(8192, max(1024, 2^21 / H)) * U values of
    ``dtype``, and two chunks of 4096 * U. A longer document is read in windows, so its length does not matter.

    Raises InputError: wrong arguments; something else at ``out`` (naming what differs); another process that writes
    ``out``; a state that ``dtype`` cannot hold (naming document, byte, unit and value). Raises OSError naming the
    store on a full disk; the store stays resumable.
    """
    started = time.perf_counter()
    rule = RowRule.parse(rows)
    _check_choice("state", state, STATE_RULES)
    _check_choice("dtype", dtype, STORED_DTYPES)
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise InputError(f"batch_size: expected 1 to {MAX_BATCH_SIZE}, got {batch_size}")
    model, info = load_model(checkpoint, untrained=untrained)
    chosen = _check_units(units, info.hidden_size)
    corpus = Corpus(corpus_folder)
    taken = choose_splits(corpus, splits)
    attributes = StoreAttributes(
        format_version=FORMAT_VERSION,
        model=ModelAttributes(info.sha256, info.step, info.hidden_size, untrained),
        text=TextAttributes(
            sha256=corpus.sha256,
            kind=corpus.manifest.kind,
            label_meaning=corpus.manifest.label_meaning,
            tagset=corpus.manifest.tagset,
            synthetic=corpus.manifest.synthetic,
            splits=taken,
            documents=documents,
        ),
        rows=str(rule),
        units=chosen,
        state=state,
        dtype=dtype,
        batch_size=batch_size if state == "document" else 1,
        versions={"fastlstm": __version__, "torch": torch.__version__, "zarr": importlib.metadata.version("zarr")},
        complete=False,
    )
    out = Path(out)
    with only_writer(out.resolve()):
        if find_store(out, attributes) == "finished":
            remove_progress(out)  # left by a kill at the very end
            store = open_states(out)
            return DumpSummary(store.rows, int(store.document_offset[-1]), time.perf_counter() - started, True)

        text = open_text(corpus, taken, documents)
        row_offset = rule.row_offset(text)
        if row_offset[-1] == 0:
            raise InputError(f"rows: {rule} picks no byte of {corpus.folder}")
        columns = np.arange(info.hidden_size) if chosen is None else np.array(chosen)
        extraction = Extraction(
            model=model.to(choose_device(device)),
            text=text,
            rule=rule,
            columns=None if chosen is None else torch.from_numpy(columns),
            dtype=dtype,
        )
        plan = list(plan_units(text.document_offset, row_offset, batch_size, info.hidden_size))
        # Whatever can be wrong with the arguments has been found: only now is anything written.
        writer = StoreWriter(out, attributes, rows=int(row_offset[-1]), arrays=_arrays(text, rule, row_offset, columns))
        _read_on(extraction, writer, plan, attributes, progress)
        writer.finish()
    return DumpSummary(writer.rows, len(text), time.perf_counter() - started, False)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name}: expected {' or '.join(choices)}, got {value!r}")


def _check_units(units: Sequence[int] | None, hidden_size: int) -> tuple[int, ...] | None:
    if units is None:
        return None
    chosen = tuple(int(unit) for unit in units)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"units: expected different cells, at least one, got {list(chosen)}")
    for unit in chosen:
        if not 0 <= unit < hidden_size:
            raise InputError(f"units: expected 0 to {hidden_size - 1}, got {unit}")
    return chosen


def _arrays(text: Text, rule: RowRule, row_offset: Integers, units: Integers) -> dict[str, npt.NDArray[Any] | Stream]:
    """Everything of a store but the states."""

    def row_positions() -> Iterator[Integers]:
        return (rule.positions(text, start, stop) for start, stop in text.ranges(COUNT_BYTES))

    def row_bytes() -> Iterator[npt.NDArray[np.uint8]]:
        for start, stop in text.ranges(COUNT_BYTES):
            yield text.read(start, stop)[rule.positions(text, start, stop) - start]

    rows = int(row_offset[-1])
    ids = np.array([id_.encode("utf-8") for id_ in text.ids])
    arrays: dict[str, npt.NDArray[Any] | Stream] = {
        "position": Stream(rows, row_positions()),
        "byte": Stream(rows, row_bytes()),
        "units": units,
        "text": Stream(len(text), (text.read(start, stop) for start, stop in text.ranges(BLOCK_VALUES))),
        "document_offset": text.document_offset,
        "row_offset": row_offset,
        "document_label": text.label,
        "document_split": text.split,
        "document_id": ids.view(np.uint8).reshape(len(ids), -1),
    }
    if text.words is not None:
        arrays |= {
            "word_start": text.words.start,
            "word_end": text.words.end,
            "word_tag": text.words.tag,
        }
    return arrays


def _read_on(
    extraction: Extraction, writer: StoreWriter, plan: Sequence[Unit], attributes: StoreAttributes, progress: bool
) -> None:
    """Read what the store does not hold yet, under a progress bar."""
    running = attributes.state == "running"
    size = len(extraction.text)
    pending = [unit for unit in plan if unit.last_row > max(unit.first_row, writer.written)]
    begin = pending[0].start if pending else size
    if running:
        begin = 0 if writer.carry is None else writer.carry.position
    with tqdm(total=size, initial=begin, unit="B", unit_scale=True, desc="dump", disable=not progress) as bar:
        if running:
            _dump_running(extraction, writer, bar.update)
        else:
            _dump_documents(extraction, writer, pending, attributes.batch_size, bar.update)


def _dump_documents(
    extraction: Extraction,
    writer: StoreWriter,
    units: Sequence[Unit],
    batch_size: int,
    advance: Callable[[int], object],
) -> None:
    """Every document from zero; ``advance`` is told how many bytes have been read since it was called last."""
    on_disk = writer.written
    for unit in units:
        row = unit.first_row
        if unit.last - unit.first > 1:
            writer.append(extraction.packed(unit, batch_size, advance)[max(0, on_disk - row) :])
            continue
        for window in extraction.stream(unit.start, unit.stop):
            writer.append(window.values[max(0, on_disk - row) :])
            row += len(window.values)
            advance(window.stop - window.start)


def _dump_running(extraction: Extraction, writer: StoreWriter, advance: Callable[[int], object]) -> None:
    """One state through the whole text; ``advance`` as for `_dump_documents`."""
    on_disk, carry = writer.written, writer.carry
    row, position, state = (0, 0, None) if carry is None else (carry.row, carry.position, (carry.h, carry.c))
    for window in extraction.stream(position, len(extraction.text), state):
        before = None if window.state is None else Carry(window.start, row, *window.state)
        # A chunk that is written now ends inside this window: the next row is reached again from `before`.
        writer.append(window.values[max(0, on_disk - row) :], before)
        row += len(window.values)
        advance(window.stop - window.start)
