"""The report: one HTML file that loads nothing, with what a run, its probes and its cells show.

What is not given or not found is named in the place where it would stand.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from fastlstm.errors import InputError
from fastlstm.files import write_whole
from fastlstm.states import States
from fastlstm.version import __version__
from fastlstm_probes import figures, findings
from fastlstm_probes.coloured_text import Glyph, held_out, labelled_documents, palette, tagged_documents, visible
from fastlstm_probes.concepts.penn import group_tag, tag_meaning
from fastlstm_probes.origins import Facts, commands, origins, rows_in_words
from fastlstm_probes.results import PartOfSpeechResult, SentimentResult, load_result, result_path
from fastlstm_probes.run_files import Run, Sample, read_run, read_samples
from fastlstm_probes.sentiment import ALL_CELLS, MAJORITY, UNTRAINED_BEST_CELL

_EACH_CLASS, _TAGGED, _LONGEST = 3, 3, 700  # documents shown, and their bytes
_MISCLASSIFIED, _TAG_FIGURES = 12, 3
_SAMPLE_CHARACTERS = 2000
_CANDIDATES, _README_BYTES = 40, 180  # of a class; the picture has room for two lines of each


def write_report(
    out: Path,
    *,
    run: Path | None,
    results: Path,
    states: States | None,
    samples: Path | None,
    readme_figure: Path | None = None,
    allow_unconverged: bool = False,
) -> str:
    """Write the report to `out`.

    run: folder with `log.jsonl` and `config.json`; results: folder with `sentiment.json` and/or
    `part_of_speech.json`; states: a store of every byte of labelled or tagged documents, for the coloured text;
    samples: JSON lines of `fastlstm sample`; readme_figure: also write a PNG of the sentiment neuron here,
    if there are a sentiment result and its coloured text; allow_unconverged: report, and mark, classifiers that are
    not at their optimum. The same input gives the same bytes.

    Returns why `readme_figure` was asked for and not written; empty otherwise.

    Raises:
        InputError: an input that was named is missing or damaged, two of them are of different models, or a classifier
            did not converge and that was not allowed.
    """
    if not results.is_dir():
        raise InputError(
            f"results: expected a folder with sentiment.json or part_of_speech.json, found none at {results}"
        )
    trained = read_run(run) if run is not None else None
    written = read_samples(samples) if samples is not None else []
    sentiment, pos = _read_results(results)
    sources = [result.provenance for result in (sentiment, pos) if result is not None]
    _check_models(trained, sentiment, pos, states, written)
    if not allow_unconverged:
        _check_converged(sentiment, pos)
    no_text = _why_no_text(states, sentiment)
    page = {
        "version": __version__,
        "palette": palette(),
        "synthetic": any(source.synthetic for source in sources),
        "headline": _headline(sentiment, pos),
        "tiles": _tiles(trained, sentiment, pos),
        "training": _training(trained) if trained is not None and trained.train else None,
        "sentiment": _sentiment(sentiment) if sentiment is not None else None,
        "text": _text(states, sentiment) if states is not None and sentiment is not None and not no_text else None,
        "pos": _part_of_speech(pos, states) if pos is not None else None,
        "samples": [_shown(sample) for sample in written],
        "provenance": origins(trained, sentiment, pos, states, written),
        "config": json.dumps(trained.config, indent=2) if trained and trained.config else None,
        "commands": commands(out, trained, results, samples, sentiment, pos),
        "absent": {
            "training": "no run folder was given." if trained is None else "the run has not logged a step yet.",
            "sentiment": f"there is no sentiment.json in {results}: no sentiment probe was fitted.",
            "text": no_text,
            "pos": f"there is no part_of_speech.json in {results}: no part-of-speech probe was fitted.",
            "tagged": _why_no_tags(states, pos),
            "samples": "no samples of generated text were given.",
        },
    }
    source = (resources.files("fastlstm_probes") / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    if readme_figure is not None and sentiment is not None and states is not None and not no_text:
        _write(readme_figure, _readme_picture(sentiment, states))
    _write(out, environment.from_string(source).render(page).encode())
    return no_text if readme_figure is not None else ""


def _read_results(folder: Path) -> tuple[SentimentResult | None, PartOfSpeechResult | None]:
    sentiment, pos = result_path(folder, SentimentResult), result_path(folder, PartOfSpeechResult)
    first = load_result(sentiment) if sentiment.is_file() else None
    second = load_result(pos) if pos.is_file() else None
    if first is not None and not isinstance(first, SentimentResult):
        raise InputError(f"{sentiment}: expected a sentiment result")
    if second is not None and not isinstance(second, PartOfSpeechResult):
        raise InputError(f"{pos}: expected a part-of-speech result")
    return first, second


def _check_converged(sentiment: SentimentResult | None, pos: PartOfSpeechResult | None) -> None:
    gaps = {"sentiment": sentiment.gap} if sentiment is not None and not sentiment.converged else {}
    gaps |= {row.tag: row.gap for row in pos.tags if not row.converged} if pos is not None else {}
    if gaps:
        name = max(gaps, key=lambda key: gaps[key])
        raise InputError(
            f"results: {len(gaps)} classifiers did not converge ({name}: relative duality gap {gaps[name]:.1e}): fit "
            "again with a larger --max-iter, or report them as they are with --allow-unconverged"
        )


def _check_models(
    run: Run | None,
    sentiment: SentimentResult | None,
    pos: PartOfSpeechResult | None,
    states: States | None,
    samples: list[Sample],
) -> None:
    """Everything on one page is of one model."""
    models = [
        ("the sentiment result", sentiment.provenance.model_sha256 if sentiment is not None else None),
        ("the part-of-speech result", pos.provenance.model_sha256 if pos is not None else None),
        ("the states store", states.attributes.model.sha256 if states is not None else None),
        ("the run's newest checkpoint", run.model_sha256 if run is not None else None),
        *((f"sample {number}", sample.model_sha256) for number, sample in enumerate(samples, start=1)),
    ]
    named = [(what, model) for what, model in models if model is not None]
    for what, model in named[1:]:
        first, expected = named[0]
        if model != expected:
            raise InputError(
                f"{what} is of model {model[:12]}, {first} of model {expected[:12]}: a report is of one model; sample, "
                "dump and fit again with it"
            )


def _why_no_colour(states: States | None, unit: int) -> str:
    """What keeps cell `unit` from colouring text; empty if nothing does."""
    if states is None:
        return "no states store was given."
    stored = states.attributes
    if stored.rows != "all":
        return f"the states store has the rows {stored.rows!r}; coloured text needs every byte (rows 'all')."
    if unit not in states.units:
        return f"cell {unit} is not among the {len(states.units)} cells of the states store."
    return ""


def _why_no_text(states: States | None, result: SentimentResult | None) -> str:
    if result is None:
        return "no sentiment probe was fitted, so there is no neuron to colour text by."
    why = _why_no_colour(states, result.neuron)
    if why or states is None:
        return why
    labels = states.document_label[held_out(states)]
    labels = labels[~np.isnan(labels)]
    if not len(labels):
        return "the states store has no held-out document with a sentiment label."
    if not np.isin(labels, (0, 1)).all():
        return f"the labels of the states store are {states.attributes.text.label_meaning}, not sentiment 0/1."
    return ""


def _why_no_tags(states: States | None, result: PartOfSpeechResult | None) -> str:
    best = findings.best_tag(findings.tag_findings(result)) if result is not None else None
    if result is None or best is None:
        return "no tag was probed, so there is no neuron to colour text by."
    why = _why_no_colour(states, best.row.best.unit)
    return why or "the states store has no held-out document with tagged words."


def _headline(sentiment: SentimentResult | None, pos: PartOfSpeechResult | None) -> list[str]:
    sentences = []
    if sentiment is not None:
        sentences.append(" ".join(findings.sentiment_sentences(sentiment)))
    if pos is not None:
        sentences.append(" ".join(findings.part_of_speech_sentences(pos)))
    return sentences or ["No probe has been fitted yet: this page shows what there is of the model alone."]


def _tiles(run: Run | None, sentiment: SentimentResult | None, pos: PartOfSpeechResult | None) -> list[findings.Tile]:
    tiles = []
    if sentiment is not None:
        for name, label in (
            (sentiment.neuron_score, f"cell {sentiment.neuron} alone"),
            (ALL_CELLS, f"all {len(sentiment.units):,} cells"),
            (UNTRAINED_BEST_CELL, "best untrained cell"),
            (MAJORITY, "majority class"),
        ):
            found = findings.score(sentiment, name)
            if found is not None:
                tiles.append(findings.Tile(findings.percent(found.test), label, "sentiment, test accuracy"))
    if pos is not None:
        words = [finding for finding in findings.tag_findings(pos) if finding.word]
        having = sum(finding.neuron for finding in words)
        tiles.append(findings.Tile(f"{having} of {len(words)}", "tags have a neuron", "parts of speech"))
    if run is not None and run.valid:
        tiles.append(findings.Tile(f"{run.valid[-1]['loss']:.3f}", "bits per byte", "validation text"))
    return tiles


def _training(run: Run) -> dict[str, Any]:
    facts: Facts = []
    if run.valid:
        last = run.valid[-1]
        facts.append(("validation loss", f"{last['loss']:.4f} bits per byte"))
        facts.append(("validation accuracy (next byte)", findings.percent(last["accuracy"])))
    last = run.train[-1]
    facts.append(("training loss, last logged", f"{last['loss']:.4f} bits per byte"))
    facts.append(("bytes read", f"{last['bytes']:,}"))
    facts.append(("updates", f"{last['step']:,}"))
    rate = statistics.median(event["bytes_per_second"] for event in run.train)
    facts.append(("speed, median", f"{rate:,.0f} bytes/s"))
    if "device" in run.start:
        facts.append(("device", run.start["device"]))
    if "parameters" in run.start:
        facts.append(("parameters", f"{run.start['parameters']:,}"))
    for name in ("precision", "kernel"):
        if name in run.start:
            facts.append((name, run.start[name]))
    facts += _health(run) + _parts(run)
    facts.append(("time since the last start", f"{run.seconds:,.0f} s" if run.seconds is not None else "not ended"))
    curves = [
        figures.Curve([event["bytes"] for event in events], [event["loss"] for event in events])
        for events in (run.train, _with_bytes_read(run))
    ]
    return {"figure": figures.loss_curve(*curves), "facts": facts}


def _health(run: Run) -> Facts:
    """The last look at the cells."""
    if not run.health:
        return []
    last = run.health[-1]
    gates = ", ".join(f"{gate} {last[f'saturated_{gate}']:.0%}" for gate in ("input", "forget", "output"))
    return [
        ("gradient norm, last logged", f"{run.train[-1].get('gradient_norm', float('nan')):.3g}"),
        ("|c|, median and 99 %", f"{last['cell_p50']:.3g}, {last['cell_p99']:.3g} at update {last['step']:,}"),
        ("cells with a standard deviation above 10", f"{last['wide_cells']:.0f}"),
        ("gates below 0.1 or above 0.9", gates),
    ]


def _parts(run: Run) -> Facts:
    """Where an update's time goes, if it was profiled."""
    if run.profile is None:
        return []
    parts: dict[str, float] = run.profile["parts"]
    whole = sum(parts.values())
    shares = ", ".join(f"{name} {milliseconds / whole:.0%}" for name, milliseconds in parts.items())
    return [("time of an update", f"{run.profile['fed']:.3g} ms"), ("of it", shares)]


def _sentiment(result: SentimentResult) -> dict[str, Any]:
    return {
        "result": result,
        "nonzero": sum(weight != 0 for weight in result.weights),
        "main": result.neuron_score,
        "weights": figures.weight_plot(_sentiment_weights(result), "sentiment-weights"),
        "histogram": figures.class_histogram(_sentiment_classes(result), "sentiment-classes"),
        "misclassified": result.misclassified[:_MISCLASSIFIED],
    }


def _sentiment_weights(result: SentimentResult) -> figures.Weights:
    return figures.Weights(result.weights, result.units, result.neuron, "positive")


def _sentiment_classes(result: SentimentResult) -> figures.Classes:
    return figures.Classes(
        result.histogram.edges,
        result.histogram.negative,
        result.histogram.positive,
        "negative",
        "positive",
        result.sign > 0,
        result.neuron,
        result.threshold,
    )


def _text(states: States, result: SentimentResult) -> dict[str, Any]:
    split = "test" if (states.document_split == 2).any() else "validation"
    centre, shade = _shade(result.neuron, result.threshold)
    return {
        "neuron": result.neuron,
        "shade": shade,
        "centred": centre != 0,
        "choice": f"The first {_EACH_CLASS} {split} documents of each class, those of at most {_LONGEST} bytes first.",
        "ends": _ends(result.sign > 0, "positive", "negative"),
        "documents": labelled_documents(states, result.neuron, each=_EACH_CLASS, longest=_LONGEST, centre=centre),
    }


def _shade(neuron: int, threshold: float) -> tuple[float, str]:
    """What is subtracted from the cell before tanh, and the formula in words.

    Nothing, as in the literature, unless the threshold lies where tanh is flat: then both classes would have one
    colour (cells of small models drift to values of 4 and more), and the colours are centred on the threshold.
    """
    if abs(threshold) <= 1:
        return 0.0, f"tanh(cell {neuron})"
    sign = "-" if threshold > 0 else "+"
    return threshold, f"tanh(cell {neuron} {sign} {abs(threshold):.2f})"


def _ends(high: bool, yes: str, no: str) -> tuple[str, str]:
    """What blue (low) and red (high) mean."""
    return (f"blue: {no if high else yes}", f"red: {yes if high else no}")


def _part_of_speech(result: PartOfSpeechResult, states: States | None) -> dict[str, Any]:
    judged = findings.tag_findings(result)
    best = findings.best_tag(judged)
    documents, ends, shade = [], ("", ""), ""
    if best is not None:
        neuron = best.row.best.unit
        centre, shade = _shade(neuron, best.row.best.threshold)
        ends = _ends(best.row.best.sign > 0, best.row.tag, f"not {best.row.tag}")
        if states is not None and not _why_no_colour(states, neuron):
            documents = tagged_documents(
                states,
                neuron,
                tag=best.row.tag,
                group=lambda tag: group_tag(tag, result.group),
                count=_TAGGED,
                longest=_LONGEST,
                centre=centre,
            )
    return {
        "result": result,
        "definition": findings.NEURON_DEFINITION,
        "findings": judged,
        "stored": rows_in_words(result.provenance.rows),
        "meaning": {row.tag: tag_meaning(row.tag, result.group) for row in result.tags},
        "ks": [row.k for row in result.overall if row.rule == "norm"],
        "unconverged": any(not row.converged for row in result.tags),
        "stable": [finding.row for finding in judged if finding.row.stability is not None],
        "shown": [_tag_figures(result, f) for f in judged if f.word][:_TAG_FIGURES],
        "best": best,
        "ends": ends,
        "shade": shade,
        "documents": documents,
    }


def _tag_figures(result: PartOfSpeechResult, finding: findings.TagFinding) -> dict[str, Any]:
    row = finding.row
    neuron = row.best.unit
    # Identifiers in SVG: a tag may be punctuation.
    name = "tag-" + "".join(f"{byte:02x}" for byte in row.tag.encode())
    classes = figures.Classes(
        row.histogram.edges,
        row.histogram.negative,
        row.histogram.positive,
        f"not {row.tag}",
        row.tag,
        row.best.sign > 0,
        neuron,
        row.best.threshold,
    )
    weights = figures.Weights(row.weights, result.units, neuron, row.tag)
    return {
        "tag": row.tag,
        "neuron": neuron,
        "weights": figures.weight_plot(weights, f"{name}-weights"),
        "histogram": figures.class_histogram(classes, f"{name}-classes"),
    }


def _with_bytes_read(run: Run) -> list[dict[str, Any]]:
    """Give every validation the training bytes read up to its step (its own `bytes` are the validation text's)."""
    steps = [event["step"] for event in run.train]
    read = [event["bytes"] for event in run.train]
    return [event | {"bytes": float(np.interp(event["step"], steps, read))} for event in run.valid]


def _shown(sample: Sample) -> dict[str, Any]:
    """A sample with control characters as symbols; its newlines also break the line."""
    text = "".join(visible(character) for character in sample.text[:_SAMPLE_CHARACTERS])
    return {
        "prime": "".join(visible(character) for character in sample.prime),
        "text": text.replace("↵", "↵\n").rstrip("\n") + (" …" if len(sample.text) > _SAMPLE_CHARACTERS else ""),
        "at": f"{sample.temperature:g}",
        "seed": sample.seed,
    }


def _readme_picture(result: SentimentResult, states: States) -> bytes:
    centre, shade = _shade(result.neuron, result.threshold)
    documents = labelled_documents(states, result.neuron, each=_CANDIDATES, longest=_README_BYTES, centre=centre)
    # Of each class the review in which the neuron moves most, a whole one if there is any.
    reviews = []
    for label in (0, 1):
        of_class = [document for document in documents if document.label == label]
        whole = [document for document in of_class if not document.shortened]
        lines = [
            [glyph for piece in document.pieces for glyph in piece.glyphs] + [Glyph("…", None)] * document.shortened
            for document in whole or of_class
        ]
        reviews += [max(lines, key=_swing)] if lines else []
    one, untrained = (findings.score(result, name) for name in (result.neuron_score, UNTRAINED_BEST_CELL))
    subtitle = []
    if one is not None:
        reviews_named = "synthetic reviews" if result.provenance.synthetic else "reviews"
        right = f"{findings.percent(one.test)} of {result.counts['test']:,} held-out {reviews_named}"
        subtitle.append(f"Alone it classifies {right} correctly")
    if untrained is not None:
        subtitle.append(f"the best cell of an untrained LSTM: {findings.percent(untrained.test)}")
    role = "is the sentiment neuron" if findings.sentiment_found(result) else "is nearest to a sentiment neuron"
    return figures.readme_picture(
        title=f"Cell {result.neuron} of {len(result.units):,} {role}",
        subtitle="; ".join(subtitle),
        weights=_sentiment_weights(result),
        classes=_sentiment_classes(result),
        shade=shade,
        reviews=reviews,
    )


def _swing(review: Sequence[Glyph]) -> float:
    values = [glyph.value for glyph in review if glyph.value is not None]
    return max(values, default=0.0) - min(values, default=0.0)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
