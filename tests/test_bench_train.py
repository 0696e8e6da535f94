"""The `train` suite's own machinery, without a GPU: small, whole, and with an update that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from corpora import random_text, write_corpus

from bench import extraction_tables, loops, records, same_loss, tables, train, train_table
from fastlstm.training.config import TrainConfig, resolved
from fastlstm.training.optimizer import Adam

SMALL = ["--device", "cpu", "--shapes", "16x4x8", "--seconds", "0.01", "--turns", "1", "--commit", "abc"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", {"train": random_text(40, 50)}).folder


def test_runs_whole_on_the_cpu(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BLOCK", 0.01)
    path = tmp_path / "train.csv"
    assert train.main([*SMALL, "--data", str(corpus), "--out", str(path)]) == 0
    rows = records.load(path)
    assert {(row["case"], row["contestant"], row["input"]) for row in rows} == {
        (case, *who) for case in train.CASES for who in (("fastlstm", "ids"), ("nn.LSTM", "dense"))
    }
    for row in rows:
        assert (row["suite"], row["metric"], row["unit"]) == ("train", "throughput", "bytes/s")
        assert (row["H"], row["B"], row["T"], row["dtype"], row["mode"], row["gpus"]) == (
            "16",
            "4",
            "8",
            "fp32",
            "eager",
            "1",
        )
        assert 0 < float(row["p20"]) <= float(row["median"]) <= float(row["p80"])


def test_a_wrong_update_is_not_timed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Adam.update
    monkeypatch.setattr(Adam, "update", lambda self, gradients, rate: right(self, gradients, 40 * rate))
    path = tmp_path / "train.csv"
    assert train.main([*SMALL, "--data", str(corpus), "--out", str(path)]) == 1
    assert "NOT TIMED, fp32 auto: AssertionError: losses of 5 updates in torch.float32" in capsys.readouterr().out
    assert records.load(path) == []


def test_rates_are_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []

    def update() -> None:
        calls.append(1)
        now[0] += 0.25

    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    assert train.rates(update, 100, 3.0, 4, lambda: None) == [400.0] * 3
    assert len(calls) == 12
    assert train.updates_a_block(update, lambda: None) == 4


def test_the_plain_loop_is_the_same_update_as_ours(corpus: Path) -> None:
    options = train.parse([*SMALL, "--data", str(corpus)])
    options.device_used = torch.device("cpu")
    shape = train.Shape(16, 4, 8)
    config = train.configuration(options, shape, "fp32", "auto")
    assert config == resolved(config, torch.device("cpu"))
    assert isinstance(config, TrainConfig)
    loop = loops.plain(config, train.Corpus(corpus), options.device_used, "fp16")
    before = [master.clone() for master in loop.update.masters]
    loop.fed()
    for master, old, weight in zip(loop.update.masters, before, loop.update.weights, strict=True):
        assert master.dtype == torch.float32
        assert 0 < (master - old).abs().max() <= 1.01 * config.optimizer.learning_rate
        assert torch.equal(weight, master.half())


def test_losses_at_equal_updates_are_the_plain_loops(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.csv"
    small = ["--updates", "20", "--seeds", "0", "1", "--device", "cpu", "--commit", "abc", "--out", str(path)]
    sizes = ["model.hidden_size=16", "data.batch_size=4", "data.window=8", "data.passes=50"]
    assert same_loss.main(["--data", str(corpus), *small, *sizes]) == 0
    ours, plain = records.load(path)
    assert (ours["contestant"], plain["contestant"], plain["dtype"]) == ("fastlstm", "nn.LSTM", "fp32")
    assert {(row["case"], row["metric"], row["n"], row["H"]) for row in (ours, plain)} == {
        ("equal_updates", "loss", "2", "16")
    }
    printed = [line.split(": ")[1].split() for line in capsys.readouterr().out.splitlines()]
    apart, noise = ([float(value) for value in line] for line in printed[-2:])
    assert len(apart) == 10
    assert all(a <= n / 10 for a, n in zip(apart, noise, strict=True))


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = train.parse(["--device", "cpu", "--data", "x", "--plain", "eager", "graph"])
    assert (options.dtypes, options.baselines, options.plain) == (["fp32"], ["fp32"], ["eager"])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            train.parse(["--data", "x"])
        assert "there is no GPU here" in capsys.readouterr().err


def test_kept_results_are_what_the_code_reads() -> None:
    for row in records.load(records.RESULTS / "train.csv"):
        assert row["suite"] == "train"
        minutes = {"470_seconds_imdb", "470_seconds_amazon", extraction_tables.MODEL}
        assert row["case"] in {*train.CASES, "equal_updates", *minutes, "largest"}
        assert row["contestant"] in {"fastlstm", "nn.LSTM"}
        units = {("throughput", "bytes/s"), ("peak_memory", "MiB"), ("loss", "bits/byte")}
        assert (row["metric"], row["unit"]) in units
        assert float(row["median"]) > 0


def test_readme_says_what_the_results_say() -> None:
    readme = (train_table.ROOT / "README.md").read_text(encoding="utf-8")
    text = train_table.section(records.load(records.RESULTS / "train.csv"))
    assert tables.insert(readme, text, begin=train_table.BEGIN) == readme, "run: python bench/train_table.py --write"


def test_a_table_says_where_we_lose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = {"suite": "train", "case": "loader", "H": 8, "B": 4, "T": 2, "metric": "throughput", "unit": "bytes/s"}
    about = {"gpu": "G", "driver": "1", "torch": "2", "commit": "abc"}
    rates = {("fastlstm", "bf16", "0.1 hopper"): 2e6, ("nn.LSTM", "bf16", "cuDNN 9"): 4e6}
    rows = [
        records.complete(size | about | {"contestant": who, "dtype": dtype, "version": version, "median": rate})
        for (who, dtype, version), rate in rates.items()
    ]
    assert "| 8 | 4 | 2 | 1 | hopper | 2.00 | - | 4.00 | **0.50×** | - |" in train_table.section(rows)
    assert train_table.main(["--results", str(tmp_path / "absent.csv")]) == 2
    assert "found none" in capsys.readouterr().err
