"""Joint L1 fits: how long, how exact, in how much memory, beside scikit-learn's liblinear.

    python bench/probes.py --device cuda                                       # one GPU, the sizes of README
    python bench/probes.py --cases joint --rows 20000 --tags 20 --liblinear 1  # a CPU, one tag of liblinear beside it
    python bench/probes.py --cases memory                                      # a store of 10 GB within 1 GiB

Features are drawn: rows of float32 normal values of unequal scale with a common part, tags from 12 columns each, rarer
and rarer. Rows of bench/results/probes.csv, suite `probes`; B is the number of tags, T the number of rows:

    joint      seconds of a fit of all tags at C = 0.25 and tol 1e-6, from memory; objective_ratio: to liblinear's
    store      the same from a states store in float16 on disk, the reading included
    memory     the peak of a process that fits one tag from a store of --gib with memory_limit 1 GiB
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "probes"), str(ROOT / "tests")]

from bench.lstm import say  # noqa: E402
from bench.records import RESULTS, Row, complete, machine, quantiles, save  # noqa: E402
from fastlstm.corpus.shards import Document  # noqa: E402
from fastlstm.states import open_states  # noqa: E402
from fastlstm_probes.l1 import L1LogisticOvR  # noqa: E402
from fastlstm_probes.l1.chunks import StoreRows  # noqa: E402
from planted_store import PlantedText, every_byte, write_store  # noqa: E402

C, TOL = 0.25, 1e-6
TRUE_COLUMNS = 12
DOCUMENT = 1000  # bytes
GIB = 2**30


def draw(
    rows: int, columns: int, tags: int, device: torch.device | str, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (rows, columns) float32 and tags (rows, tags) bool."""
    generator = torch.Generator(device).manual_seed(seed)
    scale = torch.logspace(-1, 1, columns, device=device)[torch.randperm(columns, generator=generator, device=device)]
    common = torch.randn(rows, 1, generator=generator, device=device)
    X = (torch.randn(rows, columns, generator=generator, device=device) + 0.5 * common) * scale
    margins = torch.empty(rows, tags, device=device)
    for tag in range(tags):
        chosen = torch.randperm(columns, generator=generator, device=device)[:TRUE_COLUMNS]
        weights = torch.randn(TRUE_COLUMNS, generator=generator, device=device)
        margins[:, tag] = (X[:, chosen] / scale[chosen]) @ weights - 0.12 * tag
    noise = torch.rand(rows, tags, generator=generator, device=device)
    return X, torch.sigmoid(margins) > noise


def timed_fit(
    X: object, y: object, device: str, solver: str = "joint", **options: object
) -> tuple[L1LogisticOvR, float]:
    model = L1LogisticOvR(C=C, tol=TOL, solver=solver, device=device, random_state=0, **options)
    begin = time.perf_counter()
    model.fit(X, y)
    if device == "cuda":
        torch.cuda.synchronize()
    return model, time.perf_counter() - begin


def about(case: str, rows: int, columns: int, tags: int) -> Row:
    return {"suite": "probes", "case": case, "H": str(columns), "B": str(tags), "T": str(rows), "dtype": "fp32"}


def joint(options: argparse.Namespace) -> list[Row]:
    X, y = draw(options.rows, options.columns, options.tags, options.device)
    features, tags = (X, y.cpu().numpy()) if options.device == "cuda" else (X.numpy(), y.numpy())
    if options.device == "cuda":  # compiles and sets libraries up
        timed_fit(features[:4096], tags[:4096], options.device)
    model, seconds = timed_fit(features, tags, options.device)
    if not model.converged_.all():
        raise AssertionError(f"the largest relative duality gap is {model.gap_.max():.1e}")
    size = about("joint", options.rows, options.columns, options.tags)
    rows = [complete(size | {"contestant": "fastlstm", "metric": "time", "unit": "s"} | quantiles([seconds]))]
    say(f"joint {options.rows}x{options.columns}, {options.tags} tags: {seconds:.2f} s, gap {model.gap_.max():.1e}")
    for tag in range(options.liblinear):
        one, took = timed_fit(features, tags[:, [tag]], options.device, solver="liblinear", max_iter=1000)
        ratio = float(model.objective_[tag] / one.objective_[0])
        say(f"liblinear, tag {tag}: {took:.1f} s, objective ours / theirs {ratio:.8f}")
        of_tag = about("joint", options.rows, options.columns, 1) | {"contestant": "liblinear", "note": f"tag {tag}"}
        rows.append(complete(of_tag | {"metric": "time", "unit": "s"} | quantiles([took])))
        rows.append(complete(of_tag | {"metric": "objective_ratio", "unit": "1"} | quantiles([ratio])))
    return rows


def write(folder: Path, rows: int, columns: int, tags: int, device: str) -> tuple[Path, np.ndarray]:
    """A states store in float16 of drawn features, a million rows of the same block repeated beyond that."""
    rows = -(-rows // DOCUMENT) * DOCUMENT
    block = min(rows, 1_000_000 if device == "cuda" else 100_000)
    X, y = draw(block, columns, tags, device)
    times = -(-rows // block)
    states = np.tile(X.half().cpu().numpy(), (times, 1))[:rows]
    documents = [Document(f"d{i}", bytes(DOCUMENT), None) for i in range(rows // DOCUMENT)]
    planted = PlantedText(documents, [0] * len(documents))
    path = folder / "states.zarr"
    write_store(path, planted, every_byte(planted), states, rows="all", dtype="float16")
    return path, np.tile(y.cpu().numpy(), (times, 1))[:rows]


def store(options: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, tags = write(Path(folder), options.store_rows, options.columns, options.store_tags, options.device)
        rows = StoreRows(open_states(path), np.arange(len(tags)), options.device)
        model, seconds = timed_fit(rows, tags, options.device, memory_limit=4 * GIB)
    if not model.converged_.all():
        raise AssertionError(f"the largest relative duality gap is {model.gap_.max():.1e}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(f"store {len(tags)} rows, {options.store_tags} tags: {seconds:.1f} s (process peak {peak:,.0f} MiB)")
    size = about("store", len(tags), options.columns, options.store_tags) | {"contestant": "fastlstm"}
    return [complete(size | {"metric": "time", "unit": "s"} | quantiles([seconds]))]


def memory(options: argparse.Namespace) -> list[Row]:
    """The fit runs in a process of its own: this one has held the features."""
    rows = int(options.gib * 1e9 / (2 * options.columns))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _, tags = write(Path(folder), rows, options.columns, 1, "cpu")
        np.save(Path(folder) / "tags.npy", tags)
        child = [sys.executable, __file__, "--child", folder]
        said = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    say(f"memory {options.gib} GB: peak {said['peak']:.0f} MiB, {said['seconds']:.0f} s, gap {said['gap']:.1e}")
    size = about("memory", len(tags), options.columns, 1) | {"contestant": "fastlstm"}
    peak = complete(size | {"metric": "peak_memory", "unit": "MiB"} | quantiles([said["peak"]]))
    return [peak, complete(size | {"metric": "time", "unit": "s"} | quantiles([said["seconds"]]))]


def child(folder: Path) -> None:
    tags = np.load(folder / "tags.npy")
    rows = StoreRows(open_states(folder / "states.zarr"), np.arange(len(tags)))
    model, seconds = timed_fit(rows, tags, "cpu", memory_limit=GIB)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak, "seconds": seconds, "gap": float(model.gap_.max())}))


CASES = {"joint": joint, "store": store, "memory": memory}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["joint", "store"])
    parser.add_argument("--rows", type=int, default=122_000)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--tags", type=int, default=45)
    parser.add_argument("--liblinear", type=int, default=0, help="tags of liblinear beside it")
    parser.add_argument("--store-rows", type=int, default=1_000_000)
    parser.add_argument("--store-tags", type=int, default=17)
    parser.add_argument("--gib", type=float, default=10.0, help="GB of the store of `memory`")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--folder", type=Path, help="where stores are written; the system's if not given")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--commit", help="for the results; default: what git says")
    parser.add_argument("--out", type=Path, default=RESULTS / "probes.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.child is not None:
        child(options.child)
        return 0
    for case in options.cases:
        rows = CASES[case](options)
        save(options.out, (row | machine(options.device, options.commit) for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
