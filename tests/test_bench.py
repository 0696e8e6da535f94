"""The benchmark's own machinery, without a GPU: plan, files, tables; and the whole of it, small, on the CPU."""

from __future__ import annotations

import csv
import gc
import importlib
import re
import subprocess
import sys
import time
import types
import weakref
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import fastlstm
from bench import contestants, lstm, records, rivals, tables, timing
from bench.contestants import CASES, Contestant, Data, Shape

ROOT = Path(__file__).parents[1]
# DESIGN's columns, in its order.
FIXED = [
    *("suite", "case", "contestant", "H", "B", "T", "dtype", "metric", "unit", "median", "p20", "p80", "n"),
    *("gpu", "driver", "torch", "triton", "commit", "date"),
]
ROW = {
    **{"suite": "lstm", "case": "forward_infer", "contestant": "fastlstm-triton", "H": 1024, "B": 16, "T": 128},
    **{"dtype": "bf16", "metric": "time_per_step", "unit": "us", "median": "4.000", "n": 9, "gpu": "Card"},
    **{"driver": "580", "torch": "2.11", "triton": "3.6", "commit": "abc", "date": "2026-11-23", "version": "0.1"},
}


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_grid_is_whole_and_begins_with_the_bars() -> None:
    grid = lstm.grid()
    assert len(set(grid)) == len(grid) == 5 * 6 * 3
    assert [shape[:2] for shape in grid[:4]] == [(2048, 128), (1024, 128), (2048, 512), (4096, 128)]
    assert {shape.T for shape in grid[:4]} == {128}
    assert {shape.B for shape in grid[4:24]} == {1, 16}
    assert {shape.T for shape in grid[-30:]} == {512}


@pytest.mark.parametrize("text", ["2048x128", "2048x128x0", "axbxc", "1x2x3x4", "1x-2x3"])
def test_shape_that_is_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lstm.parse(["--device", "cpu", "--shapes", text])
    assert f"expected HxBxT, three positive numbers, got {text!r}" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_replay_keeps_what_its_graph_reads() -> None:
    class Doubled:
        def __init__(self) -> None:
            self.value, self.result = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")

        def __call__(self) -> None:
            self.result.copy_(2 * self.value)

    call = Doubled()
    alive = weakref.ref(call)
    replay = timing.captured(call)
    del call
    gc.collect()
    replay()
    left = alive()
    assert left is not None
    assert left.result.tolist() == [2.0, 2.0, 2.0]


def test_options() -> None:
    options = lstm.parse(["--device", "cpu", "--steps", "1", "--memory", "1"])
    assert {shape.T for shape in options.shapes} == {1}
    assert (options.dtypes, options.baselines, options.memory) == (["fp32"], ["fp32"], 2**30)
    assert options.backends == ["torch"]
    assert {layer.dtype for layer in lstm.layers(options, Shape(2048, 128, 128))} == {"fp32"}
    with pytest.raises(SystemExit):
        lstm.parse(["--device", "cpu", "--rivals"])


@pytest.mark.parametrize(
    ("shape", "dtypes", "backends"),
    [
        (Shape(2048, 128, 128), {"bf16", "fp16"}, {"hopper", "triton"}),
        (Shape(512, 64, 128), {"bf16"}, {"triton"}),
        (Shape(512, 16, 128), {"bf16", "fp16"}, {"triton"}),
        (Shape(512, 64, 1), {"bf16", "fp16"}, {"triton"}),
    ],
)
def test_ways_to_run_a_shape(shape: Shape, dtypes: set[str], backends: set[str]) -> None:
    options = lstm.parse(["--device", "cpu"])
    options.dtypes, options.backends = None, ["hopper", "triton"]
    ways = lstm.layers(options, shape)
    assert {way.dtype for way in ways} == dtypes
    assert {way.backend for way in ways} == backends


def test_the_layers_own_choice_is_timed_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {"forward_infer": "cudnn", "forward_backward": "triton", "forward_train": "hopper"}
    monkeypatch.setattr(lstm, "chosen", lambda shape, dtype, case: kernels[case])
    auto = Contestant("fastlstm-auto", "fp16", "dense", "0.1", {case: lambda: None for case in kernels})
    others = list(lstm.by_kernel(auto, Shape(16, 3, 4), ["triton"]))
    assert [(one.version, list(one.calls)) for one in others] == [
        ("0.1 cudnn", ["forward_infer"]),
        ("0.1 hopper", ["forward_train"]),
    ]


def test_what_the_chooser_takes_is_asked_for_each_case() -> None:
    assert contestants.chosen(Shape(256, 64, 128), "bf16", "forward_infer") == "triton"
    assert contestants.chosen(Shape(4096, 512, 128), "bf16", "forward_infer") == "triton"
    assert contestants.chosen(Shape(4096, 512, 128), "bf16", "forward_backward") == "cudnn"


@pytest.mark.parametrize("T", [1, 3])
def test_a_single_step_is_given_a_state(T: int) -> None:
    data = Data.draw(Shape(16, 3, T), torch.float32, "cpu")
    assert (data.state is not None) == (T == 1)
    ours = contestants.ours(Shape(16, 3, T), "fp32", "cpu", data, backend="torch")
    theirs = contestants.torch_lstm(Shape(16, 3, T), "fp32", "cpu", data)
    for case, call in theirs.calls.items():
        assert len(call()) == len(ours.calls[case]())  # type: ignore[arg-type]


def test_shapes_over_the_memory_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = Shape(256, 1, 1), Shape(4096, 2048, 512)
    assert list(lstm.affordable([large, small], 2**30)) == [small]
    assert "H=4096 B=2048 T=512: left out, needs about 1" in capsys.readouterr().out


def test_budget_starts_nothing_that_would_not_end_in_time() -> None:
    clock = Clock()
    budget = timing.Budget(25.0, clock)
    started = []
    for item in budget.fitting(["a", "b", "c", "d"]):
        started.append(item)
        clock.now += 10
    assert started == ["a", "b"]  # 5 seconds are left and the others took 10
    assert budget.left_out == ["c", "d"]
    assert budget.left() == 5


def test_budget_without_end_runs_all() -> None:
    budget = timing.Budget(float("inf"), Clock())
    assert list(budget.fitting([1, 2, 3])) == [1, 2, 3]
    assert budget.left_out == []


def test_rounds_follow_the_time_of_a_round() -> None:
    assert timing.rounds_within(1.0, 0.05) == 20
    assert timing.rounds_within(1.0, 10.0) == timing.LEAST_ROUNDS
    assert timing.rounds_within(1.0, 1e-5) == timing.MOST_ROUNDS


def test_queued_calls_take_turns_behind_a_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU that is no more than a log: every timed call comes after a wait long enough to launch it."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def elapsed_time(self, end: Event) -> float:
            return float(len(log))

    waits: list[float] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: waits.append(cycles / timing.CYCLES_A_SECOND))
    times = timing.time_queued({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, 0.3)
    rounds = len(times["slow"])
    assert timing.LEAST_ROUNDS <= rounds == len(times["fast"]) < timing.MOST_ROUNDS
    assert min(waits[::2]) > 0.02 > max(waits[1::2])
    assert log[-3 * 2 * rounds :] == ["record", "record", "synchronize"] * 2 * rounds


def test_whole_calls_take_turns_of_two_and_the_second_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    now = 0.0

    def call(name: str, first: float, again: float) -> timing.Call:
        def run() -> None:
            nonlocal now
            now += again if events[-2:] == [name, "wait"] else first
            events.append(name)

        return run

    calls = {"a": call("a", 5.0, 1.0), "b": call("b", 7.0, 2.0)}
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    times = timing.time_whole(calls, 1.0, lambda: events.append("wait"))
    assert times == {"a": [1e3] * timing.LEAST_ROUNDS, "b": [2e3] * timing.LEAST_ROUNDS}
    turns = ["a", "wait", "a", "wait", "b", "wait", "b", "wait"]
    assert events[-len(turns) * timing.LEAST_ROUNDS :] == turns * timing.LEAST_ROUNDS


def test_quantiles() -> None:
    assert records.quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == {
        "median": "3.500",
        "p20": "2.000",
        "p80": "5.000",
        "n": "6",
    }


def test_columns_begin_as_the_design_says() -> None:
    assert list(records.COLUMNS[: len(FIXED)]) == FIXED


def test_a_row_takes_the_place_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lstm.csv"
    records.save(path, [ROW, ROW | {"mode": "graph"}, ROW | {"input": "ids"}, ROW | {"device": "cpu"}, ROW | {"B": 1}])
    records.save(path, [ROW | {"median": "3.000", "gpu": "Other, newer"}])
    rows = records.load(path)
    assert [row["median"] for row in rows] == ["3.000", "4.000", "4.000", "4.000", "4.000"]
    assert rows[0]["gpu"] == "Other, newer"
    assert [(row["input"], row["mode"], row["device"]) for row in rows[:4]] == [
        ("dense", "queued", "cuda"),
        ("dense", "graph", "cuda"),
        ("ids", "queued", "cuda"),
        ("dense", "queued", "cpu"),
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["lstm.csv"]


def test_rows_from_before_the_further_columns_are_kept_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lstm.csv"
    path.write_text(",".join(FIXED) + "\n" + ",".join(str(ROW.get(name, "")) for name in FIXED) + "\n")
    records.save(path, [ROW | {"B": 1}])
    assert [row["B"] for row in records.load(path)] == ["16", "1"]
    records.save(path, [ROW | {"median": "9.000"}])
    assert [row["median"] for row in records.load(path)] == ["9.000", "4.000"]


def test_unknown_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="not a column of the results: speed"):
        records.save(tmp_path / "lstm.csv", [ROW | {"speed": 1}])


def test_runs_whole_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lstm.csv"
    arguments = ["--device", "cpu", "--shapes", "16x3x4", "16x3x1", "--seconds", "0.001", "--commit", "abc"]
    assert lstm.main([*arguments, "--out", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Ours with dense inputs and with ids in four cases; nn.LSTM, which returns no cells, in three.
    assert len(rows) == 2 * (2 * 4 + 3)
    assert {row["case"] for row in rows} == set(CASES)
    assert {(row["contestant"], row["dtype"], row["input"]) for row in rows} == {
        ("fastlstm-torch", "fp32", "dense"),
        ("fastlstm-torch", "fp32", "ids"),
        ("nn.LSTM", "fp32", "dense"),
    }
    assert {row["commit"] for row in rows} == {"abc"}
    assert all(0 < float(row["p20"]) <= float(row["median"]) <= float(row["p80"]) for row in rows)
    assert all(int(row["n"]) >= timing.LEAST_ROUNDS for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_budget_that_ends_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--device", "cpu", "--shapes", "16x3x4", "--budget", "0", "--out", str(tmp_path / "lstm.csv")]
    assert lstm.main(arguments) == 0
    assert "the budget ended before 1 of 1 shapes, first H=16 B=3 T=4" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["dense", "ids"])
def test_wrong_layer_is_not_timed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(fastlstm.LSTM):
        def forward(self, *arguments, **options):  # type: ignore[no-untyped-def]
            output, state, *cells = super().forward(*arguments, **options)
            return output * 1.001, state, *cells

    monkeypatch.setattr(fastlstm, "LSTM", Wrong)
    arguments = ["--device", "cpu", "--shapes", "16x3x4", "--inputs", kind, "--out", str(tmp_path / "lstm.csv")]
    assert lstm.main(arguments) == 1
    assert f"NOT TIMED, fp32 {kind} torch: AssertionError: h at H=16 B=3 fp32" in capsys.readouterr().out
    assert records.load(tmp_path / "lstm.csv") == []


def recurrence(gates: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """h and c (B, T, H) from the input product (B, T, 4, H) and W_hh (4, H, H): what the rivals' kernels compute."""
    h = c = gates.new_zeros(gates.shape[0], gates.shape[3])
    hs, cs = [], []
    for step in gates.unbind(1):
        i, f, g, o = (step + torch.einsum("gdp,bp->bgd", weight, h)).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        hs.append(h)
        cs.append(c)
    return torch.stack(hs, 1), torch.stack(cs, 1)


def stand_ins(calls: list[str]) -> dict[str, types.ModuleType]:
    """Modules that take the arguments of the rivals' public functions (torchrl 0.14.1, flashrnn 1.0.8)."""

    def lstm_triton(  # type: ignore[no-untyped-def]
        x, hidden, cell, w_ih, w_hh, b_ih, b_hh, is_init, compute_dtype
    ):
        B, T, _ = x.shape
        H = w_hh.shape[1]
        assert hidden.shape == cell.shape == (B, T, H)
        assert is_init.shape == (B, T)
        assert not is_init.any()
        calls.append("torchrl")
        h, c = recurrence((x @ w_ih.t() + b_ih + b_hh).view(B, T, 4, H), w_hh.view(4, H, H))
        return h, c, h[:, -1], c[:, -1]

    def flashrnn(Wx, R, b, *, function, backend, dtype):  # type: ignore[no-untyped-def]
        assert (function, dtype) == ("lstm", "float32")
        calls.append(backend)
        h, c = recurrence((Wx + b)[:, :, :, 0], R[:, 0])
        return torch.stack((h, c)).unsqueeze(3), None

    modules = {
        name: types.ModuleType(name)
        for name in (
            "torchrl.modules.tensordict_module._rnn_triton",
            "flashrnn",
            "flashrnn.flashrnn.flashrnn",
            "flashrnn.flashrnn.cuda_init",
        )
    }
    modules["torchrl.modules.tensordict_module._rnn_triton"].__dict__["lstm_triton"] = lstm_triton
    modules["flashrnn"].__dict__["flashrnn"] = flashrnn
    return modules


@pytest.mark.parametrize(
    ("name", "called"), [("torchrl", "torchrl"), ("flashrnn-fused", "cuda_fused"), ("flashrnn-alternating", "cuda")]
)
def test_rivals_get_the_arguments_they_expect(name: str, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for module, content in stand_ins(calls).items():
        monkeypatch.setitem(sys.modules, module, content)
    layer = nn.LSTM(256, 16)
    data = Data.draw(Shape(16, 3, 5), torch.float32, "cpu")
    got = rivals.LAYERS[name](layer, data.dense)()
    assert calls == [called]
    rivals.check(name, layer, got, data.dense)
    with pytest.raises(ValueError, match=f"{name}: h is off by"):
        rivals.check(name, layer, got.flip(2), data.dense)
    with pytest.raises(ValueError, match="h is off by nan"):
        rivals.check(name, layer, got * torch.nan, data.dense)
    wanted = [data.dense, *layer.parameters()]
    gradients = torch.autograd.grad(got, wanted, data.d_output.transpose(0, 1))
    truth = torch.autograd.grad(layer(data.dense)[0], wanted, data.d_output)
    for gradient, true in zip(gradients, truth, strict=True):
        torch.testing.assert_close(gradient, true)


def test_a_rival_that_fails_is_a_reason(tmp_path: Path) -> None:
    shape = Shape(16, 1, 2)
    failed = rivals.try_all([shape], CASES, 60.0, tmp_path, ["nobody"])
    assert set(failed) == {("nobody", shape, case) for case in CASES}
    reason = failed["nobody", shape, CASES[0]]
    assert re.match(r"\w*Error", reason)  # what the traceback ends with
    rows = list(rivals.without_number(failed))
    assert {row["note"] for row in rows} == {reason}
    assert {row["n"] for row in rows} == {"0"}


def test_reason_of_a_failed_build(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("nvcc ...\nRuntimeError: Error building extension 'x': [1/2] nvcc\nninja: build stopped.\n\n")
    assert rivals.reason_in(log) == "RuntimeError: Error building extension 'x': [1/2] nvcc"
    log.write_text("Killed\n")
    assert rivals.reason_in(log) == "Killed"
    log.write_text("")
    assert rivals.reason_in(log) == "no output"


def test_a_rival_that_does_not_end_is_a_reason(tmp_path: Path) -> None:
    begin = time.monotonic()
    failed = rivals.try_all([Shape(16, 1, 2)], ["forward_infer"], 0.0, tmp_path, ["torchrl"])
    assert set(failed.values()) == {"not built and run within 0 s"}
    assert time.monotonic() - begin < 30


def test_rivals_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, case = Shape(16, 2, 2), "forward_infer"
    for package in ("torchrl", "flashrnn"):
        monkeypatch.setitem(sys.modules, package, None)
    failed: rivals.Failures = {("torchrl", shape, case): "before"}
    data = Data.draw(shape, torch.bfloat16, "cpu")
    assert rivals.usable(shape, "cpu", data, [case], failed, 60.0) == []
    assert failed["torchrl", shape, case] == "before"
    assert "flashrnn" in failed["flashrnn-fused", shape, case]
    assert "flashrnn" in failed["flashrnn-alternating", shape, case]


def test_time_limit() -> None:
    with pytest.raises(TimeoutError, match="not built and run within 0 s"), rivals.time_limit(0.05):
        time.sleep(30)
    with rivals.time_limit(30):
        time.sleep(0.01)


def rows_for_tables() -> list[records.Row]:
    """Two sizes: at one we win, at the other we lose; a step, memory, a rival with and without a number."""

    def row(contestant: str, dtype: str, median: float | str, **others: object) -> records.Row:
        version = {"nn.LSTM": "cuDNN 9.19.0", "flashrnn-fused": "1.0.8"}.get(contestant, "0.1")
        return records.complete(
            ROW | {"contestant": contestant, "dtype": dtype, "median": median, "version": version} | others
        )

    rows = []
    for B, case, ours, fp16, bf16 in (
        (16, "forward_infer", 4.0, 2.0, 9.0),
        (16, "forward_backward", 9.98, 9.96, 30.0),
        (128, "forward_infer", 5.0, 15.0, 12.5),
        (128, "forward_backward", 123.4, 246.8, 300.0),
    ):
        size = {"B": B, "case": case}
        rows += [row("fastlstm-triton", "bf16", ours, **size), row("nn.LSTM", "fp16", fp16, **size)]
        rows += [row("nn.LSTM", "bf16", bf16, **size)]
    rows += [row("fastlstm-triton", "bf16", 4.2, B=128, case="forward_cells")]
    rows += [row("fastlstm-triton", "bf16", 4.1, B=128, input="ids")]
    rows += [row("fastlstm-triton", "fp16", 4.0, B=16)]
    rows += [row("fastlstm-auto", "fp16", 1.0, B=128, version="0.1 cudnn")]  # from before the chooser took triton there
    one = {"H": 1024, "B": 1, "T": 1, "mode": "eager"}
    rows += [row("fastlstm-auto", "fp16", 24.0, **one, version="0.1 cudnn"), row("nn.LSTM", "fp16", 30.0, **one)]
    rows += [row("fastlstm-triton", "bf16", 2048.0, B=128, metric="peak_memory", unit="MiB")]
    for mode, ours, theirs in (("eager", 30.0, 60.0), ("graph", 8.0, 16.0)):
        rows += [row("fastlstm-triton", "bf16", ours, B=1, T=1, mode=mode)]
        rows += [row("nn.LSTM", "bf16", theirs, B=1, T=1, mode=mode)]
    rows += [
        row("fastlstm-hopper", "bf16", 2.5, B=128),
        row("fastlstm-hopper", "bf16", 2.6, B=128, case="forward_cells"),
    ]
    rows += [row("flashrnn-fused", "bf16", 180.0, B=128)]
    rows += [row("flashrnn-fused", "bf16", "", B=128, case="forward_backward", note="no solution")]
    rows += [row("fastlstm-torch", "fp32", 1.0, B=128, device="cpu", gpu="A processor")]
    return rows


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "chosen", lambda size, dtype, case: "cudnn" if size.T == 1 else "triton")
    text = tables.section(rows_for_tables())
    # What the layer takes by itself, in the same dtype: fp16 is not yet measured where another kernel was taken before.
    assert "| 1024 | 16 | triton | 4.00 | 2.25× | triton | 4.00 | **0.50×** | triton | 9.98 | 3.01× |" in text
    assert "| 1024 | 128 | triton | 5.00 | 2.50× | triton | - | - | triton | 123 | 2.43× |" in text
    assert "| 1024 | 1 | cudnn | - | - | cudnn | 24.0 | 1.25× |" in text
    assert (
        "takes our kernels in 5 of the cases measured; in the same dtype nn.LSTM is faster at "
        "H=1024 B=16 T=128 forward fp16 **0.50×**."
    ) in text
    assert "| 1024 | 16 | 4.00 | 2.00 | 9.00 | **0.50×** | - | - | 9.98 | 9.96 | 30.0 | **0.998×** |" in text
    assert "| 1024 | 128 | 5.00 | 15.0 | 12.5 | 2.50× | 4.20 | 4.10 | 123 | 247 | 300 | 2.00× |" in text
    assert "nn.LSTM is faster at T = 128 (in parentheses what" in text
    assert "H=1024 B=16 forward **0.50×** (bf16: triton, fp16: triton);" in text
    assert "| 1024 | 128 | 2.50 | 5.00× | - | 2.60 | - | - | - | - |" in text
    assert "| 1024 | 1 | 30.0 | 30.0 | 60.0 | 1.00× | 8.00 | - | 16.0 | 2.00× |" in text
    assert "| 1024 | 16 | 8.4 | 4.00 | 2.10 |" in text  # 8 x 1024^2 bytes in 4 us
    assert "| 1024 | 128 | 2,048 | - | - | - | - | - | - |" in text
    assert "| 1024 | 128 | flashrnn-fused bf16 | 180 | - [1] |" in text
    assert "[1] no solution." in text
    assert (
        "*Card; driver 580; torch 2.11; triton 3.6; cuDNN 9.19.0; fastlstm 0.1; commit abc; flashrnn-fused 1.0.8; "
        "2026-11-23.*"
    ) in text
    assert "A processor" not in text


def test_tables_without_losses_say_so() -> None:
    rows = [row for row in rows_for_tables() if row["B"] != "16"]
    assert "nn.LSTM was faster at none of the sizes measured." in tables.section(rows)


def test_readme_is_changed_between_its_markers_only() -> None:
    readme = f"before {tables.BEGIN}\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    assert tables.insert(readme, r"new \1") == (
        f"before {tables.BEGIN}\n{tables.BEGIN}\n\nnew \\1\n\n{tables.END}\nafter\n"
    )
    once = tables.insert(readme, "new")
    assert tables.insert(once, "new") == once


@pytest.mark.parametrize("readme", ["nothing\n", f"{tables.END}\n{tables.BEGIN}\n"])
def test_readme_without_markers(readme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, results = tmp_path / "README.md", tmp_path / "lstm.csv"
    path.write_text(readme)
    records.save(results, rows_for_tables())
    arguments = ["--write", "--readme", str(path), "--results", str(results), "--plot", str(tmp_path / "plot.svg")]
    assert tables.main(arguments) == 2
    assert capsys.readouterr().err.startswith("README.md: expected the lines <!-- lstm table --> and <!-- end --> once")
    assert path.read_text() == readme
    assert not (tmp_path / "plot.svg").exists()


def test_no_rows_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--results", str(tmp_path / "absent.csv")]) == 2
    assert capsys.readouterr().err == "there are no rows measured on a GPU\n"


def test_write_renews_readme_and_plot(tmp_path: Path) -> None:
    readme, results, picture = tmp_path / "README.md", tmp_path / "lstm.csv", tmp_path / "docs" / "plot.svg"
    readme.write_text(f"# x\n{tables.BEGIN}\n{tables.END}\n")
    records.save(results, rows_for_tables())
    arguments = ["--write", "--readme", str(readme), "--results", str(results), "--plot", str(picture)]
    assert tables.main(arguments) == 0
    assert tables.section(records.load(results)) in readme.read_text(encoding="utf-8")
    first = picture.read_bytes()
    assert ElementTree.fromstring(first).tag.endswith("svg")
    for words in ("H = 1024", "forward + backward", "sequences in the batch"):
        assert words.encode() in first
    assert tables.main(arguments) == 0
    assert picture.read_bytes() == first
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["README.md", "docs", "lstm.csv"]


def test_plot_is_known_by_its_rows(tmp_path: Path) -> None:
    rows = rows_for_tables()
    tables.plot(rows, tmp_path / "plot.svg")
    mark = tables.digest(tables.Results(rows))
    assert mark in (tmp_path / "plot.svg").read_text()
    rows[0] = rows[0] | {"median": "3.9"}
    assert tables.digest(tables.Results(rows)) != mark


def test_kept_results_are_what_the_code_reads() -> None:
    path = records.RESULTS / "lstm.csv"
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0][: len(FIXED)] == FIXED
    assert {len(line) for line in lines} == {len(lines[0])}
    rows = records.load(path)
    assert len({records.key_of(row) for row in rows}) == len(rows)
    ours = {"fastlstm-hopper", "fastlstm-triton", "fastlstm-torch", "fastlstm-auto"}
    for row in rows:
        assert row["suite"] == "lstm"
        assert row["case"] in lstm.EVERY_CASE
        assert row["contestant"] in {*ours, "nn.LSTM", *rivals.RIVALS}
        assert (row["metric"], row["unit"]) in {("time_per_step", "us"), ("time", "ms"), ("peak_memory", "MiB")}
        assert row["note"] if not row["median"] else float(row["median"]) > 0


def test_readme_and_plot_say_what_the_results_say() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if tables.BEGIN not in readme:
        pytest.skip("README has no table of results yet")
    rows = records.load(records.RESULTS / "lstm.csv")
    assert tables.insert(readme, tables.section(rows)) == readme, "run: python bench/tables.py --write"
    assert tables.digest(tables.Results(rows)) in tables.PLOT.read_text(encoding="utf-8")


def test_columns_of_a_contestant() -> None:
    one = Contestant("fastlstm-triton", "bf16", "ids", "0.1", {})
    assert set(one.columns("forward_infer")) <= set(records.COLUMNS)


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "bench").glob("*.py")))
def test_every_script_can_be_imported(script: str) -> None:
    importlib.import_module(f"bench.{script}")


def test_a_process_is_charged_with_its_own_memory_alone() -> None:
    """Not with that of the process which started it, as ``ru_maxrss`` is."""
    held = torch.ones(2**28, dtype=torch.uint8)
    code = "from bench.timing import peak_resident; print(peak_resident())"
    ours = timing.peak_resident()
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert ours > held.numel() / 2**20
    assert 0 < float(child.stdout) < ours


def test_benchmark_suite_is_collected() -> None:
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "--quiet", "--benchmark-only"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.findall(r"test_lstm_speed\.py::test_layer\[(.*)\]", result.stdout)
    assert len(found) == 3 * len(CASES) * 8
