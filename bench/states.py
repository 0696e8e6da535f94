"""Bulk cell states: dumps beside raw writing of the same bytes, reading beside raw reading, and the GPU's side alone.

    python bench/states.py --data CORPUS                                  # one GPU, H = 2048
    python bench/states.py --data CORPUS --device cpu --hidden 128 --mib 256

A model with random weights reads as many documents as give about --mib of states (fp16, every cell, every byte). Raw
writing has as many threads as the dump, files of a shard's size, and fsync after each, as the dump has. Dump and raw
take turns. Rows of bench/results/states.csv, suite `states`; mode says where: `disk`, `tmpfs`, or `memory`:

    write       the whole call of dump, and raw: stored bytes a second; text_rate: bytes of text a second
    writer      the writing threads alone, from states that are there already
    pinned      what the GPU delivers to pinned memory, nothing written
    units       16 chosen cells of every byte; last: the last state of every document; statistics: of every cell over
                all bytes, no states: bytes of text a second
    scan, unit  all rows in order; one cell over all rows, in ms; from the page cache
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench.lstm import say  # noqa: E402
from bench.records import RESULTS, Row, complete, machine, quantiles, save  # noqa: E402
from fastlstm.corpus.shards import Corpus  # noqa: E402
from fastlstm.model import ByteLM  # noqa: E402
from fastlstm.states import dump as dump_module  # noqa: E402
from fastlstm.states.dump import DumpSummary, dump  # noqa: E402
from fastlstm.states.layout import Layout, shard_name  # noqa: E402
from fastlstm.states.reader import States, open_states  # noqa: E402
from fastlstm.states.shards import GroupBuffer, ShardWriters  # noqa: E402
from fastlstm.states.storage import LocalStorage  # noqa: E402
from fastlstm.training.checkpoint import TrainingState, load_model, save_checkpoint  # noqa: E402
from fastlstm.training.config import DTYPES, ModelConfig, TrainConfig  # noqa: E402
from fastlstm_kernels.reference import lstm_forward  # noqa: E402
from tolerance import assert_as_good_as  # noqa: E402

MIB = 2**20
CHECKED = 512  # bytes of the first document that are held against float64
CHOSEN = 16  # cells
PIECE = 16 * MIB  # of a raw write or read


class Discarding(LocalStorage):
    """Shards are asked for, block after block, and dropped."""

    def write_shard(self, shard: int, layout: Layout, blocks: Any) -> None:
        for _ in blocks:
            pass


def checkpoint(folder: Path, hidden_size: int) -> Path:
    config = TrainConfig(model=ModelConfig(hidden_size=hidden_size))
    zero = torch.zeros(1, 1, hidden_size)
    state = TrainingState(1, "0" * 64, config, (zero, zero.clone()), {})
    return save_checkpoint(folder, ByteLM(hidden_size, seed=0), state, keep=1)


def documents_for(corpus: Corpus, size: int) -> int:
    """How many documents of each split hold about ``size`` bytes in all."""
    shards = [entry for split in ("train", "valid", "test") for entry in corpus.shards(split)]
    documents, length = sum(entry.documents for entry in shards), sum(entry.bytes for entry in shards)
    splits = sum(bool(corpus.shards(split)) for split in ("train", "valid", "test"))
    return max(1, round(size / (length / documents) / splits))


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="states-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seconds_of(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def write_raw(folder: Path, sizes: Sequence[int], threads: int) -> None:
    """A file of each size, durable, from memory that holds one piece."""
    piece = np.random.default_rng(0).integers(0, 256, PIECE, dtype=np.uint8)

    def one(number: int, size: int) -> None:
        with (folder / f"{number}.raw").open("wb", buffering=0) as file:
            left = size
            while left:
                left -= file.write(memoryview(piece)[: min(left, PIECE)])
            os.fsync(file.fileno())

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(len(sizes)), sizes))


def read_raw(paths: Sequence[Path]) -> None:
    buffer = bytearray(PIECE)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def check(store: States, model: Path) -> None:
    """The states of the first document's beginning, as good as those of the plain loop in their precision."""
    stop = min(CHECKED, int(store.row_offset[1]))
    ids = torch.from_numpy(store.text[:stop].copy()).unsqueeze(1)

    def cells(dtype: torch.dtype) -> torch.Tensor:
        lstm = load_model(model)[0].to(dtype).lstm
        weight_ih, weight_hh, bias_ih, bias_hh = (weight.detach() for weight in lstm.weights())
        zero = weight_hh.new_zeros(1, weight_hh.shape[1])
        c0 = zero if dtype == torch.float64 else zero.float()
        return lstm_forward(weight_ih.t() + bias_ih + bias_hh, weight_hh, zero, c0, ids=ids).c[:, 0]

    naive = cells(DTYPES[store.attributes.precision]).to(getattr(torch, store.attributes.dtype))
    assert_as_good_as("states", torch.from_numpy(store.read(0, stop)).to(naive.dtype), naive, cells(torch.float64))


class Suite:
    """Measurements of one machine; ``rows`` collects them."""

    def __init__(self, options: argparse.Namespace, model: Path) -> None:
        self.options, self.model = options, model
        self.corpus = Corpus(options.data)
        self.rows: list[Row] = []

    def add(self, case: str, contestant: str, metric: str, unit: str, values: Sequence[float], mode: str = "") -> None:
        options = self.options
        where = {"suite": "states", "case": case, "contestant": contestant, "metric": metric, "unit": unit}
        about = {
            "H": options.hidden,
            "B": options.batch_size or 0,
            "T": 0,
            "dtype": "fp16",
            "mode": mode,
            "input": "ids",
        }
        about["note"] = f"{options.threads} threads"
        self.rows.append(complete(where | about | quantiles(values)))
        say(f"{case} {mode} {contestant}: {', '.join(f'{value:,.3f}' for value in values)} {unit}")

    def dump(self, out: Path, **choices: Any) -> DumpSummary:
        options = self.options
        given: dict[str, Any] = {"batch_size": options.batch_size, "threads": options.threads, "device": options.device}
        return dump(self.model, options.data, out, progress=False, **(given | choices))

    def writing(self, parent: Path, mode: str, size: int, turns: int) -> Path:
        """Dump and raw in turns; the last store is kept, at the path returned."""
        documents = documents_for(self.corpus, size // (2 * self.options.hidden))
        stored: list[float] = []
        raw: list[float] = []
        text: list[float] = []
        ratios: list[float] = []
        keep = parent / "kept.zarr"
        for _ in range(turns):
            shutil.rmtree(keep, ignore_errors=True)
            summary: list[DumpSummary] = []
            took = seconds_of(lambda kept=summary: kept.append(self.dump(keep, documents=documents)))  # type: ignore[misc]
            sizes = [path.stat().st_size for path in keep.rglob("*") if path.is_file()]
            folder = parent / "raw"
            folder.mkdir()
            beside = seconds_of(lambda f=folder, s=sizes: write_raw(f, s, self.options.threads))  # type: ignore[misc]
            shutil.rmtree(folder)
            stored.append(sum(sizes) / took)
            raw.append(sum(sizes) / beside)
            text.append(summary[0].text_bytes / took)
            ratios.append(took / beside)
        self.add("write", "fastlstm", "throughput", "bytes/s", stored, mode)
        self.add("write", "raw", "throughput", "bytes/s", raw, mode)
        self.add("write", "fastlstm", "text_rate", "bytes/s", text, mode)
        self.add("write", "fastlstm", "time_to_raw", "ratio", ratios, mode)
        return keep

    def writers(self, parent: Path, mode: str, size: int, turns: int) -> None:
        """The writing threads from a group that is there, and raw."""
        H, threads = self.options.hidden, self.options.threads
        layout = Layout.of(max(1, size // (2 * H)), H, "float16")
        device = torch.device(self.options.device)
        buffer = GroupBuffer(layout, layout.rows, device)
        buffer._whole.normal_()
        buffer.begin(0, layout.rows)
        stored: list[float] = []
        raw: list[float] = []
        for turn in range(turns):
            store = LocalStorage(parent / f"writer{turn}")
            writers = ShardWriters(store, layout, threads)

            def write(writers: ShardWriters = writers) -> None:
                for future in writers.write(buffer):
                    future.result()

            took = seconds_of(write)
            writers.close(cancel=False)
            sizes = [path.stat().st_size for path in store.path.rglob("*") if path.is_file()]
            shutil.rmtree(store.path)
            folder = parent / "raw"
            folder.mkdir()
            beside = seconds_of(lambda f=folder, s=sizes: write_raw(f, s, threads))  # type: ignore[misc]
            shutil.rmtree(folder)
            stored.append(sum(sizes) / took)
            raw.append(sum(sizes) / beside)
        self.add("writer", "fastlstm", "throughput", "bytes/s", stored, mode)
        self.add("writer", "raw", "throughput", "bytes/s", raw, mode)

    def extracting(self, parent: Path, case: str, size: int, turns: int, *, drop: bool = False, **choices: Any) -> None:
        """Bytes of text a second of a dump whose output is small, or dropped."""
        documents = documents_for(self.corpus, size)
        found: list[float] = []
        for turn in range(turns):
            kept = dump_module.storage_at
            if drop:
                dump_module.storage_at = lambda place: Discarding(Path(place))
            try:
                summary: list[DumpSummary] = []
                out = parent / f"{case}{turn}.zarr"
                took = seconds_of(lambda s=summary, o=out: s.append(self.dump(o, documents=documents, **choices)))  # type: ignore[misc]
                found.append(summary[0].text_bytes / took)
            finally:
                dump_module.storage_at = kept
            shutil.rmtree(out)
        self.add(case, "fastlstm", "throughput", "bytes/s", found, "memory" if drop else "tmpfs")

    def reading(self, kept: Path, mode: str, turns: int) -> None:
        """From the page cache: what was written last is there."""
        store = open_states(kept)
        paths = [kept / shard_name(shard) for shard in range(-(-store.rows // (1 << 16)))]
        size = sum(path.stat().st_size for path in paths)
        scans: list[float] = []
        raw: list[float] = []
        units: list[float] = []
        for turn in range(turns):
            raw.append(size / seconds_of(lambda: read_raw(paths)))
            scans.append(size / seconds_of(lambda: sum(len(rows) for rows in store.scan())))
            unit = turn % self.options.hidden
            units.append(1e3 * seconds_of(lambda u=unit: store.column(u)) * (1_000_000 / store.rows))  # type: ignore[misc]
        self.add("scan", "fastlstm", "throughput", "bytes/s", scans, mode)
        self.add("scan", "raw", "throughput", "bytes/s", raw, mode)
        self.add("unit", "fastlstm", "time_per_million_rows", "ms", units, mode)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="corpus folder (from fastlstm prepare)")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, help="lanes; dump's default if not given")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1), help="that write, of both")
    parser.add_argument("--mib", type=int, default=8192, help="of states in a dump of every byte and cell")
    parser.add_argument("--text-mib", type=int, default=48, help="of text in a dump whose output is small")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="a folder on the disk")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), help="a folder in memory")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--commit", help="for the results; default: what git says")
    parser.add_argument("--out", type=Path, default=RESULTS / "states.csv")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu measures on the CPU")
    return options


CASES = ("pinned", "units", "last", "statistics", "write-tmpfs", "write-disk", "writer", "read")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    size, text, turns = options.mib * MIB, options.text_mib * MIB, options.turns
    with scratch(options.disk) as disk, scratch(options.tmpfs) as memory:
        suite = Suite(options, checkpoint(disk / "run", options.hidden))
        # Compiles kernels, and is checked before anything is timed.
        suite.dump(memory / "first.zarr", documents=2)
        check(open_states(memory / "first.zarr"), suite.model)
        chosen = {"units": range(0, options.hidden, max(1, options.hidden // CHOSEN))}
        for case in options.cases:
            if case == "pinned":
                suite.extracting(memory, case, min(text, 4 * size // options.hidden), turns, drop=True)
            elif case == "units":
                suite.extracting(memory, case, text, turns, **chosen)
            elif case == "last":
                suite.extracting(memory, case, text, turns, rows="document")
            elif case == "statistics":
                suite.extracting(memory, case, text, turns, keep=("statistics",))
            elif case == "write-tmpfs":
                shutil.rmtree(suite.writing(memory, "tmpfs", size, turns))
            elif case == "writer":
                suite.writers(disk, "disk", size // 4, turns)
            elif case == "write-disk":
                kept = suite.writing(disk, "disk", size, turns)
            elif "write-disk" in options.cases:
                suite.reading(kept, "disk", 3)
            save(options.out, (row | machine(options.device, options.commit) for row in suite.rows))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        suite.add("all", "fastlstm", "peak_host_memory", "MiB", [peak])
        save(options.out, (row | machine(options.device, options.commit) for row in suite.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
