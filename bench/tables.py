"""README's tables and docs/lstm_speed.svg from bench/results/lstm.csv.

    python bench/tables.py            # prints the tables
    python bench/tables.py --write    # puts them between README's markers, and renews the plot

The markers are lines of their own: `<!-- lstm table -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench.contestants import Shape, chosen  # noqa: E402
from bench.records import RESULTS, Row, load  # noqa: E402

BEGIN, END = "<!-- lstm table -->", "<!-- end -->"
PLOT = ROOT / "docs" / "lstm_speed.svg"
OURS, HOPPER, AUTO, THEIRS = "fastlstm-triton", "fastlstm-hopper", "fastlstm-auto", "nn.LSTM"
LAYERS = ((OURS, "bf16"), (THEIRS, "fp16"), (THEIRS, "bf16"))
RIVALS = ("torchrl", "flashrnn-alternating", "flashrnn-fused")
DTYPES = ("bf16", "fp16")
CASES = {"forward_infer": "forward", "forward_backward": "forward + backward"}
NONE = "-"


def size_of(row: Row) -> Shape:
    return Shape(int(row["H"]), int(row["B"]), int(row["T"]))


class Results:
    """Rows taken on a GPU, looked up by what was measured."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = [row for row in rows if row["suite"] == "lstm" and row["device"] == "cuda"]
        names = ("case", "contestant", "dtype", "metric", "mode", "input")
        self._found = {(size_of(row), *(row[name] for name in names)): row for row in self.rows}

    def row(
        self, size: Shape, case: str, contestant: str, dtype: str, *, metric: str, mode: str, kind: str
    ) -> Row | None:
        return self._found.get((size, case, contestant, dtype, metric, mode, kind))

    def value(
        self,
        size: Shape,
        case: str,
        contestant: str,
        dtype: str = "bf16",
        *,
        metric: str = "time_per_step",
        mode: str = "queued",
        kind: str = "dense",
    ) -> float | None:
        """The median, or None where there is no number."""
        row = self.row(size, case, contestant, dtype, metric=metric, mode=mode, kind=kind)
        return float(row["median"]) if row and row["median"] else None

    def ratio(self, size: Shape, case: str, mode: str = "queued", *, contestant: str = OURS) -> float | None:
        """The time of the faster of nn.LSTM's fp16 and bf16 over ours in bf16."""
        ours = self.value(size, case, contestant, mode=mode)
        theirs = [self.value(size, case, THEIRS, dtype, mode=mode) for dtype in ("fp16", "bf16")]
        measured = [value for value in theirs if value is not None]
        return None if ours is None or not measured else min(measured) / ours

    def default(self, size: Shape, case: str, dtype: str, mode: str = "queued") -> float | None:
        """The time of what ``fastlstm.LSTM`` runs by itself."""
        kernel = chosen(size, dtype, case)
        forced = self.value(size, case, f"fastlstm-{kernel}", dtype, mode=mode)
        if forced is not None:
            return forced
        row = self.row(size, case, AUTO, dtype, metric="time_per_step", mode=mode, kind="dense")
        # The version says which kernel it was: the chooser may have changed its mind since.
        return float(row["median"]) if row and row["version"].endswith(f" {kernel}") else None

    def default_ratio(self, size: Shape, case: str, dtype: str, mode: str = "queued") -> float | None:
        """The time of nn.LSTM over that, both in ``dtype``."""
        ours, theirs = self.default(size, case, dtype, mode), self.value(size, case, THEIRS, dtype, mode=mode)
        return None if ours is None or theirs is None else theirs / ours

    def sizes(self, T: int, mode: str = "queued") -> list[Shape]:
        """Where our layer was timed over T steps."""
        return sorted(
            {
                size_of(row)
                for row in self.rows
                if (row["contestant"], row["metric"], row["mode"]) == (OURS, "time_per_step", mode)
                and int(row["T"]) == T
                and row["median"]
            }
        )


def number(value: float | None) -> str:
    """Three digits, as many as the spread of the runs deserves."""
    if value is None:
        return NONE
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(ratio: float | None) -> str:
    """A ratio of times; bold where we lose, and never rounded up to a draw."""
    if ratio is None:
        return NONE
    if ratio < 1:
        return f"**{min(ratio, 0.999):.{3 if ratio >= 0.995 else 2}f}×**"
    return f"{ratio:.2f}×"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def compared(results: Results, size: Shape, case: str, mode: str = "queued") -> list[str]:
    """Ours, nn.LSTM in fp16 and bf16, and the ratio."""
    values = [results.value(size, case, who, dtype, mode=mode) for who, dtype in LAYERS]
    return [*map(number, values), times(results.ratio(size, case, mode))]


def speed_table(results: Results, T: int) -> str:
    """Times a step of every H and B."""
    theirs = ["fp16", "bf16", "ratio"]
    head = ["H", "B", "forward", *theirs, "every c_t", "byte ids", "forward + backward", *theirs]
    rows = []
    for size in results.sizes(T):
        extra = [
            results.value(size, "forward_cells", OURS),
            results.value(size, "forward_infer", OURS, kind="ids"),
        ]
        forward, both = (compared(results, size, case) for case in ("forward_infer", "forward_backward"))
        rows.append([str(size.H), str(size.B), *forward, *map(number, extra), *both])
    return table(head, rows)


def step_table(results: Results) -> str:
    """One step: the whole call, eager and as a CUDA graph."""
    head = ["H", "B", "eager", "fp16", "bf16", "ratio", "CUDA graph", "fp16", "bf16", "ratio"]
    sizes = results.sizes(1, "eager")
    return table(
        head,
        [
            [str(size.H), str(size.B)]
            + [cell for mode in ("eager", "graph") for cell in compared(results, size, "forward_infer", mode)]
            for size in sizes
        ],
    )


def whole_table(results: Results) -> str:
    """Whole calls of many steps, as CUDA graphs and eager, at the shapes where they were timed."""
    who = ((HOPPER, "bf16", "ids"), (HOPPER, "bf16", "dense"), *((name, dtype, "dense") for name, dtype in LAYERS))
    head = [
        "H",
        "B",
        "T",
        "mode",
        "case",
        "hopper, byte ids",
        "hopper",
        "triton",
        "nn.LSTM fp16",
        "nn.LSTM bf16",
        "ratio",
    ]
    head += ["triton's ratio"]
    rows = []
    for T, mode in itertools.product((128, 512), ("graph", "eager")):
        for size, (case, name) in itertools.product(results.sizes(T, mode), CASES.items()):
            values = [results.value(size, case, one, dtype, mode=mode, kind=kind) for one, dtype, kind in who]
            ratios = (results.ratio(size, case, mode, contestant=one) for one in (HOPPER, OURS))
            cells = [str(size.H), str(size.B), str(T), mode, name, *map(number, values), *map(times, ratios)]
            rows.append(cells)
    return table(head, rows) if rows else ""


def weights_table(results: Results, T: int) -> str:
    """Small batches: how fast the recurrent weights are read, which is what bounds a step there."""
    rows = []
    for size in results.sizes(T):
        step = results.value(size, "forward_infer", OURS)
        if size.B <= 16 and step is not None:
            weights = 2 * 4 * size.H**2
            rate = weights / step / 1e6  # bytes a microsecond -> TB/s
            rows.append([str(size.H), str(size.B), f"{weights / 1e6:.1f}", number(step), f"{rate:.2f}"])
    return table(["H", "B", "weights, MB", "forward, µs a step", "weights read, TB/s"], rows) if rows else ""


def memory_table(results: Results, T: int) -> str:
    """Peak memory of a call beyond inputs and parameters, in MiB."""
    head = ["H", "B", "forward", "fp16", "bf16", "every c_t", "forward + backward", "fp16", "bf16"]
    columns = [
        *(("forward_infer", who, dtype) for who, dtype in LAYERS),
        ("forward_cells", OURS, "bf16"),
        *(("forward_backward", who, dtype) for who, dtype in LAYERS),
    ]
    rows = []
    for size in results.sizes(T):
        peaks = [results.value(size, *column, metric="peak_memory") for column in columns]
        rows.append([str(size.H), str(size.B), *(NONE if peak is None else f"{peak:,.0f}" for peak in peaks)])
    return table(head, rows) if any(set(row[2:]) != {NONE} for row in rows) else ""


def rival_table(results: Results) -> str:
    """Every contestant where the rivals were tried; a reason in place of a number that there is not."""
    sizes = sorted({size_of(row) for row in results.rows if row["contestant"] in RIVALS}, reverse=True)
    rows: list[list[str]] = []
    reasons: dict[str, str] = {}
    for size in sizes:
        for contestant, dtype in (*LAYERS, *((name, "bf16") for name in RIVALS)):
            cells = []
            for case in ("forward_infer", "forward_backward"):
                row = results.row(size, case, contestant, dtype, metric="time_per_step", mode="queued", kind="dense")
                if row and row["note"]:
                    mark = reasons.setdefault(row["note"], f"[{len(reasons) + 1}]")
                    cells.append(f"{NONE} {mark}")
                else:
                    cells.append(number(float(row["median"])) if row and row["median"] else NONE)
            rows.append([f"{size.H}", f"{size.B}", f"{contestant} {dtype}", *cells])
    if not rows:
        return ""
    text = table(["H", "B", "layer", "forward", "forward + backward"], rows)
    notes = "".join(f"\n{mark} {reason}." for reason, mark in reasons.items())
    return text + (f"\n{notes}" if notes else "")


def distinct(results: Results, name: str, contestant: str | None = None) -> str:
    """The values of a column, without repeats."""
    values = [row[name] for row in results.rows if row[name] and contestant in (None, row["contestant"])]
    return ", ".join(dict.fromkeys(values))


def caption(results: Results) -> str:
    """GPU and versions, from the rows."""
    parts = [distinct(results, "gpu")]
    versions = [
        ("driver", distinct(results, "driver")),
        ("torch", distinct(results, "torch")),
        ("triton", distinct(results, "triton")),
        ("", distinct(results, "version", THEIRS)),
        ("fastlstm", distinct(results, "version", OURS)),
        ("commit", distinct(results, "commit")),
    ]
    versions += [(name, distinct(results, "version", name)) for name in RIVALS]
    parts += [f"{name} {value}".strip() for name, value in versions if value]
    days = sorted({row["date"] for row in results.rows})
    return "; ".join([*parts, " to ".join(dict.fromkeys([days[0], days[-1]]))])


def losses(results: Results) -> str:
    """Where nn.LSTM is faster at T = 128 and what ``fastlstm.LSTM`` runs there by itself; elsewhere, how often."""
    lost: dict[int, list[str]] = {}
    for T in sorted({size_of(row).T for row in results.rows}):
        for size in results.sizes(T):
            for case, name in CASES.items():
                ratio = results.ratio(size, case)
                if ratio is not None and ratio < 1:
                    shown = f"H={size.H} B={size.B} {name} {times(ratio)} ({choices(size, case)})"
                    lost.setdefault(T, []).append(shown)
    if not lost:
        return "nn.LSTM was faster at none of the sizes measured."
    parts = []
    if 128 in lost:
        what = "in parentheses what `fastlstm.LSTM` runs there unless told otherwise"
        parts.append(f"nn.LSTM is faster at T = 128 ({what}): {'; '.join(lost[128])}.")
    others = [f"{len(found)} of the cases at T = {T}" for T, found in lost.items() if T != 128]
    if others:
        parts.append(f"It is faster at {' and '.join(others)}: the bold ratios in the tables below.")
    return " ".join(parts)


def choices(size: Shape, case: str) -> str:
    """What runs when no backend is forced, by dtype."""
    return ", ".join(f"{dtype}: {chosen(size, dtype, case)}" for dtype in DTYPES)


def default_table(results: Results, T: int, mode: str = "queued") -> str:
    """What ``fastlstm.LSTM`` runs by itself, its time, and nn.LSTM's in the same dtype over it."""
    cases = CASES if mode == "queued" else {"forward_infer": "forward"}
    head = ["H", "B"]
    for name, dtype in itertools.product(cases.values(), DTYPES):
        head += [f"{name}, {dtype}", "µs", "ratio"]
    rows = []
    for size in results.sizes(T, mode):
        row = [str(size.H), str(size.B)]
        for case, dtype in itertools.product(cases, DTYPES):
            time, ratio = (measure(size, case, dtype, mode) for measure in (results.default, results.default_ratio))
            row += [chosen(size, dtype, case), number(time), times(ratio)]
        rows.append(row)
    return table(head, rows)


def sent_to_us(results: Results) -> str:
    """Where nn.LSTM is faster in the same dtype than our kernels that the chooser takes."""
    ratios, lost = 0, []
    for mode in ("queued", "eager"):
        for T in sorted({size_of(row).T for row in results.rows}):
            for size, case, dtype in itertools.product(results.sizes(T, mode), CASES, DTYPES):
                ratio = results.default_ratio(size, case, dtype, mode)
                if ratio is None or chosen(size, dtype, case) not in ("hopper", "triton"):
                    continue
                ratios += 1
                if ratio < 1:
                    whole = ", the whole call," if mode == "eager" else ""
                    lost.append(f"{size} {CASES[case]}{whole} {dtype} {times(ratio)}")
    where = f"at {'; '.join(lost)}" if lost else "in none of these"
    return (
        f"Left to itself `fastlstm.LSTM` takes our kernels in {ratios} of the cases measured; in the same dtype "
        f"nn.LSTM is faster {where}."
    )


def hopper_table(results: Results, T: int) -> str:
    """The Hopper kernels where they were timed, bf16: times a step, and ratios to the faster nn.LSTM."""
    head = [
        "H",
        "B",
        "forward",
        "ratio",
        "byte ids",
        "every c_t",
        "for training",
        "forward + backward",
        "ratio",
        "byte ids",
    ]
    rows = []
    for size in results.sizes(T):
        if results.value(size, "forward_infer", HOPPER) is None:
            continue

        def time(case: str, kind: str = "dense", size: Shape = size) -> str:
            return number(results.value(size, case, HOPPER, kind=kind))

        forward = [time("forward_infer"), times(results.ratio(size, "forward_infer", contestant=HOPPER))]
        forward += [time("forward_infer", "ids"), time("forward_cells"), time("forward_train")]
        both = [time("forward_backward"), times(results.ratio(size, "forward_backward", contestant=HOPPER))]
        rows.append([str(size.H), str(size.B), *forward, *both, time("forward_backward", "ids")])
    return table(head, rows) if rows else ""


def details(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def section(rows: Iterable[Row]) -> str:
    """All that stands between README's markers."""
    results = Results(rows)
    if not results.rows:
        raise ValueError("there are no rows measured on a GPU")
    parts = [
        "Microseconds a step of one layer with 256 inputs, its input product included, T = 128: `fastlstm.LSTM` in\n"
        "bf16 with its Triton kernels, `torch.nn.LSTM` in fp16 and bf16, and the time of its faster one over ours:\n"
        "bold where we lose. Medians of interleaved runs, the GPU's time alone. nn.LSTM launches several kernels a\n"
        'step, which costs it time even so: as a CUDA graph it takes up to 1.4 times less ("Whole calls" below).',
        speed_table(results, 128),
        losses(results),
        sent_to_us(results),
        f"*{caption(results)}.*",
    ]
    folded = [
        ("Kernels with resident weights (`hopper`), bf16, T = 128", hopper_table(results, 128)),
        (
            "Whole calls of many steps, awaited: as CUDA graphs, which nn.LSTM gains most by, and eager",
            whole_table(results),
        ),
        ("What `fastlstm.LSTM` runs by itself, T = 128; nn.LSTM in the same dtype", default_table(results, 128)),
        ("T = 512", speed_table(results, 512) if results.sizes(512) else ""),
        ("One step (T = 1): the whole call in microseconds", step_table(results) if results.sizes(1, "eager") else ""),
        (
            "One step: what `fastlstm.LSTM` runs by itself, the whole call; nn.LSTM in the same dtype",
            default_table(results, 1, "eager") if results.sizes(1, "eager") else "",
        ),
        ("Small batches: how fast the weights are read", weights_table(results, 128)),
        ("Peak memory of a call beyond inputs and parameters, MiB, T = 128", memory_table(results, 128)),
        ("Other kernels, microseconds a step, T = 128", rival_table(results)),
    ]
    return "\n\n".join(parts + [details(summary, text) for summary, text in folded if text])


def insert(readme: str, text: str, begin: str = BEGIN) -> str:
    """README with ``text`` between its markers; ValueError if it has not exactly one pair of them."""
    pattern = re.compile(rf"^{re.escape(begin)}$.*?^{re.escape(END)}$", re.MULTILINE | re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"README.md: expected the lines {begin} and {END} once, in this order")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{END}", readme)


def points(results: Results) -> dict[str, dict[int, list[tuple[int, float]]]]:
    """What the plot shows: for each case and H, (B, ratio) at T = 128."""
    shown: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for case in CASES:
        lines: dict[int, list[tuple[int, float]]] = {}
        for size in results.sizes(128):
            ratio = results.ratio(size, case)
            if ratio is not None:
                lines.setdefault(size.H, []).append((size.B, ratio))
        shown[case] = lines
    return shown


def digest(results: Results) -> str:
    """Names the plot's numbers inside its file, so that an old plot can be told."""
    return hashlib.sha256(repr(points(results)).encode()).hexdigest()[:16]


def plot(rows: Iterable[Row], path: Path) -> None:
    """The ratio by batch size, a line for each hidden size; above 1 we are faster."""
    import matplotlib
    from matplotlib.figure import Figure

    results = Results(rows)
    # Fixed ids and no date: the same rows give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "fastlstm", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (case, lines) in zip(panels, points(results).items(), strict=True):
            batches = sorted({B for line in lines.values() for B, _ in line})
            for H, line in sorted(lines.items()):
                axes.plot(
                    [batches.index(B) for B, _ in line], [ratio for _, ratio in line], marker="o", label=f"H = {H}"
                )
            axes.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
            axes.set(title=CASES[case], xlabel="sequences in the batch", ylim=(0, None))
            axes.set_xticks(range(len(batches)), [str(B) for B in batches])
            axes.grid(axis="y", alpha=0.3)
        panels[0].set_ylabel("times as fast as nn.LSTM (T = 128)")
        panels[1].legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        figure.savefig(beside, format="svg", metadata={"Date": None, "Description": f"rows {digest(results)}"})
    beside.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew README.md and the plot")
    parser.add_argument("--results", type=Path, default=RESULTS / "lstm.csv")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args(arguments)
    rows = load(options.results)
    try:
        text = section(rows)
        if not options.write:
            print(text)
            return 0
        renewed = insert(options.readme.read_text(encoding="utf-8"), text)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    beside = options.readme.with_name(options.readme.name + ".new")
    beside.write_text(renewed, encoding="utf-8")
    beside.replace(options.readme)
    plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
