"""What the results say, in sentences: every number in them is computed from the result objects."""

from __future__ import annotations

from dataclasses import dataclass

from fastlstm_probes.baselines import random_cells
from fastlstm_probes.concepts.penn import OTHER, SPACE
from fastlstm_probes.results import BestCell, PartOfSpeechResult, Score, SentimentResult, TagRow
from fastlstm_probes.sentiment import (
    ALL_CELLS,
    MAJORITY,
    TFIDF,
    UNTRAINED_ALL_CELLS,
    UNTRAINED_BEST_CELL,
)

# A tag has a neuron if one cell ranks and finds its bytes this much better than chance does.
MARGIN = 0.25
# And this much better than the untrained model's best cell. Both average precisions are about means over the tag's n
# test rows, so that their difference has a standard error of at most sqrt(0.5 / n): two of them at n = 200.
UNTRAINED_MARGIN = 0.1
FALSE_DISCOVERY = 0.05  # rate above which a tag's best cell is called chance
NEARLY = 0.95  # of the average precision that all cells reach above chance
NEURON_DEFINITION = (
    "Of all cells, the one that ranks a tag's training rows best by its value alone (average precision, high or low "
    "values first) is the tag's best cell. It is the tag's neuron if it reaches, on held-out text, an average "
    f"precision at least {MARGIN} above the tag's share of the rows (what a random ranking reaches) and at least "
    f"{UNTRAINED_MARGIN} above that of the untrained model's best cell, chosen in the same way, and, at the threshold "
    f"of the best F1 on the training rows, an F1 at least {MARGIN} above 2p/(1+p), p that share (what always answering "
    "yes reaches). SPACE and punctuation are not counted, as the byte just read gives them away, nor is the rest class "
    "OTHER."
)


@dataclass(frozen=True)
class Tile:
    """One number of the headline."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class TagFinding:
    """A row of the per-tag table and what it is judged by."""

    row: TagRow
    share: float
    word: bool  # a part of speech: not SPACE, OTHER or punctuation
    neuron: bool


def percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def score(result: SentimentResult, name: str) -> Score | None:
    return next((row for row in result.scores if row.name == name), None)


def sentiment_found(result: SentimentResult) -> bool:
    """The neuron's interval lies above the majority class and above the interval of an untrained model's best cell."""
    one = score(result, result.neuron_score)
    majority, untrained = score(result, MAJORITY), score(result, UNTRAINED_BEST_CELL)
    bars = [majority.test if majority else 0.5, untrained.test_high if untrained else 0.5]
    return one is not None and one.test_low > max(bars)


def sentiment_sentences(result: SentimentResult) -> list[str]:
    one, everything = score(result, result.neuron_score), score(result, ALL_CELLS)
    if one is None:
        return ["The sentiment probe kept no cell: every weight is zero."]
    sentences = [
        f"Cell {result.neuron} alone tells positive from negative documents with {percent(one.test)} accuracy on "
        f"{result.counts['test']:,} held-out documents (95\N{NO-BREAK SPACE}% interval {percent(one.test_low)} to "
        f"{percent(one.test_high)})"
        + (f"; all {len(result.units):,} cells together reach {percent(everything.test)}." if everything else ".")
    ]
    beside = [
        f"{label} {percent(found.test)}"
        for name, label in (
            (UNTRAINED_BEST_CELL, "the best cell of an untrained LSTM"),
            (UNTRAINED_ALL_CELLS, "all cells of an untrained LSTM"),
            (TFIDF, "words and word pairs (TF-IDF)"),
            (MAJORITY, "always answering the more frequent class"),
        )
        if (found := score(result, name)) is not None
    ]
    if beside:
        sentences.append(f"For comparison: {', '.join(beside)}.")
    if sentiment_found(result):
        own = abs(result.weights[result.units.index(result.neuron)])
        others = max((abs(weight) for weight in result.weights if abs(weight) != own), default=0.0)
        if own > others > 0:
            sentences.append(f"Its L1 weight is {own / others:.1f} times the next largest.")
    else:
        sentences.append("That is not clearly above the baselines: this model has no sentiment neuron on this text.")
    return sentences


def tag_findings(result: PartOfSpeechResult) -> list[TagFinding]:
    """Judge every tag; those whose best cell is furthest above chance and above the untrained model's come first."""
    found = [_judge(row) for row in result.tags]
    return sorted(found, key=lambda f: (-_lift(f), f.row.tag))


def is_chance(row: TagRow) -> bool:
    """Whether no cell was found to know the tag."""
    return row.q is not None and row.q > FALSE_DISCOVERY


def cells_needed(row: TagRow) -> int | None:
    """The fewest cells whose classifier ranks held-out rows nearly as well as that on all cells; None: more than tried.

    Both are counted from the tag's share of the rows, which a random ranking reaches.
    """
    share = row.positive / max(row.positive + row.negative, 1)
    found = {score.k: score.average_precision for score in row.by_k}
    if (everything := found.get("all")) is None or everything <= share:
        return None
    tried = [(int(k), ap) for k, ap in found.items() if k != "all" and ap is not None]
    return min((k for k, ap in tried if ap - share >= NEARLY * (everything - share)), default=None)


def best_tag(findings: list[TagFinding]) -> TagFinding | None:
    """The part of speech that one cell finds best; another class only if there is nothing else."""
    return next((finding for finding in findings if finding.word), findings[0] if findings else None)


def f1(shown: BestCell) -> float:
    total = shown.precision + shown.recall
    return 2 * shown.precision * shown.recall / total if total else 0.0


def part_of_speech_sentences(result: PartOfSpeechResult) -> list[str]:
    findings = tag_findings(result)
    words = [finding for finding in findings if finding.word]
    having = [finding for finding in words if finding.neuron]
    own = "has a neuron of its own" if len(having) == 1 else "have a neuron of their own"
    named = ", ".join(
        f"{finding.row.tag} cell {finding.row.best.unit} ({finding.row.best.average_precision:.2f})"
        for finding in having
    )
    sentences = [
        f"{len(having)} of {len(words)} parts of speech {own}"
        + (f" (average precision of that cell alone): {named}." if named else ".")
    ]
    if result.provenance.untrained_store is None:
        sentences.append("No untrained model was given, so they are judged by chance alone.")
    overall = {row.k: row for row in result.overall if row.rule == "norm"}
    more_random = [random_cells(int(k)) for k in overall if k not in ("all", "1")]
    if "all" in overall and "1" in overall:
        compared = [row for row in result.baselines if row.name not in more_random]
        baselines = ", ".join(f"{row.name} {percent(row.test)}" for row in compared)
        sentences.append(
            f"All {len(result.units):,} cells name the right tag for {percent(overall['all'].accuracy)} of the "
            f"held-out rows, one cell per tag for {percent(overall['1'].accuracy)}"
            + (f"; for comparison: {baselines}." if baselines else ".")
        )
    return sentences


def _judge(row: TagRow) -> TagFinding:
    share = row.positive / max(row.positive + row.negative, 1)
    best, untrained = row.best, row.untrained_best
    word = row.tag not in (SPACE, OTHER) and any(character.isalpha() for character in row.tag)
    clear = (
        best.average_precision is not None
        and not is_chance(row)
        and best.average_precision >= share + MARGIN
        and (untrained is None or best.average_precision >= (untrained.average_precision or 0) + UNTRAINED_MARGIN)
        and f1(best) >= 2 * share / (1 + share) + MARGIN
    )
    return TagFinding(row, share, word, clear)


def _lift(finding: TagFinding) -> float:
    """Average precision of the best cell above a random ranking's and above the untrained model's best cell's."""
    best, untrained = finding.row.best, finding.row.untrained_best
    if best.average_precision is None:
        return -1.0
    bars = [finding.share, untrained.average_precision or 0.0 if untrained is not None else 0.0]
    return best.average_precision - max(bars)
