"""The report's figures, drawn with matplotlib's object interface and returned as inline SVG.

SVG text stays text and the ink is a CSS variable, so that a figure takes the page's typeface and its light or dark
colours. Curves are thinned and stems are one path, so that no figure exceeds some tens of kilobytes at any number of
cells or training steps.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from fastlstm_probes.coloured_text import BLUE, RED, Glyph, colour

INK, MUTED, GRID = "#1c2330", "#667085", "#e3e6ec"
ACCENT, STEM = "#d9480f", "#5c7cfa"
# The page sets these variables for light and for dark; the literal colours are what a plain PNG shows.
_CSS_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
_POINTS = 600  # of a curve: more than the pixels it is drawn on


@dataclass(frozen=True)
class Curve:
    """Loss against bytes read: two equally long sequences, bytes and bits per byte."""

    bytes: Sequence[int]
    loss: Sequence[float]


@dataclass(frozen=True)
class Weights:
    """The L1 weights of one classifier: weight (U,) of cell `units` (U,), the cell to name and what they classify."""

    weights: Sequence[float]
    units: Sequence[int]
    neuron: int
    concept: str


@dataclass(frozen=True)
class Classes:
    """Counts of a cell's value in two classes between `edges` (bins + 1,), and where the probe cuts.

    no, yes: counts without and with the concept; high: whether high values mean yes. Blue is the side of low values
    and red that of high ones, as in coloured text.
    """

    edges: Sequence[float]
    no: Sequence[int]
    yes: Sequence[int]
    no_name: str
    yes_name: str
    high: bool
    neuron: int
    threshold: float | None

    @property
    def ends(self) -> tuple[str, str]:
        """What low and high values mean."""
        return (self.no_name, self.yes_name) if self.high else (self.yes_name, self.no_name)


def loss_curve(train: Curve, valid: Curve) -> Markup:
    """Training and (if there is any) validation loss in bits per byte against bytes read (logarithmic)."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.0), layout="constrained")
        axes = figure.subplots()
        at, loss = _thinned(train)
        axes.plot(at, loss, color=STEM, lw=1.3, label="training")
        if valid.bytes:
            at, loss = _thinned(valid)
            label = f"validation, {loss[-1]:.3f} at the end"
            axes.plot(at, loss, color=ACCENT, lw=1.3, marker="o", ms=3.2, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if at[-1] < 300 * at[0] else (1.0,)))
        axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bytes read")
        axes.set_ylabel("bits per byte")
        axes.legend()
        return _svg(figure, "loss")


def weight_plot(shown: Weights, name: str) -> Markup:
    """Every L1 weight as a stem over the cell's number; the largest is named."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        _draw_weights(figure.subplots(), shown)
        return _svg(figure, name)


def class_histogram(shown: Classes, name: str) -> Markup:
    """How the cell's value is distributed in each of two classes (share of the class per bin)."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        _draw_classes(figure.subplots(), shown)
        return _svg(figure, name)


def readme_picture(
    *, title: str, subtitle: str, weights: Weights, classes: Classes, shade: str, reviews: Sequence[Sequence[Glyph]]
) -> bytes:
    """Return one PNG, 3200 x 1800: the weights, the histogram and short reviews coloured by `shade` of the neuron."""
    style = _STYLE | {"font.size": 9.5, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titlepad": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 5.625), facecolor="white")
        figure.text(0.035, 0.928, title, fontsize=18, fontweight="bold", va="center")
        figure.text(0.035, 0.862, subtitle, fontsize=11, color=MUTED, va="center")
        left = figure.add_axes((0.085, 0.435, 0.395, 0.325))
        _draw_weights(left, weights)
        left.set_title(f"L1 weight of each of {len(weights.units):,} cells", fontweight="bold")
        right = figure.add_axes((0.56, 0.435, 0.41, 0.325))
        _draw_classes(right, classes)
        right.set_title("Its value after the last byte of a review", fontweight="bold")
        _draw_reviews(figure.add_axes((0.035, 0.02, 0.935, 0.295)), reviews, classes.ends, shade)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=320, metadata={"Software": None})
        return out.getvalue()


def _draw_weights(axes: Axes, shown: Weights) -> None:
    units, weights = np.asarray(shown.units), np.asarray(shown.weights, dtype=np.float64)
    order = np.argsort(units)
    kept = order[weights[order] != 0]
    # One path with gaps: thousands of separate stems would make the SVG as large as the rest of the page.
    x = np.repeat(units[kept].astype(np.float64), 3)
    y = np.zeros(len(x))
    y[1::3] = weights[kept]
    y[2::3] = np.nan
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.plot(x, y, color=STEM, lw=1.2, solid_capstyle="butt")
    at = np.flatnonzero(units == shown.neuron)
    if len(at):
        w = float(weights[at[0]])
        axes.plot([shown.neuron] * 2, [0, w], color=ACCENT, lw=2.2, solid_capstyle="butt")
        axes.plot([shown.neuron], [w], "o", color=ACCENT, ms=5)
        span = max(int(units.max() - units.min()), 1)
        rightmost = (shown.neuron - units.min()) / span > 0.6
        axes.annotate(
            f"cell {shown.neuron}",
            (shown.neuron, w),
            (-8 if rightmost else 8, 0),
            textcoords="offset points",
            ha="right" if rightmost else "left",
            va="center",
            color=ACCENT,
            fontweight="bold",
        )
    margin = max(2.0, 0.02 * len(units))
    axes.set_xlim(float(units.min()) - margin, float(units.max()) + margin)
    low, high = float(weights.min(initial=0)), float(weights.max(initial=0))
    pad = 0.12 * ((high - low) or 1.0)
    axes.set_ylim(low - pad, high + pad)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("cell")
    axes.set_ylabel(f"L1 weight for {shown.concept}")


def _draw_classes(axes: Axes, shown: Classes) -> None:
    edges = np.asarray(shown.edges, dtype=np.float64)
    top = 0.0
    for counts, name, high in ((shown.no, shown.no_name, not shown.high), (shown.yes, shown.yes_name, shown.high)):
        share = 100 * np.asarray(counts, dtype=np.float64) / max(sum(counts), 1)
        fill = RED if high else BLUE
        axes.stairs(share, edges, fill=True, color=fill, alpha=0.4, lw=0)
        axes.stairs(share, edges, color=fill, lw=1.3, label=f"{name} ({sum(counts):,})")
        top = max(top, float(share.max()))
    if shown.threshold is not None:
        axes.axvline(shown.threshold, ymax=0.86, color=INK, lw=1.1, ls=(0, (4, 3)), label=f"cut {shown.threshold:.2f}")
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    axes.set_ylim(0, 1.22 * (top or 1.0))  # the legend's line
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(f"value of cell {shown.neuron}")
    axes.set_ylabel("% of the class")
    axes.legend(loc="upper center", ncols=3, handlelength=1.2, columnspacing=1.4, borderaxespad=0.1)


def _draw_reviews(axes: Axes, reviews: Sequence[Sequence[Glyph]], ends: tuple[str, str], shade: str) -> None:
    """Draw the colour scale, and below it characters on a grid of equal cells, each on the colour of its byte."""
    columns, rows = 96, 4
    axes.set_xlim(0, columns)
    axes.set_ylim(rows + 0.25, -1.3)
    axes.axis("off")
    placed: list[tuple[float, int, Glyph]] = []
    for i, review in enumerate(reviews):
        free = range(int(placed[-1][0]) + 1 if placed else 0, rows)
        placed += [(row + 0.25 * i, column, glyph) for row, column, glyph in _on_grid(review, columns, free)]
    for row, column, glyph in placed:
        fill = colour(glyph.value) if glyph.value is not None else "white"
        axes.add_patch(Rectangle((column, row), 1.02, 0.9, color=fill, lw=0))
        # The typeface that matplotlib carries: a character that it lacks would be a warning and an empty box.
        known = len(glyph.text) == 1 and (ord(glyph.text) < 0x250 or glyph.text in "–—‘’“”…€")
        text = glyph.text if known else "·"
        axes.text(
            column + 0.5,
            row + 0.47,
            text,
            family="DejaVu Sans Mono",
            fontsize=10.6,
            ha="center",
            va="center_baseline",
            parse_math=False,
        )
    axes.text(
        0, -0.75, f"Held-out reviews, every byte on the colour of {shade}",
        fontsize=11, fontweight="bold", va="center",
    )  # fmt: skip
    low, high = ends
    steps, width, right = 65, 14.0, columns - 9.2
    for i, value in enumerate(np.linspace(-1, 1, steps)):
        left = right - width + i * width / steps
        axes.add_patch(Rectangle((left, -1.0), 1.03 * width / steps, 0.5, color=colour(value), lw=0))
    axes.text(right - width - 0.7, -0.75, f"{low} −1", ha="right", va="center", color=MUTED)
    axes.text(right + 0.7, -0.75, f"+1 {high}", ha="left", va="center", color=MUTED)


def _on_grid(review: Sequence[Glyph], columns: int, rows: range) -> list[tuple[int, int, Glyph]]:
    """Place glyphs at (row, column), a line broken after the last space that fits."""
    rest, placed = list(review), []
    while rest and rest[0].text in "↵ ":
        rest.pop(0)
    for row in rows:
        spaces = [i for i, glyph in enumerate(rest[: columns + 1]) if glyph.text == " "]
        size = len(rest) if len(rest) <= columns else (spaces[-1] + 1 if spaces else columns)
        placed += [(row, column, glyph) for column, glyph in enumerate(rest[:size]) if column < columns]
        rest = rest[size:]
    return placed


def _thinned(curve: Curve) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """At most `_POINTS` points: the mean of equal groups of neighbours."""
    x, y = np.asarray(curve.bytes, dtype=np.float64), np.asarray(curve.loss, dtype=np.float64)
    groups = min(_POINTS, len(x))
    return (
        np.array([part.mean() for part in np.array_split(x, groups)]),
        np.array([part.mean() for part in np.array_split(y, groups)]),
    )


def _svg(figure: Figure, name: str) -> Markup:
    """Inline SVG whose identifiers begin with `name`, so that several on one page do not collide."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'\sid="', f' id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    text = re.sub(r"(?<=px )'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for literal, variable in _CSS_VARIABLES.items():
        text = text.replace(literal, variable)
    return Markup(text.replace("<svg", '<svg role="img"', 1))
