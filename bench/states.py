"""How fast cell states are read, reduced, written to Zarr and read back, beside raw files on the same disk in one run.

    python bench/states.py --data CORPUS --folder /disk/scratch               # a GPU, H = 2048, float16
    python bench/states.py --data CORPUS --folder /scratch --tmpfs /dev/shm   # and a store in memory
    python bench/states.py --device cpu --folder /scratch                     # a CPU, H = 128, synthetic text

The model has random weights. First states, means and statistics of a few documents are held against float64. Cases
(rates are bytes of text a second; raw: the same number of files of the same size, written or read by as many threads
and made durable too):

- extract: every state of all units to the host (on a GPU to pinned memory), and no further;
- write, write_tmpfs: the whole of it into a store on --folder, on --tmpfs if given; `wall_ratio`: its time over raw's;
- writer: the same from rows that are there already, without a model;
- units_16, last_state, document_mean, statistics: reductions, into a store on --tmpfs if given;
- scan, unit, documents: every row in blocks, one unit of 1,048,576 rows, ten documents, from the page cache, as
  `States` reads them, as Zarr's own API does, and raw files.

Rows go to bench/results/states.csv.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench.lstm import say  # noqa: E402
from bench.records import RESULTS, Row, complete, machine, quantiles, save  # noqa: E402
from bench.timing import peak_resident  # noqa: E402
from fastlstm.corpus.prepare import prepare_grammar  # noqa: E402
from fastlstm.corpus.shards import Corpus  # noqa: E402
from fastlstm.model import ByteLM  # noqa: E402
from fastlstm.states import ModelAttributes, StoreAttributes, TextAttributes, open_states, open_statistics  # noqa: E402
from fastlstm.states import reading as reading_module  # noqa: E402
from fastlstm.states.dump import DTYPES, dump  # noqa: E402
from fastlstm.states.layout import Layout, shard_name  # noqa: E402
from fastlstm.states.reader import SCAN_THREADS  # noqa: E402
from fastlstm.states.shards import GroupBuffer, ShardWriters  # noqa: E402
from fastlstm.states.storage import LocalStorage  # noqa: E402
from fastlstm.states.writer import write_store  # noqa: E402
from fastlstm.training.checkpoint import TrainingState, save_checkpoint  # noqa: E402
from fastlstm.training.config import ModelConfig, TrainConfig  # noqa: E402
from tolerance import assert_as_good_as  # noqa: E402

READ_ROWS = 1 << 20


class Discarded(LocalStorage):
    """Takes every block of a shard, and writes none."""

    def write_shard(self, shard: int, layout: Layout, blocks: Any) -> None:
        for _ in blocks:
            pass


class Bench:
    def __init__(self, options: argparse.Namespace, scratch: Path, memory: Path | None) -> None:
        self.options = options
        self.scratch, self.memory = scratch, memory
        self.device = torch.device(options.device)
        self.precision = "fp16" if self.device.type == "cuda" else "fp32"
        self.rows: list[Row] = []
        self.model = ByteLM(options.hidden_size, seed=0)
        config = TrainConfig(model=ModelConfig(hidden_size=options.hidden_size))
        zero = torch.zeros(1, 1, options.hidden_size)
        state = TrainingState(1, "0" * 64, config, (zero, zero.clone()), {})
        self.checkpoint = save_checkpoint(scratch / "run", self.model, state, keep=1)
        self.corpus = Corpus(self._corpus())

    def _corpus(self) -> Path:
        if self.options.data is not None:
            return Path(self.options.data)
        folder = self.scratch / "corpus"
        prepare_grammar(folder, reviews=40_000, progress=False)
        return folder

    def documents_of(self, size: int) -> int:
        """How many of the train documents have about ``size`` bytes."""
        count, left = 0, size
        for entry in self.corpus.shards("train"):
            if entry.bytes > left:
                offset = self.corpus.open_shard(entry).offset
                return max(1, count + int(np.searchsorted(offset, left)))
            count, left = count + entry.documents, left - entry.bytes
        return count

    def add(self, case: str, contestant: str, metric: str, unit: str, values: Sequence[float], note: str = "") -> None:
        about = {
            **{"suite": "states", "case": case, "contestant": contestant, "H": self.options.hidden_size},
            **{"dtype": "float16", "metric": metric, "unit": unit, "input": "ids", "note": note},
        }
        if self.device.type == "cuda":
            about["B"] = 128
        self.rows.append(complete(about | quantiles(values)))
        say(f"{case} {contestant} {metric}: {quantiles(values)['median']} {unit} {note}")

    @contextmanager
    def dumped(self, place: Path, size: int, **options: Any) -> Iterator[tuple[Path, int, float]]:
        """A store, the bytes of text that it is of, and the seconds that reading and writing groups took."""
        out = Path(tempfile.mkdtemp(dir=place)) / "store"
        taken: list[float] = []
        read = reading_module.Reading.read

        def timed(*arguments: Any) -> None:
            begin = time.perf_counter()
            read(*arguments)
            taken.append(time.perf_counter() - begin)

        reading_module.Reading.read = timed  # type: ignore[method-assign]
        try:
            wanted = {"splits": ["train"], "device": self.options.device, "threads": self.options.threads} | options
            wanted.setdefault("documents", self.documents_of(size))
            summary = dump(self.checkpoint, self.corpus.folder, out, progress=False, **wanted)
            yield out, summary.text_bytes, sum(taken)
        finally:
            reading_module.Reading.read = read  # type: ignore[method-assign]
            shutil.rmtree(out.parent)

    # Correctness first.

    def gate(self) -> None:
        """States, means and statistics of some documents against float64, each document read alone."""
        options: dict[str, Any] = {"rows": "all", "keep": ["states", "statistics"]}
        options["units"] = list(range(0, self.options.hidden_size, 7))
        count = min(40, self.documents_of(40_000))
        with self.dumped(self.scratch, 0, documents=count, **options) as (out, _, _):
            store, statistics = open_states(out), open_statistics(out)
            found = torch.from_numpy(store.read(0, store.rows))
            text, offset = store.text, store.document_offset
        with self.dumped(self.scratch, 0, documents=count, rows="document-mean", units=options["units"]) as (out, _, _):
            means = torch.from_numpy(open_states(out).read(0, count))
        lengths = np.diff(offset)
        ids = torch.zeros(int(lengths.max()), len(lengths), dtype=torch.uint8)
        for lane, (begin, end) in enumerate(pairwise(offset)):
            ids[: end - begin, lane] = torch.from_numpy(text[begin:end].copy())
        units = torch.tensor(options["units"])

        def alone(dtype: torch.dtype) -> torch.Tensor:
            model = copy.deepcopy(self.model).to(self.device, dtype)
            model.lstm.backend = "torch"
            cells, _ = model.cells(ids.to(self.device), units=units.to(self.device))
            return torch.cat([cells[:length, lane] for lane, length in enumerate(lengths.tolist())]).cpu()

        truth, naive = alone(torch.float64), alone(DTYPES[self.precision])
        assert_as_good_as("states", found.half(), naive.half(), truth)
        mean, naive_mean = (
            torch.stack([states[begin:end].mean(0) for begin, end in pairwise(offset)]) for states in (truth, naive)
        )
        assert_as_good_as("means", means.half(), naive_mean.half(), mean)
        x = found.double()
        np.testing.assert_allclose(statistics.sum, x.sum(0), rtol=1e-9, atol=1e-9 * len(x))
        np.testing.assert_allclose(statistics.sum_squares, (x * x).sum(0), rtol=1e-9)
        np.testing.assert_array_equal(statistics.maximum, found.amax(0))
        np.testing.assert_array_equal(statistics.top_value[0], found.amax(0))
        np.testing.assert_array_equal(statistics.top_position[0], found.argmax(0))
        assert (statistics.histogram.sum(1) == len(x)).all()
        say(f"correct: {len(found):,} states of {len(lengths)} documents, means and statistics")

    # Writing.

    def write_raw(self, folder: Path, sizes: Sequence[int]) -> float:
        """Seconds to write files of ``sizes`` bytes, made durable, by the writing threads."""
        blocks = np.random.default_rng(0).integers(0, 256, (2 * self.options.threads, 16 << 20), dtype=np.uint8)
        target = Path(tempfile.mkdtemp(dir=folder))

        def write(number: int) -> None:
            with (target / str(number)).open("wb", buffering=0) as file:
                left = sizes[number]
                for i in itertools.count(number):
                    block = blocks[i % len(blocks)]  # other memory each time, as of a dump
                    left -= file.write(block[: min(left, len(block))])
                    if not left:
                        break
                os.fsync(file.fileno())

        try:
            begin = time.perf_counter()
            with ThreadPoolExecutor(self.options.threads) as pool:
                list(pool.map(write, range(len(sizes))))
            return time.perf_counter() - begin
        finally:
            shutil.rmtree(target)

    def write(self, case: str, place: Path, size: int) -> None:
        ours, raw, ratios = [], [], []
        for _ in range(self.options.turns):
            with self.dumped(place, size) as (out, text_bytes, seconds):
                files = [path.stat().st_size for path in (out / "states" / "c").rglob("*") if path.is_file()]
            ours.append(seconds)
            raw.append(self.write_raw(place, files))
            ratios.append(ours[-1] / raw[-1])
        note = f"{sum(files) / 1e9:.2f} GB in {len(files)} files, {self.options.threads} threads"
        self.add(case, "fastlstm", "throughput", "bytes/s", [text_bytes / s for s in ours], note)
        self.add(case, "raw", "throughput", "bytes/s", [text_bytes / s for s in raw], note)
        self.add(case, "raw", "rate", "GB/s", [sum(files) / 1e9 / s for s in raw], note)
        self.add(case, "fastlstm", "wall_ratio", "", ratios, "time over that of raw files")

    def writer(self, place: Path, rows: int) -> None:
        """Shards from rows that are on the device."""
        layout = Layout.of(rows, self.options.hidden_size, "float16")
        buffer = GroupBuffer(layout, rows, self.device)
        buffer.begin(0, rows)
        buffer._whole.normal_()
        if self.device.type == "cuda":
            buffer.event = torch.cuda.current_stream().record_event()
        ours, raw = [], []
        for _ in range(self.options.turns):
            target = Path(tempfile.mkdtemp(dir=place))
            writers = ShardWriters(LocalStorage(target), layout, self.options.threads, self.device)
            begin = time.perf_counter()
            for future in writers.write(buffer):
                future.result()
            ours.append(time.perf_counter() - begin)
            writers.close(cancel=False)
            files = [(target / shard_name(shard)).stat().st_size for shard in range(layout.shards)]
            shutil.rmtree(target)
            raw.append(self.write_raw(place, files))
        note = f"{sum(files) / 1e9:.2f} GB in {len(files)} files, {self.options.threads} threads"
        self.add("writer", "fastlstm", "rate", "GB/s", [sum(files) / 1e9 / s for s in ours], note)
        self.add("writer", "raw", "rate", "GB/s", [sum(files) / 1e9 / s for s in raw], note)
        self.add("writer", "fastlstm", "wall_ratio", "", [a / b for a, b in zip(ours, raw, strict=True)], note)

    def rates(self, case: str, size: int, *, call: bool = True, **options: Any) -> None:
        """Text a second through `dump`'s loop, and through the whole ``call``."""
        place = self.memory or self.scratch
        loops, calls = [], []
        with self.dumped(place, size // 8, **options):
            pass  # kernels are compiled by their first use on a machine
        for _ in range(self.options.turns):
            begin = time.perf_counter()
            with self.dumped(place, size, **options) as (_, text_bytes, seconds):
                calls.append(text_bytes / (time.perf_counter() - begin))
                loops.append(text_bytes / seconds)
        self.add(case, "fastlstm", "throughput", "bytes/s", loops, f"{text_bytes:,} bytes of text")
        if call:
            self.add(
                case, "fastlstm", "throughput_call", "bytes/s", calls, "with loading the model and making the store"
            )

    def extract(self, size: int) -> None:
        """The loop alone, into the host's memory."""
        original = reading_module.ShardWriters
        reading_module.ShardWriters = lambda storage, *rest: original(  # type: ignore[assignment,misc]
            Discarded(storage.path), *rest
        )
        try:
            self.rates("extract", size, call=False)
        finally:
            reading_module.ShardWriters = original  # type: ignore[misc]

    # Reading.

    def read(self) -> None:
        options = self.options
        place = Path(tempfile.mkdtemp(dir=self.scratch)) / "store"
        block = np.random.default_rng(0).standard_normal((1 << 16, options.hidden_size), np.float32).astype(np.float16)
        states = np.broadcast_to(block, (READ_ROWS >> 16, *block.shape)).reshape(READ_ROWS, -1)
        width = options.hidden_size
        write_store(LocalStorage(place), _attributes(width), _arrays(READ_ROWS, width), states)
        del states
        store = open_states(place)
        array = zarr.open_group(place, mode="r")["states"]
        assert isinstance(array, zarr.Array)
        files = sorted(path for path in (place / "states" / "c").rglob("*") if path.is_file())
        size = READ_ROWS * width * 2

        def read_raw(path: Path) -> None:
            with path.open("rb", buffering=0) as file:
                while file.readinto(np.empty(store.states.chunks[0] * width, np.float16).data):
                    pass

        def raw() -> None:
            with ThreadPoolExecutor(SCAN_THREADS) as pool:
                list(pool.map(read_raw, files))

        def scan(blocks: Iterator[Any]) -> Callable[[], None]:
            def run() -> None:
                for _ in blocks:
                    pass

            return run

        def zarr_blocks() -> Iterator[Any]:
            for start in range(0, READ_ROWS, store.states.chunks[0]):
                yield array[start : start + store.states.chunks[0]]

        raw()
        np.testing.assert_array_equal(array[70_000:70_010], store.read(70_000, 70_010))
        scans: dict[str, list[float]] = {"fastlstm": [], "zarr": [], "raw": []}
        for _ in range(options.turns):
            scans["raw"].append(size / 1e9 / _seconds(raw))
            scans["fastlstm"].append(size / 1e9 / _seconds(scan(store.scan())))
            scans["zarr"].append(size / 1e9 / _seconds(scan(zarr_blocks())))
        note = f"{size / 1e9:.2f} GB from the page cache, {SCAN_THREADS} threads (Zarr's own: as it likes)"
        for name, values in scans.items():
            self.add("scan", name, "rate", "GB/s", values, note)
        ratios = [ours / raw for ours, raw in zip(scans["fastlstm"], scans["raw"], strict=True)]
        self.add("scan", "fastlstm", "rate_ratio", "", ratios, "rate over that of raw files")
        unit = options.hidden_size // 2
        assert np.array_equal(store.column(unit), array[:, unit])
        documents = np.random.default_rng(1).integers(0, store.documents, 10)
        ranges = [(int(store.row_offset[d]), int(store.row_offset[d + 1])) for d in documents]
        for case, note, calls in (
            (
                "unit",
                f"{READ_ROWS:,} rows from the page cache",
                {"fastlstm": lambda: store.column(unit), "zarr": lambda: array[:, unit]},
            ),
            (
                "documents",
                "10 documents of 512 rows from the page cache",
                {
                    "fastlstm": lambda: [store.read(a, b) for a, b in ranges],
                    "zarr": lambda: [array[a:b] for a, b in ranges],
                },
            ),
        ):
            for name, call in calls.items():
                call()
                times = [1000 * _seconds(call) for _ in range(max(3, options.turns))]
                self.add(case, name, "time", "ms", times, note)
        shutil.rmtree(place.parent)

    def memory_used(self) -> None:
        self.add("write", "fastlstm", "peak_memory", "MiB", [peak_resident()], "resident, of the process so far")
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
            self.add("write", "fastlstm", "peak_gpu_memory", "MiB", [peak], "allocated by torch so far")


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _attributes(hidden_size: int) -> StoreAttributes:
    return StoreAttributes(
        format_version=1,
        model=ModelAttributes("a" * 64, 1, hidden_size, False),
        text=TextAttributes("b" * 64, "lines", None, None, False, ("train",), None),
        rows="all",
        units=None,
        state="document",
        dtype="float16",
        batch_size=1,
        versions={},
        complete=False,
    )


def _arrays(rows: int, units: int) -> dict[str, Any]:
    documents = rows // 512
    offset = np.arange(documents + 1) * 512
    return {
        "position": np.arange(rows),
        "byte": np.zeros(rows, np.uint8),
        "units": np.arange(units),
        "text": np.zeros(rows, np.uint8),
        "document_offset": offset,
        "row_offset": offset,
        "document_label": np.full(documents, np.nan, np.float32),
        "document_split": np.zeros(documents, np.uint8),
        "document_id": np.full((documents, 1), ord("d"), np.uint8),
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="corpus folder (from fastlstm prepare); synthetic if not given")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--tmpfs", type=Path, help="a folder in memory, for example /dev/shm")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--hidden-size", type=int, help="2048 on a GPU, 128 on a CPU if not given")
    parser.add_argument("--threads", type=int, help="that write; 8 on a GPU, 2 on a CPU if not given")
    parser.add_argument("--turns", type=int, help="measurements of each kind; 2 on a GPU, 3 on a CPU if not given")
    parser.add_argument("--stored", type=float, help="MB of text whose states are stored; 2 on a GPU, 0.5 on a CPU")
    parser.add_argument("--reduced", type=float, help="MB of text for the reductions; 16 on a GPU, 0.5 on a CPU")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--commit", help="for the results; default: what git says")
    parser.add_argument("--out", type=Path, default=RESULTS / "states.csv")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu measures on the CPU")
    options.hidden_size = options.hidden_size or (2048 if on_gpu else 128)
    options.threads = options.threads or (8 if on_gpu else 2)
    options.turns = options.turns or (2 if on_gpu else 3)
    options.stored = int(1e6 * (options.stored or (2 if on_gpu else 0.5)))
    options.reduced = int(1e6 * (options.reduced or (16 if on_gpu else 0.5)))
    return options


CASES = ("extract", "write", "write_tmpfs", "writer", "reductions", "read")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    about = machine(options.device, options.commit)
    scratch = Path(tempfile.mkdtemp(dir=options.folder))
    memory = None if options.tmpfs is None else Path(tempfile.mkdtemp(dir=options.tmpfs))
    try:
        bench = Bench(options, scratch, memory)
        bench.gate()
        cases: dict[str, Callable[[], None]] = {
            "extract": lambda: bench.extract(options.reduced),
            "write": lambda: bench.write("write", scratch, options.stored),
            "write_tmpfs": lambda: bench.write("write_tmpfs", memory, options.stored) if memory else None,
            "writer": lambda: bench.writer(scratch, READ_ROWS),
            "reductions": lambda: _reductions(bench, options.reduced),
            "read": bench.read,
        }
        for name in options.cases:
            cases[name]()
            if name == "write":
                bench.memory_used()
            save(options.out, (row | about for row in bench.rows))
    finally:
        for folder in (scratch, memory):
            if folder is not None:
                shutil.rmtree(folder)
    return 0


def _reductions(bench: Bench, size: int) -> None:
    units = list(range(0, 16 * (bench.options.hidden_size // 16), bench.options.hidden_size // 16))
    bench.rates("units_16", size, units=units)
    bench.rates("last_state", size, rows="document")
    bench.rates("document_mean", size, rows="document-mean")
    bench.rates("statistics", size, keep=["statistics"])


if __name__ == "__main__":
    sys.exit(main())
