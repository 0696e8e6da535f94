"""Every stage after the other through the command lines: synthetic text in seconds, real text in minutes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import fastlstm.cli
import fastlstm_probes.cli
from conftest import DATA
from fastlstm.corpus.shards import Corpus
from fastlstm.states import open_states

Run = Callable[[str], str]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command line in an empty folder; its stdout. A status other than 0 fails the test."""
    monkeypatch.chdir(tmp_path)

    def run_line(line: str) -> str:
        program, *arguments = line.split()
        main = {"fastlstm": fastlstm.cli.main, "fastlstm-probes": fastlstm_probes.cli.main}[program]
        status = main(arguments)
        output = capsys.readouterr()
        assert status == 0, output.err
        return output.out

    return run_line


SMALL = "model.hidden_size=16 data.batch_size=8 data.window=32 run.device=cpu"


def test_synthetic_text_from_grammar_to_report(run: Run, tmp_path: Path) -> None:
    run("fastlstm prepare grammar --reviews 600 --test-fraction 0.5 --out corpus --quiet")
    run(f"fastlstm train demo {SMALL} optimizer.steps=60 --data corpus --out run --quiet")
    run("fastlstm-probes label reviews corpus --documents 250 --tags gold --out text --quiet")
    for name, options in {
        "last": "--rows document --dtype float32",
        "last-untrained": "--rows document --dtype float32 --untrained",
        "bytes": "--rows all --documents 25",
    }.items():
        run(f"fastlstm dump run text {options} --out {name}.zarr --quiet")
    # Every byte that is dumped is a byte of the labelled text, with the label of its review.
    store, text = open_states("last.zarr"), Corpus("text")
    documents = [document for split in ("train", "valid", "test") for document in text.documents(split)]
    assert store.document_label.tolist() == [document.label for document in documents]
    assert bytes(store.text) == b"".join(document.text for document in documents)

    sentiment = run("fastlstm-probes fit sentiment last.zarr --untrained last-untrained.zarr --out results --quiet")
    assert "synthetic grammar text" in sentiment
    tags = run("fastlstm-probes fit pos bytes.zarr --out results --quiet")
    assert "all tags, test" in tags
    run("fastlstm sample run --length 40 --out samples.jsonl")
    run(
        "fastlstm-probes report --run run --results results --states bytes.zarr --samples samples.jsonl "
        "--readme-figure figure.png --out report.html"
    )
    page = Path("report.html").read_text(encoding="utf-8")
    result = json.loads(Path("results/sentiment.json").read_text())
    assert f"cell {result['neuron']}" in page.lower()
    assert store.attributes.model.sha256[:12] in page
    assert "synthetic" in page
    assert Path("figure.png").read_bytes().startswith(b"\x89PNG")


def test_reviews_without_tags_leave_part_of_speech_out(run: Run, tmp_path: Path) -> None:
    lines = [{"text": f"It is {word} number {n}.", "stars": stars, "id": f"{word}{n}"}
             for n in range(60) for word, stars in (("good", 5), ("bad", 1))]  # fmt: skip
    Path("reviews.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("fastlstm prepare reviews reviews.jsonl --test-fraction 0.6 --out corpus --workers 1 --quiet")
    run(f"fastlstm train demo {SMALL} optimizer.steps=3 data.batch_size=2 --data corpus --out run --quiet")
    run("fastlstm-probes label reviews corpus --out text --quiet")
    run("fastlstm dump run text --rows all --out bytes.zarr --quiet")
    said = run("fastlstm-probes fit pos bytes.zarr --skip-untagged --out results --quiet")
    assert "no tagged words" in said
    assert not Path("results/part_of_speech.json").exists()


@pytest.mark.slow
def test_real_sst_and_wikitext_to_report(run: Run, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLTK_DATA", str(DATA / "nltk_data"))
    import nltk

    nltk.data.path.insert(0, os.environ["NLTK_DATA"])
    run(f"fastlstm prepare reviews {data_folder}/amazon/multidomain.jsonl.zst --out corpus --quiet")
    run(
        "fastlstm train demo model.hidden_size=64 optimizer.steps=1500 run.validate_every=1500 "
        "--data corpus --out run --quiet"
    )

    run(f"fastlstm-probes label sst {data_folder}/sst --out sst/text --quiet")
    run("fastlstm dump run sst/text --rows document --dtype float32 --out sst/last.zarr --quiet")
    run("fastlstm dump run sst/text --rows document --dtype float32 --untrained --out sst/untrained.zarr --quiet")
    run("fastlstm-probes fit sentiment sst/last.zarr --untrained sst/untrained.zarr --out results --quiet")
    sentiment = json.loads(Path("results/sentiment.json").read_text())
    assert [sentiment["counts"][split] for split in ("train", "valid", "test")] == [6920, 872, 1821]
    scores = {score["name"]: score for score in sentiment["scores"]}
    tf_idf = next(score for name, score in scores.items() if name.startswith("TF-IDF"))
    assert tf_idf["valid"] == pytest.approx(0.799, abs=0.003)
    assert tf_idf["test"] == pytest.approx(0.815, abs=0.003)

    wikitext = data_folder / "wikitext" / "wikitext.valid.raw.noheadings.txt"
    run(f"fastlstm-probes label lines {wikitext} --documents 60 --out pos/text --quiet")
    run("fastlstm dump run pos/text --rows all --out pos/bytes.zarr --quiet")
    run("fastlstm-probes fit pos pos/bytes.zarr --out results --quiet")
    pos = json.loads(Path("results/part_of_speech.json").read_text())
    majority = next(score for score in pos["baselines"] if score["name"].startswith("majority"))
    of_k = {result["k"]: result["accuracy"] for result in pos["overall"]}
    assert of_k["all"] > majority["test"]
    assert {"NN", "VB", "SPACE", "OTHER"} <= {row["tag"] for row in pos["tags"]}

    run("fastlstm sample run --length 100 --out samples.jsonl")
    run(
        "fastlstm-probes report --run run --results results --states pos/bytes.zarr --samples samples.jsonl "
        "--out report.html"
    )
    page = Path("report.html").read_text(encoding="utf-8")
    assert "synthetic grammar" not in page
    assert "81.5" in page
