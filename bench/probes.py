"""Seconds and memory of L1 logistic regressions of many tags, against liblinear and at sizes that it does not reach.

    python bench/probes.py --cases small                 # 20,000 x 2048, 20 tags, liblinear in turn on one of them
    python bench/probes.py --cases large --liblinear 3   # 122,000 x 2048, 45 tags, liblinear on one tag in three
    python bench/probes.py --cases large --device cuda   # the same on a GPU, rows in its memory
    python bench/probes.py --cases disk --device cuda    # 1,000,000 x 2048 float16 from a store, 17 tags
    python bench/probes.py --cases memory                # 4 tags over a store of 10 GB with a memory limit of 1 GiB

Cells and tags are those of bench/sparse_truth.py, made on the device; C is 0.25, every tag's relative duality gap at
most 1e-6. H is the number of cells, B of rows, T of tags (1 for liblinear, which fits a tag at a time). Where liblinear
runs too, its objective is compared: `objective_ratio` is ours over its (median, least and largest), at most 1 + 1e-6 or
the run fails. `peak_memory` is the largest resident size of the process that fits and does nothing else. Rows go to
bench/results/probes.csv.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zarr

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "probes")]

from bench.records import RESULTS, Row, complete, machine, quantiles, save  # noqa: E402
from bench.sparse_truth import SparseTruth  # noqa: E402
from bench.timing import peak_resident  # noqa: E402
from fastlstm.states import ModelAttributes, StoreAttributes, TextAttributes, open_states  # noqa: E402
from fastlstm.states.layout import Layout  # noqa: E402
from fastlstm.states.schema import ARRAYS, ATTRIBUTE, FORMAT_VERSION  # noqa: E402
from fastlstm_probes.l1 import L1LogisticOvR, StoreRows  # noqa: E402

C, TOL = 0.25, 1e-6
GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    name: str
    rows: int
    cells: int
    tags: int
    repeats: int
    from_disk: bool = False
    memory_limit: int = 2 * GIB


CASES = {
    "small": Case("small", 20_000, 2048, 20, 3),
    "large": Case("large", 122_000, 2048, 45, 1),
    "disk": Case("disk", 1_000_000, 2048, 17, 1, from_disk=True, memory_limit=4 * GIB),
    "memory": Case("memory", 2_440_000, 2048, 4, 1, from_disk=True, memory_limit=1 * GIB),
    "tiny": Case("tiny", 2_000, 64, 4, 2),
    "tiny_disk": Case("tiny_disk", 10_000, 64, 4, 1, from_disk=True, memory_limit=GIB // 64),
}


def fit(case: Case, X: torch.Tensor | StoreRows, codes: np.ndarray) -> tuple[L1LogisticOvR, float]:
    """The fitted model and the seconds that it took, awaited."""
    model = L1LogisticOvR(C=C, tol=TOL, memory_limit=case.memory_limit, random_state=0)
    start = time.perf_counter()
    model.fit(X, codes)
    return model, time.perf_counter() - start


def in_memory(case: Case, device: str, every: int) -> list[Row]:
    """Ours, all tags at once, in turn with liblinear on every so-many-th of them (0: none)."""
    X, codes_there = SparseTruth(case.rows, case.cells, case.tags, device).matrix()
    codes = codes_there.cpu().numpy()
    present = np.unique(codes)
    if device == "cuda":
        fit(case, X, codes)  # the libraries' first calls
    ours: list[float] = []
    theirs: list[float] = []
    model = None
    chosen = list(range(0, len(present), every))[: len(present)] if every else []
    host = X.cpu().numpy() if every else None
    ratios: list[float] = []
    for _ in range(3 if device == "cuda" else case.repeats):
        model, seconds = fit(case, X, codes)
        ours.append(seconds)
        for tag in chosen:
            reference = L1LogisticOvR(C=C, tol=1e-4, max_iter=1000, solver="liblinear", random_state=0)
            start = time.perf_counter()
            reference.fit(host, codes == present[tag])
            theirs.append(time.perf_counter() - start)
            ratios.append(model.objective_[tag] / reference.objective_[0])
            print(f"tag {tag}: {theirs[-1]:.1f} s, our objective is {ratios[-1]:.9f} of its own", file=sys.stderr)
    assert model is not None
    if ratios and max(ratios) > 1 + TOL:
        raise SystemExit(f"{case.name}: an objective is {max(ratios)} times liblinear's")
    shape = {"H": case.cells, "B": case.rows}
    shared = {**shape, "dtype": "float32"}
    note = f"largest gap {model.gap_.max():.1e}, {model.n_iter_.max()} passes, {np.count_nonzero(model.coef_)} weights"
    rows = [row(case, "fastlstm", "time", "s", ours, T=len(present), note=note, **shared)]
    if theirs:
        said = f"{len(chosen)} of {len(present)} tags, one at a time, tol 1e-4"
        rows.append(row(case, "liblinear", "time", "s", theirs, T=1, note=said, **shared))
        rows.append(row(case, "fastlstm", "objective_ratio", "1", ratios, T=1, note="to liblinear's", **shared))
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
        rows.append(row(case, "fastlstm", "peak_memory", "MiB", [peak], T=len(present), note="of the GPU", **shared))
    return rows


def row(case: Case, contestant: str, metric: str, unit: str, values: list[float], **more: object) -> Row:
    found = quantiles(values)
    if metric == "objective_ratio":  # three digits do not tell it from 1
        found |= {"median": f"{np.median(values):.9f}", "p20": f"{min(values):.9f}", "p80": f"{max(values):.9f}"}
    whose = {"suite": "probes", "case": case.name, "contestant": contestant, "metric": metric, "unit": unit}
    return complete({**whose, **found, **more})


def write_store(case: Case, path: Path, device: str) -> None:
    """A states store of the case's cells in float16 and, beside it, the codes; in order, a shard at a time."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    layout = Layout.of(case.rows, case.cells, "float16")
    layout.create(group)
    states = group["states"]
    codes = np.empty(case.rows, np.int64)
    for first, cells, tags in SparseTruth(case.rows, case.cells, case.tags, device, layout.shard_rows).chunks():
        last = first + len(cells)
        states[first:last] = cells.half().cpu().numpy()
        codes[first:last] = tags.cpu().numpy()
    begin = np.arange(0, case.rows + 1, 1000)
    contents = {
        "position": np.arange(case.rows),
        "byte": np.full(case.rows, 120),
        "units": np.arange(case.cells),
        "text": np.full(case.rows, 120),
        "document_offset": begin,
        "row_offset": begin,
        "document_label": np.full(len(begin) - 1, np.nan),
        "document_split": np.zeros(len(begin) - 1),
        "document_id": np.full((len(begin) - 1, 1), 100),
    }
    for name, values in contents.items():
        array = group.create_array(name, shape=values.shape, dtype=ARRAYS[name][1], compressors=None)
        array[...] = values.astype(ARRAYS[name][1])
    attributes = StoreAttributes(
        format_version=FORMAT_VERSION,
        model=ModelAttributes("0" * 64, 0, case.cells, False),
        text=TextAttributes("0" * 64, "synthetic", "none", None, True, ("train",), None),
        rows="all", units=None, state="document", dtype="float16", batch_size=1, versions={}, complete=True,
    )  # fmt: skip
    group.attrs[ATTRIBUTE] = attributes.to_json()
    np.save(path.with_suffix(".npy"), codes)


def fit_store(case: Case, path: Path, device: str) -> dict[str, object]:
    """Fit what `write_store` wrote; what to record of it."""
    codes = np.load(path.with_suffix(".npy"))
    rows = StoreRows(open_states(path), np.arange(case.rows), device)
    model, seconds = fit(case, rows, codes)
    return {
        "seconds": seconds,
        "peak": peak_resident(),
        "tags": len(model.coef_),
        "note": f"largest gap {model.gap_.max():.1e}, {model.n_iter_.max()} passes, from disk, memory limit "
        f"{case.memory_limit / GIB:g} GiB",
    }


def from_disk(case: Case, device: str, folder: Path | None) -> list[Row]:
    """Write the store, then fit it in a process of its own, whose peak memory is the fit's."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        path = Path(inside) / "store.zarr"
        write_store(case, path, device)
        command = [sys.executable, __file__, "--child", case.name, str(path), "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        shutil.rmtree(path)
    if done.returncode:
        raise SystemExit(f"{case.name}: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    shared = {"H": case.cells, "B": case.rows, "T": found["tags"], "dtype": "float16", "note": found["note"]}
    return [
        row(case, "fastlstm", "time", "s", [found["seconds"]], **shared),
        row(case, "fastlstm", "peak_memory", "MiB", [found["peak"]], **shared),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["small"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--liblinear", type=int, metavar="EVERY", help="on every so-many-th tag; 0: not at all")
    parser.add_argument("--folder", type=Path, help="where stores are written (and deleted); default: /tmp")
    parser.add_argument("--out", type=Path, default=RESULTS / "probes.csv")
    parser.add_argument("--commit", help="what to write in that column; default: git's")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(fit_store(CASES[options.child[0]], Path(options.child[1]), options.device)))
        return
    where = machine(options.device, options.commit)  # now: the commit may be another one by the end
    for name in options.cases:
        case = CASES[name]
        every = options.liblinear if options.liblinear is not None else (case.tags if options.device == "cpu" else 0)
        make: Callable[[], list[Row]] = (
            (lambda case=case: from_disk(case, options.device, options.folder))
            if case.from_disk
            else (lambda case=case, every=every: in_memory(case, options.device, every))
        )
        rows = [one | where for one in make()]
        save(options.out, rows)
        for one in rows:
            print(
                "  ".join(
                    str(one[name]) for name in ("case", "contestant", "B", "T", "metric", "median", "unit", "note")
                )
            )


if __name__ == "__main__":
    main()
