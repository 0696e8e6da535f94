"""README's tables of cell states, of probes and of what they found, between their markers, from bench/results/:
states.csv, probes.csv, and what `fastlstm-probes fit` wrote: carvalho2018.csv (its overall.csv),
carvalho2018_tags.csv (of its tags.csv the rows of all cells) and radford2017.csv (its sentiment.csv).

python bench/extraction_tables.py            # prints them
python bench/extraction_tables.py --write    # puts them there
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "probes"), str(ROOT / "tests")]

from bench.records import RESULTS, Row, load  # noqa: E402
from bench.tables import NONE, insert, table  # noqa: E402
from fastlstm.files import write_whole  # noqa: E402
from fastlstm_probes.baselines import BYTE_NGRAM, MAJORITY, UNTRAINED_ALL  # noqa: E402

DEVICES = ("cuda", "cpu")
# What a line says: case, contestant, metric, and how its number is shown.
Shown = Callable[[float], str]


def _millions(value: float) -> str:
    return f"{value / 1e6:.2f} MB/s"


STATES: tuple[tuple[str, tuple[str, str, str], Shown], ...] = (
    ("every state to the host, text", ("extract", "fastlstm", "throughput"), _millions),
    ("every state to a disk, text", ("write", "fastlstm", "throughput"), _millions),
    ("time over that of raw files", ("write", "fastlstm", "wall_ratio"), "{:.2f}×".format),
    ("raw files of the same size", ("write", "raw", "rate"), "{:.2f} GB/s".format),
    ("the same to memory (tmpfs), text", ("write_tmpfs", "fastlstm", "throughput"), _millions),
    ("time over that of raw files", ("write_tmpfs", "fastlstm", "wall_ratio"), "{:.2f}×".format),
    ("rows that are there already, time over raw", ("writer", "fastlstm", "wall_ratio"), "{:.2f}×".format),
    ("16 units, text", ("units_16", "fastlstm", "throughput"), _millions),
    ("... with loading the model and making the store", ("units_16", "fastlstm", "throughput_call"), _millions),
    ("last state of each document, text", ("last_state", "fastlstm", "throughput"), _millions),
    ("mean of each document, text", ("document_mean", "fastlstm", "throughput"), _millions),
    ("statistics alone, text", ("statistics", "fastlstm", "throughput"), _millions),
    ("... with loading the model and making the store", ("statistics", "fastlstm", "throughput_call"), _millions),
    ("scan of all rows", ("scan", "fastlstm", "rate"), "{:.1f} GB/s".format),
    ("raw files, as many threads", ("scan", "raw", "rate"), "{:.1f} GB/s".format),
    ("Zarr's own reader", ("scan", "zarr", "rate"), "{:.1f} GB/s".format),
    ("one unit of 1,048,576 rows", ("unit", "fastlstm", "time"), "{:.0f} ms".format),
    ("ten documents of 512 rows", ("documents", "fastlstm", "time"), "{:.0f} ms".format),
    ("resident memory at the peak", ("write", "fastlstm", "peak_memory"), "{:,.0f} MiB".format),
)


def _found(rows: Iterable[Row], suite: str) -> dict[tuple[str, str, str, str], Row]:
    found = {
        (row["case"], row["contestant"], row["metric"], row["device"]): row for row in rows if row["suite"] == suite
    }
    if not found:
        raise ValueError(f"{suite}.csv: expected rows of the suite {suite!r}, found none")
    return found


def _origin(rows: Iterable[Row]) -> str:
    """What the numbers were measured on."""
    rows = list(rows)
    distinct = {name: sorted({row[name] for row in rows if row[name]}) for name in ("gpu", "torch", "commit")}
    named = [*distinct["gpu"], *(f"torch {version}" for version in distinct["torch"])]
    return f"*{'; '.join(named)}; commit {', '.join(distinct['commit'])}.*"


def states(results: Path) -> str:
    """The Markdown of cell states."""
    rows = load(results / "states.csv")
    found = _found(rows, "states")
    of_device = {device: [row for key, row in found.items() if key[3] == device] for device in DEVICES}
    lines = []
    for name, key, shown in STATES:
        values = [found.get((*key, device)) for device in DEVICES]
        if any(values):
            lines.append([name, *(NONE if row is None else shown(float(row["median"])) for row in values)])
    sizes = [f"H = {rows[0]['H']}" if rows else NONE for rows in of_device.values()]
    head = ["float16", f"GPU, {sizes[0]}", f"CPU, {sizes[1]}"]
    return "\n\n".join(
        [
            "Bytes of text (or of states, GB) a second (`bench/states.py`). Raw files are written and read by as many\n"
            "threads as ours. Whole calls, where said, are of 48 MB of text on the GPU.",
            table(head, lines),
            _origin(found.values()),
        ]
    )


def probes(results: Path) -> str:
    """The Markdown of probes."""
    found = _found(load(results / "probes.csv"), "probes")
    lines = []
    for (case, contestant, metric, device), row in found.items():
        if metric != "time":
            continue
        peak = found.get((case, contestant, "peak_memory", device))
        memory = NONE if peak is None else f"{float(peak['median']) / 1024:.2f}"
        ratio = found.get((case, "fastlstm", "objective_ratio", device)) if contestant == "liblinear" else None
        said = NONE if ratio is None else f"{float(ratio['p80']):.8f}"
        source = "store" if row["dtype"] == "float16" else "memory"
        size = f"{int(row['B']):,} × {int(row['H']):,}"
        lines.append([size, source, row["T"], device, contestant, f"{float(row['median']):,.1f}", memory, said])
    head = ["rows × cells", "from", "tags", "on", "solver", "seconds", "GiB", "objective, ours over its"]
    return "\n\n".join(
        [
            "L1 logistic regressions at C = 0.25 until every tag's relative duality gap is at most 1e-6\n"
            "(`bench/probes.py`, synthetic cells). liblinear fits one tag at a time; its seconds are of one tag.\n"
            "GiB: on a GPU of its memory, from a store of the process.",
            table(head, lines),
            *(
                f"{who}, {int(row['B']):,} rows: {row['note']}."
                for (_, who, metric, _), row in found.items()
                if metric == "time" and (who == "liblinear" or "beside" in row["note"])
            ),
            _origin(found.values()),
        ]
    )


# The study's own figures (its logs: accuracy on test by argmax of the probabilities), by grouped: all, k = 3, k = 1.
MODEL = "model_of_findings"  # the case in train.csv of the model that was probed
Q = 0.05  # the false discovery rate of a list of tags
CARVALHO = {True: (0.873, 0.617, 0.526), False: (0.839, 0.565, 0.399)}


def findings(results: Path) -> str:
    """The Markdown of what the probes found in a model of real text."""
    pos, tags, sentiment = (
        _printed(results / f"{name}.csv") for name in ("carvalho2018", "carvalho2018_tags", "radford2017")
    )
    texts = {row["text"] for row in (*pos, *tags)}
    if len(texts) > 1:
        raise ValueError(f"carvalho2018.csv: expected one text, got {', '.join(sorted(texts))}")
    accuracy = {
        (row["grouped"] == "True", row["split"], row["row"]): _percent(row["accuracy"])
        for row in pos
        if row["argmax"] in ("probability", "") and row["accuracy"]
    }
    shown = ("k=all", "k=20", "k=3", "k=1", BYTE_NGRAM, UNTRAINED_ALL, MAJORITY)
    lines = []
    for grouped, name in ((True, "grouped"), (False, "as they are")):
        for split in ("document", "byte"):
            lines.append([name, split, *(accuracy.get((grouped, split, row), NONE) for row in shown)])
        study = [f"{100 * value:.1f}" for value in CARVALHO[grouped]]
        lines.append([name, "byte, the study's own", study[0], NONE, *study[1:], NONE, NONE, NONE])
    head = ["tags", "split by", "all cells", "20 cells", "3", "1", "last 4 bytes", "untrained", "majority"]
    reviews = [
        [
            row["row"],
            *(_percent(row[part]) for part in ("valid", "test")),
            f"{_percent(row['low'])} to {_percent(row['high'])}",
        ]
        for row in sentiment
    ]
    of_document = [row for row in tags if row["split"] == "document"]
    chance = []
    for grouped, name in (("True", "grouped tags"), ("False", "tags as they are")):
        q = {row["tag"]: float(row["best_cell_q"]) for row in of_document if row["grouped"] == grouped}
        without = sorted((tag for tag in q if q[tag] > Q), key=q.__getitem__, reverse=True)
        named = f" (not {', '.join(f'`{tag}`' for tag in without)})" if without else ""
        chance.append(f"{len(q) - len(without)} of {len(q)} {name}{named}")
    model, step = pos[0], int(pos[0]["model_step"])
    trained = {row["metric"]: row for row in load(results / "train.csv") if row["case"] == MODEL}
    if set(trained) != {"loss", "throughput"}:
        raise ValueError(
            f"train.csv: expected the loss and the throughput of the case {MODEL!r}, found {len(trained)} rows"
        )
    rate, loss = float(trained["throughput"]["median"]) / 1e6, float(trained["loss"]["median"])
    return "\n\n".join(
        [
            "Part of speech: accuracy in % on the test bytes of 250 lines of WikiText-103, tagged by NLTK.\n"
            "The answer is the largest probability, as in the study's code; of the untrained model the largest\n"
            "normalised margin.",
            table(head, lines),
            f"A cell better than chance (q <= {Q}, split by document) have {' and '.join(chance)}.",
            "Sentiment: accuracy in % on the Stanford Sentiment Treebank.",
            table(["row", "dev", "test", "95 %"], reviews),
            f"*Model {model['model_sha256'][:12]}, step {step:,}, {rate:.1f} MB/s, {loss:.2f} bits per byte:\n"
            f"{trained['loss']['note']}. Rows with their hashes are in\n"
            "`bench/results/`: `carvalho2018.csv`, `carvalho2018_tags.csv`, `radford2017.csv`.*",
        ]
    )


def _percent(share: str) -> str:
    return f"{100 * float(share):.1f}"


def _printed(path: Path) -> list[dict[str, str]]:
    """The rows of a table that a recipe of the probes wrote."""
    if not path.exists():
        raise ValueError(f"{path}: expected a table of `fastlstm-probes fit`, found none")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path}: expected rows, found none")
    return rows


SECTIONS: dict[str, Callable[[Path], str]] = {"states": states, "probes": probes, "findings": findings}


def begin(name: str) -> str:
    """The line that a section begins after."""
    return f"<!-- {name} table -->"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew README.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    try:
        texts = {name: make(options.results) for name, make in SECTIONS.items()}
        if options.write:
            readme = options.readme.read_text(encoding="utf-8")
            for name, text in texts.items():
                readme = insert(readme, text, begin=begin(name))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not options.write:
        print("\n\n".join(texts.values()))
        return 0
    write_whole(options.readme, readme.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
