"""What the results say, in sentences: every number in them is computed from the result objects."""

from __future__ import annotations

from dataclasses import dataclass

from fastlstm_probes.concepts.penn import OTHER, SPACE
from fastlstm_probes.results import PartOfSpeechResult, Score, SentimentResult, TagRow, TagScore
from fastlstm_probes.sentiment import (
    ALL_CELLS,
    MAJORITY,
    TFIDF,
    UNTRAINED_ALL_CELLS,
    UNTRAINED_BEST_CELL,
)

# Of the three meanings of "one neuron": the one whose threshold the result stores.

# A tag has a neuron if one cell ranks and finds its bytes this much better than chance does.
MARGIN = 0.25
NEURON_DEFINITION = (
    "A tag has a neuron if the probe on its single largest-weight cell (k = 1) reaches, on held-out text, an average "
    f"precision at least {MARGIN} above the tag's share of the rows (what a random ranking reaches) and an F1 at least "
    f"{MARGIN} above 2p/(1+p), p that share (what always answering yes reaches). "
    "SPACE and punctuation are not counted, as the byte just read gives them away, nor is the rest class OTHER."
)


@dataclass(frozen=True)
class Tile:
    """One number of the headline."""

    value: str
    label: str
    note: str


@dataclass(frozen=True)
class TagFinding:
    """A row of the per-tag table and what it is judged by; `one`: the probe on one cell, None if no weight is left."""

    row: TagRow
    share: float
    one: TagScore | None
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
    """Judge every tag; the tags that one cell finds best come first."""
    found = [_judge(row) for row in result.tags]
    return sorted(found, key=lambda f: (-_lift(f), f.row.tag))


def best_tag(findings: list[TagFinding]) -> TagFinding | None:
    """The part of speech that one cell finds best; another class only if there is nothing else."""
    usable = [finding for finding in findings if finding.row.top]
    return next((finding for finding in usable if finding.word), usable[0] if usable else None)


def f1(shown: TagScore) -> float:
    total = shown.precision + shown.recall
    return 2 * shown.precision * shown.recall / total if total else 0.0


def part_of_speech_sentences(result: PartOfSpeechResult) -> list[str]:
    findings = tag_findings(result)
    words = [finding for finding in findings if finding.word]
    having = [finding for finding in words if finding.neuron]
    own = "has a neuron of its own" if len(having) == 1 else "have a neuron of their own"
    named = ", ".join(
        f"{finding.row.tag} cell {finding.row.top[0]} ({finding.one.average_precision:.2f})"
        for finding in having
        if finding.one is not None
    )
    sentences = [
        f"{len(having)} of {len(words)} parts of speech {own}"
        + (f" (average precision of that cell alone): {named}." if named else ".")
    ]
    overall = {row.k: row for row in result.overall}
    if "all" in overall and "1" in overall:
        baselines = ", ".join(f"{row.name} {percent(row.test)}" for row in result.baselines)
        sentences.append(
            f"All {len(result.units):,} cells name the right tag for {percent(overall['all'].accuracy)} of the "
            f"held-out rows, one cell per tag for {percent(overall['1'].accuracy)}"
            + (f"; for comparison: {baselines}." if baselines else ".")
        )
    return sentences


def _judge(row: TagRow) -> TagFinding:
    share = row.positive / max(row.positive + row.negative, 1)
    one = next((shown for shown in row.by_k if shown.k == "1"), None) if row.top else None
    word = row.tag not in (SPACE, OTHER) and any(character.isalpha() for character in row.tag)
    clear = (
        one is not None
        and one.average_precision is not None
        and one.average_precision >= share + MARGIN
        and f1(one) >= 2 * share / (1 + share) + MARGIN
    )
    return TagFinding(row, share, one, word, clear)


def _lift(finding: TagFinding) -> float:
    """Average precision of one cell above a random ranking's."""
    if finding.one is None or finding.one.average_precision is None:
        return -1.0
    return finding.one.average_precision - finding.share
