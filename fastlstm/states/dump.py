"""``dump``: a checkpoint reads a text, and the states of its cells become a store."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from fastlstm.corpus.shards import Corpus
from fastlstm.errors import InputError
from fastlstm.states.extraction import Extraction
from fastlstm.states.gather import joined, write_statistics
from fastlstm.states.jobs import Claims, Worker
from fastlstm.states.layout import Layout
from fastlstm.states.plan import GROUP_VALUES, MAX_GROUPS, PLAN, group_rows, plan_groups, plan_jobs
from fastlstm.states.progress import Progress
from fastlstm.states.reader import open_states
from fastlstm.states.reading import Reading
from fastlstm.states.rows import COUNT_BYTES, RowRule
from fastlstm.states.schema import (
    BLOCK_VALUES,
    FORMAT_VERSION,
    KEEPS,
    PRECISIONS,
    STATE_RULES,
    STORED_DTYPES,
    Keep,
    ModelAttributes,
    StateRule,
    StoreAttributes,
    StoredDtype,
    TextAttributes,
)
from fastlstm.states.statistics import open_statistics
from fastlstm.states.storage import LocalStorage, Storage, storage_at
from fastlstm.states.text import Integers, choose_splits, open_text
from fastlstm.states.verify import Verified
from fastlstm.states.verify import verify as verify_store
from fastlstm.states.writer import Stream, begin_store, find_store, finish_store
from fastlstm.training.checkpoint import load_model
from fastlstm.training.start import choose_device
from fastlstm.version import __version__

MAX_BATCH_SIZE = 1 << 16
MAX_THREADS = 8  # that write, unless asked for
WAIT = 1.0  # seconds between two looks at what other workers have done
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DumpSummary:
    """rows, text_bytes: of the store. seconds: of this call. already_complete: nothing was to be done.

    verified: what ``verify`` found.
    """

    rows: int
    text_bytes: int
    seconds: float
    already_complete: bool
    verified: Verified | None = None


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
    batch_size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    worker: Worker | None = None,
    threads: int | None = None,
    keep: Sequence[Keep] = ("states",),
    verify: int | None = None,
    progress: bool = True,
) -> DumpSummary:
    """Write the cell states of a model that reads a corpus to the states store ``out`` (`schema.py`).

    ``out``: a folder, or a URL of an object store. ``rows``: which bytes, "all", "document", "word" or "every:K", or
    means, "document-mean" or "word-mean" (`rows.py`). ``keep``: "states", "statistics" of the rows
    (`statistics.py`), or both. ``units``: which cells, None = all. ``state``: "document" starts every document at
    zero; "running" carries the state through all documents in order, a batch of 1 (slow). ``splits``: None = all there
    are; ``documents``: the first so many of each. ``batch_size``: lanes of text that are read together, at most 65,536;
    None: 128 on a GPU; on a CPU 64, or 16 with more than 512 cells. ``precision``: of weights and h, "fp32", "bf16",
    "fp16", or "auto": fp16 on a GPU (nearer to float32 weights than bf16), fp32 on a CPU. ``threads`` write files;
    None: one for each core, at most 8.

    ``verify``: write nothing, check a finished store of the same call: its checksums, and that many documents, drawn at
    random and read again.

    Any number of processes may be given the same call, at any time: each takes groups of rows that nobody has, waits
    for the others at the end and goes on for one that died. ``worker`` says where each begins (torchrun's RANK and
    WORLD_SIZE if None); in an object store, where nobody can tell who lives, it also keeps them apart.

    Killed at any moment, the same call goes on from the groups that are done and ends with the same bytes (on the same
    kind of machine with the same number of torch's threads), whatever the number of processes. A finished store of
    the same input is left as it is; an unfinished one of other input is begun anew if not a group of it is done.

    Memory, beside the model, the store's indices (about 100 bytes a document, 17 an annotated word) and a window of the
    recurrence (100 MB on a CPU, 2 GB on a GPU): two groups on the model's device, each of at most 2^26 states (on a
    GPU 2^31; U for each row) of ``dtype``, or of 65,536 rows; with a GPU also two pinned pieces of 16 MiB, or of 4096
    rows, for each of ``threads``. Statistics take 7 * batch_size * U values of 8 bytes and a batch's documents (of at
    most batch_size * 16 KiB of text, on a GPU 32) * U more, means a batch's documents or words * U of 4. Documents may
    be of any length.

    Raises InputError: wrong arguments; something else at ``out`` (naming what differs); a state that ``dtype`` cannot
    hold (naming document, byte, unit and value). Raises OSError naming the store on a full disk; the store stays
    resumable.
    """
    started = time.perf_counter()
    rule = RowRule.parse(rows)
    _check_choice("state", state, STATE_RULES)
    _check_choice("dtype", dtype, STORED_DTYPES)
    _check_choice("precision", precision, ("auto", *PRECISIONS))
    if batch_size is not None and not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise InputError(f"batch_size: expected 1 to {MAX_BATCH_SIZE}, got {batch_size}")
    if threads is not None and threads < 1:
        raise InputError(f"threads: expected >= 1, got {threads}")
    keeps = tuple(choice for choice in KEEPS if choice in keep)
    for choice in keep:
        _check_choice("keep", choice, KEEPS)
    if not keeps:
        raise InputError(f"keep: expected {' or '.join(KEEPS)}, got nothing")
    if "statistics" in keeps and (rule.mean or state == "running"):
        raise InputError(f"keep: statistics are of single states from zero, not of {rule if rule.mean else state} rows")
    if verify is not None and verify < 1:
        raise InputError(f"verify: expected >= 1 documents, got {verify}")
    worker = Worker.of_torchrun() if worker is None else worker
    on = _device(device)
    model, info = load_model(checkpoint, untrained=untrained)
    chosen = _check_units(units, info.hidden_size)
    corpus = Corpus(corpus_folder)
    taken = choose_splits(corpus, splits)
    if state == "running":
        batch_size = 1
    elif batch_size is None:
        batch_size = 128 if on.type == "cuda" else (64 if info.hidden_size <= 512 else 16)
    if precision == "auto":
        precision = "fp16" if on.type == "cuda" else "fp32"
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
        batch_size=batch_size,
        versions=_versions(on),
        complete=False,
        precision=precision,
        keeps=keeps,
    )
    store = storage_at(out)
    with store.alone():
        already = find_store(store, attributes) == "finished"
    if verify is not None and not already:
        raise InputError(f"{store}: expected a finished store to verify")
    if verify is not None or not already:
        text = open_text(corpus, taken, documents)
        row_offset = rule.row_offset(text)
        if row_offset[-1] == 0:
            raise InputError(f"rows: {rule} picks no byte of {corpus.folder}")
        columns = np.arange(info.hidden_size) if chosen is None else np.array(chosen)
        extraction = Extraction(
            model=model.to(on, DTYPES[precision]),
            text=text,
            rule=rule,
            row_offset=row_offset,
            running=state == "running",
            columns=None if chosen is None else torch.from_numpy(columns).to(on),
            dtype=getattr(torch, dtype),
            batch_size=batch_size,
            statistics="statistics" in keeps,
            tags=len(corpus.manifest.tagset or ()),
        )
    verified = None
    if verify is not None:
        verified = verify_store(store, extraction, attributes, documents=verify, show=progress)
    elif not already:
        # Whatever can be wrong with the arguments has been found: only now is anything written.
        with_threads = min(MAX_THREADS, os.cpu_count() or 1) if threads is None else threads
        _write(store, attributes, extraction, columns, worker, with_threads, progress)
    with store.alone():
        Progress(store).remove()  # of a kill at the very end, maybe another worker's
    if verified is not None and verified.problems:
        return DumpSummary(0, 0, time.perf_counter() - started, already, verified)
    if "states" not in keeps:
        text_bytes = len(open_text(corpus, taken, documents))
        return DumpSummary(open_statistics(out).count, text_bytes, time.perf_counter() - started, already, verified)
    states = open_states(out)
    return DumpSummary(states.rows, int(states.document_offset[-1]), time.perf_counter() - started, already, verified)


def _write(
    store: Storage,
    attributes: StoreAttributes,
    extraction: Extraction,
    columns: Integers,
    worker: Worker,
    threads: int,
    show: bool,
) -> None:
    """Begin the store or join those who write it, until it is complete."""
    progress = Progress(store)
    total = int(extraction.row_offset[-1])
    whole = Layout.of(total, len(columns), attributes.dtype)
    layout = whole if "states" in attributes.keeps else None
    with store.alone():
        found = find_store(store, attributes)
        if found == "nothing" and (worker.index == 0 or isinstance(store, LocalStorage)):
            arrays = {"units": columns} if layout is None else _arrays(extraction, columns)
            begin_store(store, attributes, arrays, layout)
    while find_store(store, attributes) == "nothing":
        time.sleep(WAIT)  # the first worker begins it
    units = 0 if layout is None else len(columns)
    rows_at_once = group_rows(
        len(extraction.text),
        total,
        units,
        limit=extraction.batch_bytes,
        values=GROUP_VALUES[extraction.device.type],
        shard_rows=whole.shard_rows,
    )
    if layout is None:
        rows_at_once *= -(-total // (rows_at_once * MAX_GROUPS))
    groups = plan_groups(extraction.document_offset, extraction.read_row_offset, extraction.position, rows_at_once)
    reading = Reading(
        extraction, store, progress, layout, units=len(columns), rows_at_once=rows_at_once, threads=threads
    )
    claims = Claims(progress, groups, plan_jobs(groups), worker)
    done = progress.groups()
    sizes = [group.stop - group.start for group in groups]
    begun = sum(size for group, size in enumerate(sizes) if group in done)
    failed = True
    try:
        with tqdm(total=sum(sizes), initial=begun, unit="B", unit_scale=True, desc="dump", disable=not show) as bar:
            while find_store(store, attributes) == "unfinished":
                reading.read(claims, bar.update)
                with store.alone():
                    if find_store(store, attributes) == "unfinished" and len(progress.groups()) == len(groups):
                        if extraction.statistics:
                            found_in = (progress.left_by(group.index) for group in groups)
                            write_statistics(store, joined(found_in), extraction.text, extraction.position)
                        finish_store(store, attributes)
                        continue
                time.sleep(WAIT)  # other workers are still writing
        failed = False
    finally:
        reading.close(cancel=failed)  # before: who claims next must not meet our threads
        claims.close()


def _device(name: str) -> torch.device:
    """`choose_device`, and of several GPUs that of torchrun's LOCAL_RANK."""
    device = choose_device(name)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def _versions(device: torch.device) -> dict[str, str]:
    """What the last bits of a state depend on beside model, text and batch size."""
    versions = {"fastlstm": __version__, "torch": torch.__version__, "zarr": importlib.metadata.version("zarr")}
    versions["plan"] = PLAN
    return versions if device.type == "cuda" else versions | {"threads": str(torch.get_num_threads())}


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


def _arrays(extraction: Extraction, units: Integers) -> dict[str, npt.NDArray[Any] | Stream]:
    """Everything of a store but the states."""
    text, rule, row_offset = extraction.text, extraction.rule, extraction.row_offset

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
