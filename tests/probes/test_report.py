"""The report on small made-up results, a made-up store and a made-up run."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from fastlstm.errors import InputError
from fastlstm.states import ModelAttributes, States, StoreAttributes, TextAttributes, open_states
from fastlstm.states.schema import ATTRIBUTE
from fastlstm_probes import findings
from fastlstm_probes.baselines import random_cells
from fastlstm_probes.coloured_text import (
    BLUE,
    LEVELS,
    RED,
    colour,
    glyphs,
    labelled_documents,
    palette,
    tagged_documents,
)
from fastlstm_probes.report import write_report
from fastlstm_probes.results import (
    BestCell,
    DescriptionLength,
    Example,
    Histogram,
    KResult,
    PartOfSpeechResult,
    PositionScore,
    Provenance,
    Score,
    Selectivity,
    SentimentResult,
    Stability,
    SweepPoint,
    TagRow,
    TagScore,
    save_result,
)
from fastlstm_probes.sentiment import ALL_CELLS, MAJORITY, ONE_NEURON_RADFORD, TFIDF, UNTRAINED_BEST_CELL

MODEL, TEXT, OTHER_MODEL = "ab" * 32, "cd" * 32, "ef" * 32
CELLS, NEURON = 24, 17
TAGSET = ("DT", "NN", "VBZ", "JJ", ".")
HOSTILE = "<script>alert('x')</script> & \"quoted\""
# One document: (tag or None, word); the third holds characters of two, three and four bytes.
DOCUMENTS: list[tuple[int, list[tuple[str, str]]]] = [
    (1, [("DT", "This"), ("NN", "lamp"), ("VBZ", "is"), ("JJ", "wonderful"), (".", ".")]),
    (0, [("DT", "The"), ("NN", "cable"), ("VBZ", "breaks"), (".", ".")]),
    (1, [("DT", "A"), ("NN", "café"), ("VBZ", "costs"), ("NN", "5€"), ("JJ", "great😀"), (".", ".")]),
    (0, [("NN", HOSTILE.replace(" ", "")), ("VBZ", "is"), ("JJ", "awful"), (".", ".")]),
]


def make_store(folder: Path, *, rows: str = "all", model: str = MODEL, copies: int = 6, stars: bool = False) -> States:
    """A store of every byte whose cell `NEURON` follows the label and whose cell 5 follows nouns."""
    text, offsets, labels, splits, words = b"", [0], [], [], []
    for i in range(copies * len(DOCUMENTS)):
        label, tagged = DOCUMENTS[i % len(DOCUMENTS)]
        document = b"\n"
        for tag, word in tagged:
            document += b" "
            words.append((len(text) + len(document), len(text) + len(document) + len(word.encode()), TAGSET.index(tag)))
            document += word.encode()
        text += document + b" "
        offsets.append(len(text))
        labels.append(label)
        splits.append(0 if i < len(DOCUMENTS) else 2)
    size, documents = len(text), len(labels)
    states = np.random.default_rng(0).normal(scale=0.3, size=(size, CELLS)).astype(np.float16)
    for d, label in enumerate(labels):
        ramp = np.linspace(0.05, 2.5, offsets[d + 1] - offsets[d])
        states[offsets[d] : offsets[d + 1], NEURON] = ramp if label else -ramp
    for start, stop, tag in words:
        states[start:stop, 5] = 1.5 if TAGSET[tag] == "NN" else -1.0
    group = zarr.open_group(folder, mode="w")
    arrays = {
        "states": states,
        "position": np.arange(size),
        "byte": np.frombuffer(text, dtype=np.uint8),
        "units": np.arange(CELLS, dtype=np.int32),
        "text": np.frombuffer(text, dtype=np.uint8),
        "document_offset": np.array(offsets),
        "row_offset": np.array(offsets),
        "document_label": np.array(labels, dtype=np.float32) * (5 if stars else 1),
        "document_split": np.array(splits, dtype=np.uint8),
        "document_id": np.frombuffer(
            b"".join(f"review-{d:03}".encode() for d in range(documents)), dtype=np.uint8
        ).reshape(documents, -1),
        "word_start": np.array([w[0] for w in words]),
        "word_end": np.array([w[1] for w in words]),
        "word_tag": np.array([w[2] for w in words], dtype=np.uint8),
    }
    for name, values in arrays.items():
        group.create_array(name, data=values, compressors=None)
    meaning = "stars 1-5" if stars else "sentiment 0/1"
    attributes = StoreAttributes(
        format_version=1,
        model=ModelAttributes(model, 1200, CELLS, False),
        text=TextAttributes(TEXT, "grammar", meaning, TAGSET, True, ("train", "test"), None),
        rows=rows,
        units=None,
        state="document",
        dtype="float16",
        batch_size=1,
        versions={"zarr": zarr.__version__},
        complete=True,
    )
    group.attrs[ATTRIBUTE] = attributes.to_json()
    return open_states(folder)


def provenance(**changes: Any) -> Provenance:
    values: dict[str, Any] = {
        "store": "12" * 32, "untrained_store": "34" * 32, "model_sha256": MODEL, "model_step": 1200,
        "text_sha256": TEXT, "text_kind": "grammar", "synthetic": True, "tags": "gold",
        "splits": ["train", "test"], "documents": None, "cells": None, "dtype": "float32", "batch_size": 64,
        "rows": "document", "state": "document", "seed": 42, "split": "document", "max_iter": 1000, "solver": "joint",
        "controls": ["ngram", "mdl"], "versions": {"fastlstm": "0.1.0", "sklearn": "1.9.1"},
    }  # fmt: skip
    return Provenance(**(values | changes))


def sentiment_result() -> SentimentResult:
    rng = np.random.default_rng(1)
    weights = np.where(rng.random(CELLS) < 0.5, 0.0, rng.normal(scale=0.2, size=CELLS))
    weights[NEURON] = 1.9
    return SentimentResult(
        provenance=provenance(),
        counts={"train": 800, "valid": 100, "test": 1821, "unlabelled": 3},
        C=0.25,
        sweep=[SweepPoint(0.25, 0.94, 12, True)],
        weights=[float(w) for w in weights],
        intercept=0.0,
        units=list(range(CELLS)),
        neuron=NEURON,
        neuron_score=ONE_NEURON_RADFORD,
        sign=1,
        threshold=0.125,
        scores=[
            Score(ALL_CELLS, 0.97, 0.95, 0.95, 0.939, 0.959, "C=0.25, 12 weights"),
            Score(ONE_NEURON_RADFORD, 0.93, 0.92, 0.9312, 0.9187, 0.942, "cell 17 > 0.125"),
            Score(TFIDF, 1.0, 0.80, 0.815, 0.797, 0.832, "C=8"),
            Score(MAJORITY, 0.52, 0.5, 0.501, 0.478, 0.524, "positive"),
            Score(UNTRAINED_BEST_CELL, 0.56, 0.53, 0.5407, 0.518, 0.563, "cell 3"),
        ],
        histogram=Histogram([-3.0, -1.5, 0.0, 1.5, 3.0], [120, 260, 15, 5], [4, 20, 250, 126]),
        misclassified=[Example(f"\n {HOSTILE} ", 1, 0, -0.62, 7)],
        converged=True,
        gap=1e-7,
        seconds=2.5,
    )


def tag_row(tag: str, positive: int, top: list[int], cell: BestCell, untrained: float | None = 0.3) -> TagRow:
    weights = np.zeros(CELLS)
    for size, unit in enumerate(reversed(top), start=1):
        weights[unit] = -float(size) if unit % 2 else float(size)
    by_k = [TagScore("all", 0.97, 0.95, 0.93, 0.98, 0.99, 0.9, 0.94)]
    by_k += [TagScore(str(k), 0.9, 0.0, 0.0, 0.1, 0.5, 0.0, None) for k in range(1, len(top) + 1)]
    histogram = Histogram([-2.0, 0.0, 2.0], [90, 10], [5, 45])
    untrained_best = None if untrained is None else dataclasses.replace(cell, unit=0, average_precision=untrained)
    return TagRow(
        tag, positive, 1000 - positive, len(top), top, by_k, 0.5, [float(w) for w in weights], 0.0,
        cell, untrained_best, histogram, True, 1e-7, 0.005, 0.01,
        Stability({"1": 1.0, "2": 0.625, "3": None}, 3, 2 / 3),
    )  # fmt: skip


def best(unit: int, precision: float, recall: float, average: float | None, threshold: float = 0.25) -> BestCell:
    return BestCell(unit, 1, threshold, 0.9, precision, recall, average)


def pos_result() -> PartOfSpeechResult:
    return PartOfSpeechResult(
        provenance=provenance(rows="all"),
        group=True,
        C=0.5,
        ranking_rows=800,
        rows={"train": 800, "valid": 100, "test": 100, "train_available": 900},
        overall=[
            KResult(k, a, a - 0.01, a, "norm", a - 0.02, a + 0.02)
            for k, a in (("all", 0.91), ("1", 0.55), ("2", 0.61), ("3", 0.66))
        ],
        baselines=[
            Score("majority tag", None, None, 0.31, 0.22, 0.41, "SPACE"),
            Score(random_cells(1), None, None, 0.327, 0.3, 0.35, "mean of 5 draws"),
            Score(random_cells(2), None, None, 0.328, 0.3, 0.35, "mean of 5 draws"),
        ],
        selectivity=[Selectivity("all", 0.913, 0.707, 0.206, 0.194, 0.217, 90, 800, 41)],
        description_length=DescriptionLength(800, 4, 0.815, 2.0, 1.712, 2.454, [10, 790]),
        positions=[PositionScore("first byte", "all", 0.623, 0.603, 0.643, 37, 800)],
        tags=[
            tag_row("SPACE", 200, [2, 4, 6], best(2, 0.99, 0.99, 0.99)),
            tag_row("NN", 250, [1, 9, 3], best(5, 0.88, 0.81, 0.9)),
            tag_row("VB", 120, [8], best(8, 0.3, 0.1, 0.2)),
            tag_row("JJ", 60, [], best(7, 0.0, 0.0, 0.0)),
        ],
        units=list(range(CELLS)),
        seconds=9.0,
    )


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    events: list[dict[str, Any]] = [{"event": "start", "step": 0, "device": "cpu", "parameters": 12345, "corpus": TEXT}]
    for step in range(10, 1201, 10):
        loss = 1.4 + 4 * step**-0.5
        events.append(
            {"event": "train", "step": step, "bytes": step * 1024, "loss": loss, "bytes_per_second": 50_000 + step}
        )
        if step % 200 == 0:
            events.append({"event": "valid", "step": step, "bytes": 999, "loss": loss + 0.03, "accuracy": 0.61})
    gates = {"saturated_input": 0.31, "saturated_forget": 0.62, "saturated_output": 0.125}
    for step, cells in ((0, 0.0), (1000, 17.0)):
        cells_then = {"cell_p50": 1.25, "cell_p99": 30.5, "wide_cells": cells}
        events.append({"event": "health", "step": step, **cells_then, **gates})
    events.append({"event": "end", "step": 1200, "seconds": 25.0})
    (folder / "profile.json").write_text('{"fed": 3.5, "parts": {"forward": 1.0, "backward": 3.0}}', encoding="utf-8")
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "log.jsonl").write_text(lines + '{"event": "tra', encoding="utf-8")
    for step, model in ((800, OTHER_MODEL), (1200, MODEL)):
        checkpoint = folder / "checkpoints" / f"step-{step:08}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "checkpoint.json").write_text(json.dumps({"weights_sha256": model}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model": {"hidden_size": CELLS}, "run": {"device": "auto"}}))
    return folder


def make_samples(path: Path) -> Path:
    rows = [
        {"prime": "\n This", "text": " is <b>good</b>\x07 .\n", "temperature": 0.7, "seed": 3, "model_sha256": MODEL}
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("report")
    save_result(folder / "results", sentiment_result())
    save_result(folder / "results", pos_result())
    return {
        "run": make_run(folder / "run"),
        "results": folder / "results",
        "states": make_store(folder / "states.zarr"),
        "samples": make_samples(folder / "samples.jsonl"),
    }


@pytest.fixture(scope="module")
def page(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "report.html"
    write_report(out, **inputs)
    return out.read_text(encoding="utf-8")


class Loads(HTMLParser):
    """Everything that a page would fetch, and every element's name."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.elements: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "poster", "srcset", "action"):
                self.loads.append(value or "")


def parsed(page: str) -> Loads:
    loads = Loads()
    loads.feed(page)
    return loads


def characters(page: str) -> str:
    """The page's coloured text as a reader sees it."""
    return "".join(re.findall(r'<i class="q\d+" title="[^"]*">([^<]*)</i>', page))


def test_loads_nothing(page: str) -> None:
    found = parsed(page)
    assert found.loads  # the page's own anchors
    assert all(load.startswith("#") for load in found.loads)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(found.elements)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == 1 + 2 + 3 * 2  # loss, sentiment, three parts of speech
    assert len(page.encode()) < 500_000


def test_identifiers_of_figures_do_not_collide(page: str) -> None:
    found = parsed(page)
    assert len(found.ids) == len(set(found.ids))
    assert {load[1:] for load in found.loads} <= set(found.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(found.ids)


def test_review_text_is_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quoted&#34;" in page
    assert "is &lt;b&gt;good&lt;/b&gt;␇ ." in page
    assert "&lt;script&gt;" in characters(page)


def test_says_what_was_found_and_where_from(page: str) -> None:
    assert "Cell 17 alone tells positive from negative documents with 93.1\u00a0% accuracy on 1,821" in page
    assert "interval 91.9\u00a0% to 94.2\u00a0%" in page
    assert "best cell of an untrained LSTM 54.1\u00a0%" in page
    assert "1 of 3 parts of speech has a neuron of its own" in page
    assert "(average precision of that cell alone): NN cell 5 (0.90)." in page
    assert "synthetic grammar text" in page
    assert "blue: negative" in page
    assert "red: positive" in page
    for digest in (MODEL, TEXT, "12" * 32, "34" * 32):
        assert digest in page
    for value in ("1.25, 30.5 at update 1,000", "input 31%, forget 62%, output 12%", "forward 25%, backward 75%"):
        assert value in page, value
    for value in ("50,605 bytes/s", "1,228,800", "0.919 – 0.942", "0.25 above", "temperature 0.7", "sklearn 1.9.1"):
        assert value in page
    assert "Missing:" not in page


def test_controls_are_shown_where_they_were_run(inputs: dict[str, Any], page: str, tmp_path: Path) -> None:
    headings = ("Selectivity: the concept", "Place in the word", "Description length", "Are the largest weights on")
    shown = (
        "<td>k = all</td><td>0.913</td><td>0.707</td><td>0.206</td><td>0.194 to 0.217</td>",
        "<td>first byte, k = all</td><td>37</td><td>0.623</td><td>0.603 to 0.643</td>",
        "cost 0.815 bits a row to someone who has all cells; 1.712 by the frequencies of the 4 tags alone, 2.000 by",
        "<td>NN</td><td>1.000</td><td>0.625</td><td>–</td><td>0.667</td>",
    )
    for text in (*headings, *shown, "ngram, mdl", "--controls ngram,mdl", "1 random cell per tag 32.7"):
        assert text in page, text
    assert "2 random cells per tag <small>mean of 5 draws" in page
    assert "2 random cells per tag 32.8" not in page  # the head of the page compares one cell with one
    without = dataclasses.replace(
        pos_result(),
        provenance=provenance(rows="all", controls=[]),
        selectivity=[],
        description_length=None,
        positions=[],
        tags=[dataclasses.replace(row, stability=None) for row in pos_result().tags],
    )
    save_result(tmp_path / "results", without)
    write_report(tmp_path / "r.html", **(inputs | {"results": tmp_path / "results"}))
    bare = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not [text for text in headings if text in bare]
    assert "--controls none" in bare


def test_commands_are_those_of_the_results(page: str) -> None:
    assert "fastlstm train RECIPE model.hidden_size=24 --data CORPUS --out" in page
    assert "reviews CORPUS --documents COUNT --splits SPLITS --seed SEED --tags gold --out LABELLED_CDCDCD" in page
    dumped = "--dtype float32 --state document --batch-size 64 --splits train test"
    for rows, states in (("document", "SENTIMENT_STATES"), ("all", "POS_STATES")):
        assert f"LABELLED_CDCDCD --rows {rows} {dumped} --out {states}" in page
    assert (
        "fit sentiment SENTIMENT_STATES --untrained SENTIMENT_UNTRAINED --seed 42 --solver joint --max-iter 1000"
        in page
    )
    assert "fit pos POS_STATES --group --C 0.5 --split document --max-rows 800 --controls ngram,mdl --untrained" in page


def test_the_rows_that_chose_the_strength_are_named_only_if_some_did(
    inputs: dict[str, Any], page: str, tmp_path: Path
) -> None:
    assert "800 of 900 to train on, C = 0.5, and 100 to test" in page
    save_result(tmp_path / "results", dataclasses.replace(pos_result(), C=None))
    write_report(tmp_path / "r.html", **(inputs | {"results": tmp_path / "results"}))
    swept = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "800 of 900 to train on, 100 to choose C per tag and 100 to test" in swept
    assert "--C sweep" in swept


def test_a_low_neuron_swaps_what_the_colours_mean(inputs: dict[str, Any], tmp_path: Path) -> None:
    save_result(tmp_path / "results", dataclasses.replace(sentiment_result(), sign=-1))
    write_report(tmp_path / "r.html", **(inputs | {"results": tmp_path / "results"}))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "blue: positive" in page
    assert "red: negative" in page
    assert "Low values mean positive" in page


def test_colours_are_centred_where_tanh_is_flat(inputs: dict[str, Any], page: str, tmp_path: Path) -> None:
    assert "coloured by tanh(cell 17) after" in page
    save_result(tmp_path / "results", dataclasses.replace(sentiment_result(), threshold=2.25))
    write_report(tmp_path / "r.html", **(inputs | {"results": tmp_path / "results"}))
    assert "coloured by tanh(cell 17 - 2.25) after" in (tmp_path / "r.html").read_text(encoding="utf-8")
    (first, *_) = labelled_documents(inputs["states"], NEURON, each=1, longest=700, centre=2.25)
    assert first.pieces[0].glyphs[-1].value == np.tanh(np.float32(first.last) - np.float32(2.25))


def test_same_input_gives_the_same_bytes(inputs: dict[str, Any], tmp_path: Path) -> None:
    written = []
    for _ in range(2):
        out, picture = tmp_path / "report.html", tmp_path / "picture.png"
        write_report(out, **inputs, readme_figure=picture)
        written.append((out.read_bytes(), picture.read_bytes()))
        out.unlink()
        picture.unlink()
    assert written[0] == written[1]
    picture_bytes = written[0][1]
    assert picture_bytes.startswith(b"\x89PNG")
    assert int.from_bytes(picture_bytes[16:20]) == 3200
    assert int.from_bytes(picture_bytes[20:24]) == 1800
    assert not list(tmp_path.iterdir())


def test_missing_parts_are_named(inputs: dict[str, Any], tmp_path: Path) -> None:
    empty = tmp_path / "results"
    empty.mkdir()
    write_report(tmp_path / "r.html", run=None, results=empty, states=None, samples=None)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for what in ("no run folder", "no sentiment.json", "no neuron to colour", "no part_of_speech.json", "no samples"):
        assert re.search(rf"Missing:</b> [^<]*{what}", page), what

    write_report(tmp_path / "r.html", run=None, results=inputs["results"], states=None, samples=None)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("Missing:</b> no states store was given.") == 2

    words = make_store(tmp_path / "words.zarr", rows="word", copies=1)
    write_report(tmp_path / "r.html", run=None, results=inputs["results"], states=words, samples=None)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("coloured text needs every byte") == 2


def test_stars_are_not_taken_for_sentiment(inputs: dict[str, Any], tmp_path: Path) -> None:
    starred = make_store(tmp_path / "stars.zarr", copies=2, stars=True)
    write_report(tmp_path / "r.html", **(inputs | {"states": starred}))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Missing:</b> the labels of the states store are stars 1-5, not sentiment 0/1." in page


def test_a_run_that_has_just_begun(inputs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "start", "step": 0}\n', encoding="utf-8")
    write_report(tmp_path / "r.html", **(inputs | {"run": tmp_path}))
    assert "the run has not logged a step yet" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_mistakes_are_named(inputs: dict[str, Any], tmp_path: Path) -> None:
    other = make_store(tmp_path / "other.zarr", model=OTHER_MODEL, copies=2)
    broken = tmp_path / "samples.jsonl"
    broken.write_text('{"prime": "a", "temperature": 1, "text": "b"}\n{"prime"\n', encoding="utf-8")
    other_run = make_run(tmp_path / "run")
    (other_run / "checkpoints" / "step-00001300").mkdir()
    header = json.dumps({"weights_sha256": OTHER_MODEL})
    (other_run / "checkpoints" / "step-00001300" / "checkpoint.json").write_text(header, encoding="utf-8")
    other_sample = make_samples(tmp_path / "other.jsonl")
    line = other_sample.read_text(encoding="utf-8")
    other_sample.write_text(line + line.replace(MODEL, OTHER_MODEL), encoding="utf-8")
    other_results = tmp_path / "results"
    save_result(other_results, sentiment_result())
    pos = dataclasses.replace(pos_result(), provenance=provenance(rows="all", model_sha256=OTHER_MODEL))
    save_result(other_results, pos)
    empty = tmp_path / "empty"
    empty.mkdir()
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"states": other},
            "the states store is of model efefefefefef, the sentiment result of model abababababab: a report is",
        ),
        (
            {"run": other_run},
            "the run's newest checkpoint is of model efefefefefef, the sentiment result of model abababababab",
        ),
        ({"samples": other_sample}, "sample 2 is of model efefefefefef, the sentiment result of model abababababab"),
        (
            {"results": other_results},
            "the part-of-speech result is of model efefefefefef, the sentiment result of model abababababab",
        ),
        ({"samples": broken}, "samples.jsonl, line 2: not JSON"),
        ({"samples": empty / "none"}, "samples: expected a file"),
        ({"run": empty}, "run: expected a run folder with log.jsonl"),
        ({"results": empty / "none"}, "results: expected a folder"),
    ]
    out = tmp_path / "r.html"
    for changes, message in cases:
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            write_report(out, **(inputs | changes))
        assert "\n" not in str(caught.value)
        assert not out.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff{}", "line 2: not UTF-8 at byte 0"),
        (
            b'{"event": "train", "step": 1, "bytes": 9, "bytes_per_second": 2}',
            "line 2: expected loss (float), got none",
        ),
        (b'{"event": "valid", "step": "1"}', "line 2: expected step (int), got str"),
        (b'{"event": "end", "step": 1, "seconds": null}', "line 2: expected seconds (float), got NoneType"),
        (b'{"step": 1}', "line 2: expected event (str), got none"),
        (b"[1]", "line 2: expected an object, got list"),
    ],
)
def test_a_damaged_log_is_named(inputs: dict[str, Any], tmp_path: Path, line: bytes, message: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"event": "start", "step": 0}\n' + line + b"\n")
    with pytest.raises(InputError, match=re.escape(f"{log}, {message}")):
        write_report(tmp_path / "r.html", **(inputs | {"run": tmp_path}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prime": "\xff", "temperature": 1, "text": ""}', "line 1: not UTF-8 at byte 11"),
        (b'{"prime": "a", "temperature": "hot", "text": ""}', "line 1: expected temperature (float), got str"),
    ],
)
def test_damaged_samples_are_named(inputs: dict[str, Any], tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(line)
    with pytest.raises(InputError, match=re.escape(f"{path}, {message}")):
        write_report(tmp_path / "r.html", **(inputs | {"samples": path}))


def test_a_figure_that_nothing_is_known_for_is_not_written(inputs: dict[str, Any], tmp_path: Path) -> None:
    save_result(tmp_path / "results", pos_result())
    figure = tmp_path / "p.png"
    why = write_report(tmp_path / "r.html", **(inputs | {"results": tmp_path / "results"}), readme_figure=figure)
    assert why == "no sentiment probe was fitted, so there is no neuron to colour text by."
    assert not figure.exists()
    assert "there is no sentiment.json" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_colours_of_the_ends_and_the_middle() -> None:
    assert colour(-1.0) == BLUE
    assert colour(0.0) == "#ffffff"
    assert colour(1.0) == RED
    assert int(BLUE[5:], 16) > int(BLUE[1:3], 16)
    assert int(RED[1:3], 16) > int(RED[5:], 16)
    shades = palette()
    assert (shades[0], shades[LEVELS], shades[-1]) == (BLUE, "#ffffff", RED)
    assert len(set(shades)) == len(shades)
    text = np.tanh(np.array([-30.0, 0.0, 30.0]))
    assert [shades[glyph.level] for glyph in glyphs(b"abc", text)] == [BLUE, "#ffffff", RED]


def test_a_character_takes_the_colour_of_its_last_byte() -> None:
    text = "é€😀\n\t\x00\u202e".encode() + b"\xff\xe2\x82"
    values = np.linspace(-0.9, 0.9, len(text))
    shown = glyphs(text, values)
    assert [glyph.text for glyph in shown] == ["é", "€", "😀", "↵", "⇥", "␀", "U+202E", "\\xff", "\\xe2", "\\x82"]
    ends = [1, 4, 8, 9, 10, 11, 14, 15, 16, 17]
    assert [glyph.value for glyph in shown] == [float(values[end]) for end in ends]


def test_coloured_documents_are_the_held_out_ones(inputs: dict[str, Any], page: str) -> None:
    states = inputs["states"]
    documents = labelled_documents(states, NEURON, each=2, longest=700)
    assert [(d.id, d.label) for d in documents] == [
        ("review-005", 0), ("review-007", 0), ("review-004", 1), ("review-006", 1),
    ]  # fmt: skip
    for document in documents:
        index = states.document_ids.index(document.id)
        (piece,) = document.pieces
        assert "".join(g.text for g in piece.glyphs) == states.document_text(index).decode().replace("\n", "↵")
        last = states.row_offset[index + 1] - 1
        assert document.last == pytest.approx(float(states.column(NEURON)[last]))
        assert piece.glyphs[-1].value == np.tanh(np.float32(document.last))
    assert "café costs 5€ great😀" in characters(page)
    assert 'document <span class="mono">review-000</span>' not in page  # a training document


def test_a_long_document_is_cut_between_characters(inputs: dict[str, Any]) -> None:
    states = inputs["states"]
    text = states.document_text(6)
    assert text[:8].decode(errors="replace").endswith("�")
    (document,) = (d for d in labelled_documents(states, NEURON, each=2, longest=8) if d.id == "review-006")
    assert document.shortened
    assert "".join(glyph.text for glyph in document.pieces[0].glyphs) == "↵ A caf"


def test_words_carry_their_tags_and_the_wanted_one_is_marked(inputs: dict[str, Any], page: str) -> None:
    group = {"NN": "NN", "VBZ": "VB"}
    documents = tagged_documents(
        inputs["states"], 5, tag="VB", group=lambda tag: group.get(tag, "OTHER"), count=1, longest=700
    )
    shown = [("".join(g.text for g in p.glyphs), p.tag, p.hit) for p in documents[0].pieces]
    assert shown[:4] == [("↵ ", "SPACE", False), ("This", "OTHER", False), (" ", "SPACE", False), ("lamp", "NN", False)]
    assert shown[5] == ("is", "VB", True)
    marked = re.findall(r'<span class="w hit">(.*?)<small>(.*?)</small>', page)
    assert {tag for _, tag in marked} == {"NN"}
    assert {characters(word) for word, _ in marked} >= {"lamp", "cable"}


def test_a_tag_has_a_neuron_only_above_chance() -> None:
    judged = {finding.row.tag: finding for finding in findings.tag_findings(pos_result())}
    assert {tag for tag, finding in judged.items() if finding.neuron} == {"SPACE", "NN"}
    assert {tag for tag, finding in judged.items() if finding.word} == {"NN", "VB", "JJ"}
    shown = findings.best_tag(list(judged.values()))
    assert shown is not None
    assert shown.row.tag == "NN"
    assert not _is_neuron(tag_row("NN", 900, [5], best(5, 0.9, 1.0, 1.0)))  # always yes


def _is_neuron(row: TagRow) -> bool:
    (found,) = findings.tag_findings(dataclasses.replace(pos_result(), tags=[row]))
    return found.neuron


def test_a_tag_has_a_neuron_only_above_the_untrained_model() -> None:
    cell = best(5, 0.88, 0.81, 0.9)
    assert _is_neuron(tag_row("NN", 250, [5], cell, untrained=0.79))
    assert not _is_neuron(tag_row("NN", 250, [5], cell, untrained=0.81))
    assert not _is_neuron(tag_row("NN", 250, [5], best(5, 0.88, 0.81, None)))
    result = dataclasses.replace(pos_result(), provenance=provenance(untrained_store=None))
    result = dataclasses.replace(result, tags=[tag_row("NN", 250, [5], cell, untrained=None)])
    sentences = " ".join(findings.part_of_speech_sentences(result))
    assert "1 of 1 parts of speech has a neuron" in sentences
    assert "No untrained model was given" in sentences


def test_a_neuron_within_the_baselines_is_not_called_one() -> None:
    result = sentiment_result()
    assert findings.sentiment_found(result)
    weak = [
        dataclasses.replace(row, test=0.56, test_low=0.54) if row.name == ONE_NEURON_RADFORD else row
        for row in result.scores
    ]
    sentences = " ".join(findings.sentiment_sentences(dataclasses.replace(result, scores=weak)))
    assert "no sentiment neuron" in sentences


def test_unconverged_classifiers_are_refused_unless_allowed(tmp_path: Path) -> None:
    result = pos_result()
    tags = [dataclasses.replace(result.tags[0], converged=False, gap=0.25), *result.tags[1:]]
    save_result(tmp_path, dataclasses.replace(result, tags=tags))
    given = {"run": None, "results": tmp_path, "states": None, "samples": None}
    with pytest.raises(InputError, match=r"1 classifiers did not converge \(SPACE: relative duality gap 2.5e-01\)"):
        write_report(tmp_path / "report.html", **given)
    write_report(tmp_path / "report.html", **given, allow_unconverged=True)
    assert "did not converge" in (tmp_path / "report.html").read_text(encoding="utf-8")
