from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fastlstm.errors import InputError
from fastlstm_probes.results import (
    BestCell,
    DescriptionLength,
    Example,
    Histogram,
    KResult,
    PartOfSpeechResult,
    PositionScore,
    Provenance,
    Result,
    Score,
    Selectivity,
    SentimentResult,
    Stability,
    SweepPoint,
    TagRow,
    TagScore,
    load_result,
    save_result,
)

PROVENANCE = Provenance(
    store="s" * 64,
    untrained_store=None,
    model_sha256="a" * 64,
    model_step=7,
    text_sha256="b" * 64,
    text_kind="grammar",
    synthetic=True,
    tags="none",
    splits=["train", "test"],
    documents=None,
    rows="document",
    cells=[3, 9],
    dtype="float32",
    batch_size=64,
    state="document",
    seed=42,
    split="document",
    max_iter=100,
    solver="joint",
    controls=["ngram", "mdl"],
    versions={"numpy": "2"},
)
HISTOGRAM = Histogram([0.0, 0.5, 1.0], [1, 2], [3, 4])
BEST = BestCell(9, -1, 0.25, 0.75, 0.5, 0.5, None)
SCORE = Score("all cells", 0.9, None, 0.8, 0.7, 0.9, "C=0.25")
SENTIMENT = SentimentResult(
    provenance=PROVENANCE,
    counts={"train": 4, "valid": 2, "test": 2, "unlabelled": 0},
    C=0.25,
    sweep=[SweepPoint(0.25, 0.5, 2, False)],
    weights=[0.1, -1e-300],
    intercept=0.0,
    units=[3, 9],
    neuron=3,
    neuron_score="one neuron",
    sign=-1,
    threshold=0.1 + 0.2,
    scores=[SCORE],
    histogram=HISTOGRAM,
    misclassified=[Example("caf\u00e9 \U0001f600\n", 1, 0, -2.5, 11)],
    converged=True,
    gap=1e-7,
    seconds=1.5,
)
PART_OF_SPEECH = PartOfSpeechResult(
    provenance=PROVENANCE,
    group=True,
    C=None,
    ranking_rows=10,
    rows={"train": 10, "valid": 1, "test": 2, "train_available": 10},
    overall=[KResult("all", 0.5, 0.25, 0.5, "norm", 0.4, 0.6)],
    baselines=[SCORE],
    selectivity=[Selectivity("all", 0.5, 0.25, 0.25, 0.2, 0.3, 10, 20, 5)],
    description_length=DescriptionLength(10, 2, 0.5, 1.0, 0.9, 2.0, [4, 6]),
    positions=[PositionScore("first byte", "1", 0.5, 0.4, 0.6, 7, 20)],
    tags=[
        TagRow(
            "NN",
            3,
            4,
            1,
            [9],
            [TagScore("1", 0.5, 0.0, 0.0, None, None, 0.0, None)],
            0.25,
            [0.0, 2.0],
            -1.0,
            BEST,
            BEST,
            HISTOGRAM,
            True,
            1e-7,
            0.005,
            0.01,
            Stability({"1": 1.0, "2": None}, 3, 0.5),
        ),
        TagRow(
            "VB",
            1,
            6,
            0,
            [],
            [TagScore("all", 0.5, 0.0, 0.0, 0.1, 0.7, 0.0, 0.3)],
            0.25,
            [0.0, 0.0],
            -1.0,
            BEST,
            None,
            HISTOGRAM,
            False,
            0.5,
            None,
            None,
            None,
        ),
    ],
    units=[3, 9],
    seconds=2.0,
)


@pytest.mark.parametrize(("result", "name"), [(SENTIMENT, "sentiment.json"), (PART_OF_SPEECH, "part_of_speech.json")])
def test_round_trip(result: Result, name: str, tmp_path: Path):
    path = save_result(tmp_path / "new" / "folder", result)
    assert path == tmp_path / "new" / "folder" / name
    assert load_result(path) == result
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    path = save_result(tmp_path, SENTIMENT)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_result(tmp_path, dataclasses.replace(SENTIMENT, intercept=float("nan")))
    assert load_result(path) == SENTIMENT


def _change(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99, this program reads version 4: fit again"),
        ({"kind": "colour"}, "expected a result of kind sentiment or part_of_speech, found kind 'colour'"),
        ({"kind": "part_of_speech"}, "not a whole result: part_of_speech: expected the fields"),
        ({"extra": 1}, "not a whole result: sentiment: expected the fields"),
        ({"neuron": "three"}, "sentiment.neuron: expected int, got str"),
        ({"weights": [0.5, None]}, r"sentiment.weights\[1\]: expected float, got NoneType"),
        ({"units": 3}, "sentiment.units: expected list, got int"),
    ],
)
def test_another_file_is_refused_by_name(changes: dict[str, object], message: str, tmp_path: Path):
    path = save_result(tmp_path, SENTIMENT)
    _change(path, **changes)
    with pytest.raises(InputError, match=message) as error:
        load_result(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'"sentiment"'])
def test_a_file_that_is_no_result_is_refused_by_name(content: bytes, tmp_path: Path):
    path = tmp_path / "sentiment.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a result file|expected a result of kind"):
        load_result(path)
