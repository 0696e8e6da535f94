"""README's table of training speed from bench/results/train.csv, between `<!-- train table -->` and `<!-- end -->`.

python bench/train_table.py            # prints it
python bench/train_table.py --write    # puts it there
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench.records import RESULTS, Row, load  # noqa: E402
from bench.tables import NONE, insert, table  # noqa: E402
from fastlstm.files import write_whole  # noqa: E402

BEGIN = "<!-- train table -->"
MINUTES = "470_seconds_"
TEXTS = {"amazon": "Amazon", "imdb": "IMDB"}
Key = tuple[int, int, int, int]  # H, B, T, GPUs


def key_of(row: Row) -> Key:
    return int(row["H"]), int(row["B"]), int(row["T"]), int(row["gpus"])


def section(rows: Iterable[Row]) -> str:
    """The Markdown between the markers; ValueError if there is nothing to show."""
    rows = [row for row in rows if row["suite"] == "train" and row["device"] == "cuda"]
    speeds: dict[Key, dict[tuple[str, str], Row]] = {}
    memory: dict[Key, float] = {}
    for row in rows:
        who = (row["contestant"], row["dtype"])
        if row["case"] == "loader" and row["metric"] == "throughput":
            speeds.setdefault(key_of(row), {})[who] = row
        elif row["case"] == "loader" and row["metric"] == "peak_memory" and row["contestant"] == "fastlstm":
            memory[key_of(row)] = float(row["median"]) / 1024
    if not speeds:
        raise ValueError("train.csv: expected rows of training with the loader on a GPU, found none")
    lines = []
    for key, found in sorted(speeds.items()):
        ours, *theirs = (found.get(who) for who in (("fastlstm", "bf16"), ("nn.LSTM", "fp16"), ("nn.LSTM", "bf16")))
        H, B, T, gpus = key
        rates = [None if row is None else float(row["median"]) / 1e6 for row in (ours, *theirs)]
        fastest = max((rate for rate in rates[1:] if rate is not None), default=None)
        ratio = None if fastest is None or rates[0] is None else rates[0] / fastest
        kernel = NONE if ours is None else ours["version"].split()[-1]
        shown = [NONE if rate is None else f"{rate:.2f}" for rate in rates]
        said = NONE if ratio is None else f"{ratio:.2f}×" if ratio >= 1 else f"**{ratio:.2f}×**"
        gib = f"{memory[key]:.1f}" if key in memory else NONE
        lines.append([str(H), str(B), str(T), str(gpus), kernel, *shown, said, gib])
    head = ["H", "B", "T", "GPUs", "kernel", "fastlstm", "nn.LSTM fp16", "nn.LSTM bf16", "ratio", "GiB"]
    parts = [
        "Millions of bytes a second of whole updates with the loader (`bench/train.py`): fastlstm in bf16, the plain\n"
        "loop around `torch.nn.LSTM` with fused AdamW in the same run, and how many times its faster one's rate ours\n"
        "is. B is over all GPUs; GiB is what our training takes at its peak.",
        table(head, lines),
    ]
    parts += [text for text in (_equal_updates(rows), _equal_seconds(rows), _largest(rows)) if text]
    distinct = {name: sorted({row[name] for row in rows if row[name]}) for name in ("gpu", "driver", "torch", "commit")}
    versions = {row["version"] for row in rows if row["version"].startswith("cuDNN")}
    named = [*distinct["gpu"], *(f"driver {v}" for v in distinct["driver"]), *(f"torch {v}" for v in distinct["torch"])]
    parts.append(f"*{'; '.join([*named, *sorted(versions)])}; commit {', '.join(distinct['commit'])}.*")
    return "\n\n".join(parts)


def _equal_updates(rows: Sequence[Row]) -> str:
    """Losses after the same updates."""
    found = {row["dtype"]: row for row in rows if row["case"] == "equal_updates"}
    if "bf16" not in found or "tf32" not in found:
        return ""

    def said(name: str) -> str:
        row = found[name]
        return f"{float(row['median']):.3f} ({float(row['p20']):.3f} to {float(row['p80']):.3f}, {row['n']} seeds)"

    exact = f", in float32 without TF32 {float(found['fp32']['median']):.3f} (one seed)" if "fp32" in found else ""
    return (
        f"Loss at equal updates (`bench/same_loss.py`): the last tenth of 2,000 updates of the study's recipe ends at\n"
        f"{said('bf16')} bits per byte, nn.LSTM in float32 as PyTorch runs it (TF32) at\n{said('tf32')}{exact}."
    )


def _equal_seconds(rows: Sequence[Row]) -> str:
    found = {row["case"].removeprefix(MINUTES): row for row in rows if row["case"].startswith(MINUTES)}
    if not found:
        return ""
    of_text = " and ".join(f"{float(row['median']):.3f} on {TEXTS[name]}" for name, row in sorted(found.items()))
    updates = next(iter(found.values()))["note"].split(";")[0]
    return (
        f"470 seconds of the recipe `reviews-256` on 181 MB of IMDB and Amazon electronics ({updates}) reach\n"
        f"{of_text} in bits per byte, on held-out documents."
    )


def _largest(rows: Sequence[Row]) -> str:
    found = {row["metric"]: row for row in rows if row["case"] == "largest"}
    if not found:
        return ""
    peak, speed = found["peak_memory"], found["throughput"]
    return (
        f"The largest H seen to train on 80 GB at B = {peak['B']} and T = {peak['T']} (`bench/largest.py`) is\n"
        f"{peak['H']}: {float(peak['median']) / 1024:.1f} GiB, {float(speed['median']):,.0f} bytes a second."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew README.md")
    parser.add_argument("--results", type=Path, default=RESULTS / "train.csv")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    try:
        text = section(load(options.results))
        if options.write:
            text = insert(options.readme.read_text(encoding="utf-8"), text, begin=BEGIN)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not options.write:
        print(text)
        return 0
    write_whole(options.readme, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
