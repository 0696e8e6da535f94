"""The command line: one-line errors with status 2, help for everything, and the pipeline in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpora import random_text, write_corpus

from fastlstm.cli import main

COMMANDS = [
    ["prepare"],
    ["prepare", "reviews"],
    ["prepare", "wikitext"],
    ["prepare", "grammar"],
    ["train"],
    ["eval"],
    ["sample"],
    ["dump"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    assert "usage: fastlstm " + " ".join(command) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "demo", "--data", "{tmp}/none", "--out", "{tmp}/run"], "none"),
        (
            ["train", "nosuch", "--data", "{tmp}", "--out", "{tmp}/run"],
            "recipe 'nosuch': expected a .toml file or one of",
        ),
        (["train", "demo", "model.size=3", "--data", "{tmp}", "--out", "{tmp}/run"], "model.size: unknown key"),
        (["eval", "{tmp}", "{tmp}"], "expected a checkpoint or a run folder"),
        (["sample", "{tmp}/none"], "expected a checkpoint or a run folder"),
        (["prepare", "reviews", "{tmp}/none.json.gz", "--out", "{tmp}/out"], "none.json.gz"),
        (["dump", "{tmp}", "{tmp}", "--out", "{tmp}/s.zarr", "--units", "a"], "--units: expected numbers"),
    ],
)
def test_a_user_s_mistake_is_one_line_and_status_2(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part.format(tmp=tmp_path) for part in command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastlstm: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_prepare_train_eval_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*command: str) -> str:
        assert main([part.format(tmp=tmp_path) for part in command]) == 0
        return capsys.readouterr().out

    assert "synthetic text" in run("prepare", "grammar", "--reviews", "300", "--out", "{tmp}/corpus", "--quiet")
    small = ["model.hidden_size=8", "data.batch_size=4", "data.window=16", "optimizer.steps=20", "run.device=cpu"]
    trained = run("train", "demo", *small, "--data", "{tmp}/corpus", "--out", "{tmp}/run", "--quiet")
    assert "20 steps, validation" in trained
    again = run("train", "demo", *small, "--data", "{tmp}/corpus", "--out", "{tmp}/run", "--quiet")
    assert "already trained for 20 steps" in again
    # The same rule and batch as in training, so the same number as in the log.
    logged = [
        event
        for event in map(json.loads, (tmp_path / "run/log.jsonl").read_text().splitlines())
        if event["event"] == "valid"
    ]
    assert f"valid: {logged[-1]['loss']:.4f} bits per byte" in run(
        "eval", "{tmp}/run", "{tmp}/corpus", "--split", "valid", "--quiet"
    )
    assert "state zeroed at each shard" in run("eval", "{tmp}/run", "{tmp}/corpus", "--reset", "shard", "--quiet")
    run("sample", "{tmp}/run", "--prime", "I love", "--length", "9", "--count", "2", "--out", "{tmp}/samples.jsonl")
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(sample["prime"], sample["seed"]) for sample in samples] == [("I love", 0), ("I love", 1)]


def test_overrides_may_follow_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", {"train": random_text(20, 40)})
    options = ["--data", str(tmp_path / "corpus"), "--out", str(tmp_path / "run"), "--quiet"]
    small = ["model.hidden_size=8", "data.batch_size=4", "data.window=16", "optimizer.steps=2", "run.device=cpu"]
    assert main(["train", "demo", small[0], *options, *small[1:]]) == 0
    assert "2 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "demo", *options, "--nonsense=1"])
    assert "unrecognized arguments: --nonsense=1" in capsys.readouterr().err


def test_a_kernel_that_cannot_run_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTLSTM_BACKEND", raising=False)
    write_corpus(tmp_path / "corpus", {"train": random_text(20, 40)})
    small = ["data.batch_size=4", "data.window=16", "run.backend=cudnn", "run.device=cpu"]
    command = ["train", "demo", *small, "--data", str(tmp_path / "corpus")]
    assert main([*command, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "backend='cudnn' cannot run this call" in capsys.readouterr().err


def test_eval_names_a_missing_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", {"train": random_text(20, 40)})
    small = ["model.hidden_size=8", "data.batch_size=4", "data.window=16", "optimizer.steps=2", "run.device=cpu"]
    data = ["--data", str(tmp_path / "corpus"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["train", "demo", *small, *data]) == 0
    assert main(["eval", str(tmp_path / "run"), str(tmp_path / "corpus"), "--quiet"]) == 2
    assert "has no test split" in capsys.readouterr().err
