"""Where the report's numbers come from, and the commands that make them again."""

from __future__ import annotations

import shlex
from pathlib import Path

from fastlstm.corpus.manifest import SPLITS
from fastlstm.states import States
from fastlstm_probes.results import PartOfSpeechResult, Provenance, SentimentResult
from fastlstm_probes.run_files import Run, Sample

Facts = list[tuple[str, str]]


def origins(
    run: Run | None,
    sentiment: SentimentResult | None,
    pos: PartOfSpeechResult | None,
    states: States | None,
    samples: list[Sample],
) -> list[tuple[str, Facts]]:
    """Return named lists of (what, value): hashes, seeds, rules and versions of everything on the page."""
    parts: list[tuple[str, Facts]] = []
    for name, result in (("Sentiment probe", sentiment), ("Part-of-speech probes", pos)):
        if result is None:
            continue
        source = result.provenance
        facts: Facts = [
            ("model weights, sha256", source.model_sha256),
            ("training step", f"{source.model_step:,}"),
            ("text, sha256", source.text_sha256),
            ("text", source.text_kind + (", synthetic" if source.synthetic else "")),
            ("tags of its words", source.tags),
            ("documents of each split", "all" if source.documents is None else f"the first {source.documents:,}"),
            ("states store", source.store),
            ("states store, untrained", source.untrained_store or "none was given"),
            ("rows", rows_in_words(source.rows)),
            ("stored states", f"{source.dtype}, {source.batch_size} documents side by side"),
            ("state at a document's start", "zero" if source.state == "document" else "carried on"),
            ("split", f"by {source.split}"),
            ("seed", str(source.seed)),
            ("solver", source.solver),
            *([("controls", ", ".join(source.controls) or "none")] if result is pos else []),
            ("passes over the rows, at most", f"{source.max_iter:,}"),
            ("time of the fit", f"{result.seconds:.1f} s"),
            ("versions", ", ".join(f"{key} {value}" for key, value in sorted(source.versions.items()))),
        ]
        parts.append((name, facts))
    if states is not None:
        stored = states.attributes
        shown = [
            ("states store", states.identity),
            ("model weights, sha256", stored.model.sha256),
            ("text, sha256", stored.text.sha256),
            ("content", f"{states.rows:,} rows of {len(states.units):,} cells, {states.documents:,} documents"),
        ]
        parts.append(("Coloured text", shown))
    if run is not None:
        facts = [("log", str(run.folder / "log.jsonl"))]
        facts += [(key, str(run.start[key])) for key in ("corpus", "device", "torch") if key in run.start]
        parts.append(("Training", facts))
    models = sorted({sample.model_sha256 for sample in samples if sample.model_sha256 is not None})
    if models:
        parts.append(("Samples", [("model weights, sha256", ", ".join(models))]))
    return parts


def rows_in_words(rule: str) -> str:
    """What a store's rule for rows means."""
    named = {"all": "every byte", "document": "the last byte of each document", "word": "the last byte of each word"}
    return named.get(rule, rule.replace("every:", "every n-th byte, n = "))


def commands(
    out: Path,
    run: Run | None,
    results: Path,
    samples: Path | None,
    sentiment: SentimentResult | None,
    pos: PartOfSpeechResult | None,
) -> list[str]:
    """The command of every step; words in capitals are paths, recipes and choices of text that no result records."""
    folder = _quoted(run.folder) if run is not None else "RUN"
    lines = []
    if run is not None:
        settings = [
            f"{group}.{key}={value}"
            for group, values in (run.config or {}).items()
            if isinstance(values, dict) and group != "run"
            for key, value in values.items()
            if value is not None
        ]
        lines.append(" ".join(["fastlstm train RECIPE", *settings, f"--data CORPUS --out {folder}"]))
    if sentiment is not None:
        lines += _fit_commands(sentiment.provenance, "sentiment", [], folder, results)
    if pos is not None:
        limited = pos.rows["train"] < pos.rows["train_available"]
        options = [
            "--group" if pos.group else "--no-group",
            "--C sweep" if pos.C is None else f"--C {pos.C!r}",
            f"--split {pos.provenance.split}",
            f"--max-rows {pos.rows['train'] if limited else 'all'}",
            f"--controls {','.join(pos.provenance.controls) or 'none'}",
        ]
        lines += _fit_commands(pos.provenance, "pos", options, folder, results)
    lines = list(dict.fromkeys(lines))  # one text may serve both probes
    given = [("run", run.folder if run is not None else None), ("results", results), ("samples", samples)]
    options = [f"--{name} {_quoted(path)}" for name, path in given if path is not None]
    lines.append(" ".join(["fastlstm-probes report", *options, f"--states STATES --out {_quoted(out)}"]))
    return lines


def _fit_commands(source: Provenance, probe: str, options: list[str], folder: str, results: Path) -> list[str]:
    """From text to one result."""
    labelled = f"LABELLED_{source.text_sha256[:6].upper()}"
    states, untrained = f"{probe.upper()}_STATES", f"{probe.upper()}_UNTRAINED"
    label = {
        "sst": "sst SST",
        "lines": f"lines FILE --documents COUNT --tags {source.tags}",
        "treebank": "treebank --documents COUNT",
    }.get(source.text_kind, f"reviews CORPUS --documents COUNT --splits SPLITS --seed SEED --tags {source.tags}")
    dump = [
        f"fastlstm dump {folder} {labelled}",
        f"--rows {source.rows} --dtype {source.dtype} --state {source.state} --batch-size {source.batch_size}",
        *([f"--documents {source.documents}"] if source.documents is not None else []),
        *([f"--splits {' '.join(source.splits)}"] if source.splits != list(SPLITS) else []),
        *([f"--units {','.join(map(str, source.cells))}"] if source.cells is not None else []),
    ]
    lines = [f"fastlstm-probes label {label} --out {labelled}", " ".join([*dump, f"--out {states}"])]
    if source.untrained_store is not None:
        lines.append(" ".join([*dump, f"--untrained --out {untrained}"]))
        options = [*options, f"--untrained {untrained}"]
    options = [
        *options,
        f"--seed {source.seed}",
        f"--solver {source.solver}",
        f"--max-iter {source.max_iter}",
        f"--out {_quoted(results)}",
    ]
    return [*lines, " ".join([f"fastlstm-probes fit {probe} {states}", *options])]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
