"""Measurements as rows of a CSV: its columns, which row replaces which, and what machine they were taken on."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
COLUMNS = (
    *("suite", "case", "contestant", "H", "B", "T", "dtype", "metric", "unit", "median", "p20", "p80", "n"),
    *("gpu", "driver", "torch", "triton", "commit", "date"),
    # input: dense features or byte ids. mode: queued (the GPU's work alone), eager or graph (the whole call, awaited).
    # version: the contestant's own (cuDNN's for nn.LSTM). note: why no number. gpus: processes that shared the work.
    *("input", "mode", "device", "version", "note", "gpus"),
)
KEY = (*COLUMNS[:8], "input", "mode", "device", "gpus")
DEFAULTS = {"input": "dense", "mode": "queued", "device": "cuda", "gpus": "1"}

Row = dict[str, str]


def quantiles(values: Sequence[float]) -> dict[str, str]:
    """The columns median, p20, p80 (nearest ranks) and n."""
    ranked = sorted(values)
    p20, p80 = (ranked[round(q * (len(ranked) - 1))] for q in (0.2, 0.8))
    numbers = {"median": statistics.median(ranked), "p20": p20, "p80": p80}
    return {name: f"{value:.3f}" for name, value in numbers.items()} | {"n": str(len(ranked))}


def complete(row: Mapping[str, object]) -> Row:
    """Every column as text; absent ones get their default, else nothing. An unknown column is a KeyError."""
    unknown = set(row) - set(COLUMNS)
    if unknown:
        raise KeyError(f"not a column of the results: {', '.join(sorted(unknown))}")
    given = {name: str(value) for name, value in row.items() if value not in (None, "")}
    return {name: given.get(name, DEFAULTS.get(name, "")) for name in COLUMNS}


def key_of(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def load(path: Path) -> list[Row]:
    """The rows of a results file, completed; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [complete(row) for row in csv.DictReader(file)]


def save(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows to the file; a row takes the place of the old one of the same key."""
    kept = {key_of(row): row for row in load(path)}
    for row in map(complete, rows):
        kept[key_of(row)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept.values())
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _said(*command: str) -> str:
    """What a command prints, or nothing where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    """The CPU's name and how many threads torch uses."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def machine(device: str, commit: str | None) -> dict[str, str]:
    """Columns that are the same for every row of a run; ``commit`` None asks git."""
    on_gpu = device == "cuda"
    drivers = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else ""
    return {
        "gpu": torch.cuda.get_device_name() if on_gpu else processor(),
        "driver": drivers.partition("\n")[0],  # a line for each GPU
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": _said("git", "rev-parse", "--short", "HEAD") if commit is None else commit,
        "date": datetime.date.today().isoformat(),
        "device": device,
    }
