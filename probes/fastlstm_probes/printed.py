"""What a command found, as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastlstm.corpus.shards import Corpus

if TYPE_CHECKING:
    from fastlstm_probes.concepts.labelling import LabelSummary
    from fastlstm_probes.rank import RankedBy
    from fastlstm_probes.results import PartOfSpeechResult, Provenance, Score, SentimentResult, TagRow

SYNTHETIC = "synthetic grammar text: written by a program, not by people"


def print_labelled(summary: LabelSummary) -> None:
    manifest = Corpus(summary.folder).manifest
    if manifest.synthetic:
        print(SYNTHETIC)
    for split, documents in summary.documents.items():
        labels = ", ".join(f"{count:,} {label}" for label, count in summary.labels[split].items() if count)
        print(f"{split:6s}{documents:9,} documents (labels: {labels})")
    if summary.duplicates:
        print(f"{summary.duplicates:,} documents left out: the same text as another's")
    if summary.tags:
        commonest = ", ".join(f"{tag} {count:,}" for tag, count in list(summary.tags.items())[:8])
        print(f"{summary.words:,} tagged words: {commonest}, ...")
    print(f"written: {summary.folder} ({summary.bytes:,} bytes of text)")


def _print_provenance(provenance: Provenance) -> None:
    if provenance.synthetic:
        print(SYNTHETIC)
    print(
        f"model {provenance.model_sha256[:12]} step {provenance.model_step:,}, text {provenance.text_kind} "
        f"{provenance.text_sha256[:12]}, rows {provenance.rows}, split by {provenance.split}, "
        f"seed {provenance.seed}"
    )


def _print_scores(scores: list[Score]) -> None:
    print(f"\n{'accuracy, %':<54s}{'train':>7s}{'valid':>7s}{'test':>7s}   95 % interval")
    for score in scores:
        train, valid = (f"{100 * part:7.1f}" if part is not None else " " * 7 for part in (score.train, score.valid))
        print(
            f"{score.name:<54s}{train}{valid}{100 * score.test:7.1f}   "
            f"{100 * score.test_low:.1f}-{100 * score.test_high:.1f}  {score.detail}"
        )


def print_sentiment(result: SentimentResult) -> None:
    _print_provenance(result.provenance)
    counts = result.counts
    print(
        f"sentiment: {counts['train']:,} train, {counts['valid']:,} valid, {counts['test']:,} test documents, "
        f"{counts['unlabelled']:,} without a label left out"
    )
    print(f"neuron: cell {result.neuron}, {'high' if result.sign > 0 else 'low'} is positive")
    _print_scores(result.scores)


def print_part_of_speech(result: PartOfSpeechResult) -> None:
    from fastlstm_probes.findings import part_of_speech_sentences

    _print_provenance(result.provenance)
    rows = result.rows
    print(
        f"part of speech, tags {'grouped' if result.group else 'as they are'}: {rows['train']:,} of "
        f"{rows['train_available']:,} train, {rows['valid']:,} valid, {rows['test']:,} test rows"
    )
    print("\nall tags, test, %       accuracy  precision  recall (weighted)   95 % interval, by document")
    for overall in result.overall:
        cells = _cells(overall.k) + (", probability" if overall.rule == "probability" else "")
        print(
            f"{cells:<24s}{100 * overall.accuracy:8.1f}{100 * overall.precision:11.1f}{100 * overall.recall:8.1f}"
            f"   {100 * overall.low:.1f}-{100 * overall.high:.1f}"
        )
    _print_scores(result.baselines)
    _print_controls(result)
    print("\n                            all cells, %                  k = 1, %                         best cell, %")
    print(
        "tag       rows   cells     prec. recall av.prec.    cell  prec. recall av.prec.    cell  prec. recall av.prec."
        " untrained  halves resamples"
    )
    for row in result.tags:
        of_k = {score.k: score for score in row.by_k}
        shown = [
            f"{100 * score.precision:6.1f}{100 * score.recall:7.1f}{_percent(score.average_precision)}"
            for score in (of_k["all"], of_k["1"], row.best)
        ]
        cell = str(row.top[0]) if row.top else "-"
        untrained = _percent(row.untrained_best.average_precision if row.untrained_best else None)
        flag = "" if row.converged else "  not converged"
        flag += "  chance" if row.q is not None and row.q > 0.05 else ""
        print(
            f"{row.tag:<7s}{row.positive:7,}{row.features_used:8,}   {shown[0]}{cell:>9s} {shown[1]}"
            f"{row.best.unit:>9d} {shown[2]}{untrained:>10s}{_stability(row)}{flag}"
        )
    for sentence in part_of_speech_sentences(result)[:1]:
        print(f"\n{sentence}")


def _print_controls(result: PartOfSpeechResult) -> None:
    if result.selectivity:
        one = result.selectivity[0]
        print(
            "\nselectivity, test, %      accuracy    control selectivity   95 % interval, by document; "
            f"{one.rows:,} rows of {one.word_types:,} word types, fitted on {one.train_rows:,} rows"
        )
        for task in result.selectivity:
            print(
                f"{_cells(task.k):<24s}{100 * task.accuracy:8.1f}{100 * task.control_accuracy:11.1f}"
                f"{100 * task.selectivity:12.1f}   {100 * task.low:.1f} to {100 * task.high:.1f}"
            )
    if result.positions:
        print("\nplace in the word, test, %          accuracy   95 % interval, by document")
        for place in result.positions:
            print(
                f"{place.position + ', ' + _cells(place.k):<34s}{100 * place.accuracy:8.1f}"
                f"   {100 * place.low:.1f}-{100 * place.high:.1f}  {place.rows:,} words"
            )
    code = result.description_length
    if code is not None:
        print(
            f"\nonline code of the tags of {code.rows:,} train rows, bits a row: {code.bits_per_row:.3f} given all "
            f"cells, {code.frequency_bits_per_row:.3f} by the tags' frequencies alone, "
            f"{code.uniform_bits_per_row:.3f} uniform: compression {code.compression:.2f}"
        )


def _cells(k: str) -> str:
    return "all cells" if k == "all" else f"{k} per tag"


def _stability(row: TagRow) -> str:
    """Of the largest weight: in common to both halves, and in how many resamples; "-" where it was not tested."""
    found = row.stability
    return f"{_percent(found.halves.get('1') if found else None)}{_percent(found.same_top if found else None):>10s}"


def _percent(share: float | None) -> str:
    return f"{100 * share:8.1f}" if share is not None else f"{'-':>8s}"


def print_rankings(table: Sequence[RankedBy]) -> None:
    ks = sorted({k for one in table for k in one.average_precision})
    heads = "".join(f"k = {k}".rjust(8) for k in ks)
    print(f"{'average precision, test, %':<28s}{heads}   first cells")
    for one in table:
        cells = "".join(_percent(one.average_precision.get(k)) for k in ks)
        print(f"{one.name:<28s}{cells}   {' '.join(map(str, one.cells[:5]))}")
