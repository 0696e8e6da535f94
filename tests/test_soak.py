"""bench/soak.py: what it draws, how it counts, and a short run on the CPU."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from bench import soak
from bench.soak import MOST, Soaked, draw


def test_draws_differ_and_come_again_with_the_seed() -> None:
    def some() -> list[Soaked]:
        return list(itertools.islice(draw(random.Random(3), [256, 2048], ["bf16", "fp16"]), 60))

    first = some()
    assert first == some()
    assert len(set(first)) == 60
    assert all(call.H * call.B * call.T <= MOST for call in first)
    assert {call.H for call in first} == {256, 2048}
    for name in ("ids", "resets", "recompute"):
        assert {getattr(call, name) for call in first} == {False, True}


def test_draws_end_where_there_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "STEPS", (2,))
    monkeypatch.setattr(soak, "BATCH_SIZES", (1, MOST))
    assert len(list(draw(random.Random(0), [8], ["fp32"]))) == 8


def test_every_shape_comes_first_and_what_is_wrong_is_counted() -> None:
    calls = list(itertools.islice(draw(random.Random(0), [256], ["bf16"]), 4))
    ran: list[Soaked] = []
    said: list[str] = []

    def run(call: Soaked) -> str:
        ran.append(call)
        return "h" if len(ran) == 6 else ""

    seconds = itertools.count(0.0, 4.0)
    counts = soak.soak(
        calls,
        run,
        random.Random(0),
        most_calls=9,
        most_seconds=float("inf"),
        say=said.append,
        clock=lambda: next(seconds),
    )
    assert ran[:4] == calls
    assert len(ran) == 9
    assert str(counts) == "9 calls of 4 shapes in 36 s, 0.2 a second, 1 wrong"
    assert counts.wrong == [f"{ran[5]}: h"]
    assert said == [
        "3 calls of 3 shapes in 12 s, 0.2 a second, 0 wrong",
        f"WRONG at call 6, {ran[5]}: h",
        "6 calls of 4 shapes in 24 s, 0.2 a second, 1 wrong",
        "9 calls of 4 shapes in 36 s, 0.2 a second, 1 wrong",
    ]
    stopped = soak.soak(
        calls,
        lambda call: "",
        random.Random(0),
        most_calls=float("inf"),
        most_seconds=8,
        say=said.append,
        clock=itertools.count(0.0, 4.0).__next__,
    )
    assert stopped.calls == 2


def test_a_bit_that_changes_is_seen() -> None:
    subject = soak.Subject(Soaked(8, 3, 4, "fp32", False, True, False), "torch", "cpu", 0)
    assert subject.run() == ""
    assert subject.run() == ""
    assert subject.first is not None
    subject.first["d_weight_hh_l0"].view(torch.int32)[3, 2] ^= 1
    assert subject.run() == "d_weight_hh_l0"


def test_a_first_result_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = soak.Subject(Soaked(8, 3, 4, "fp32", True, False, True), "torch", "cpu", 0)

    def wrong(*given: object, **asked: object) -> None:
        raise AssertionError("h: relative error 1")

    monkeypatch.setattr(soak, "assert_right", wrong)
    assert subject.run() == "h: relative error 1"
    assert subject.run() == ""


SMALL = ["--device", "cpu", "--backend", "torch", "--dtypes", "fp32", "--hidden", "8", "--shapes", "3"]


def test_a_short_run_on_the_cpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "BATCH_SIZES", (1, 5))
    monkeypatch.setattr(soak, "STEPS", (1, 3))
    assert soak.main([*SMALL, "--calls", "8"]) == 0
    assert capsys.readouterr().out.startswith("done: 8 calls of 3 shapes in ")
    monkeypatch.setattr(soak.Subject, "run", lambda self: "output")
    assert soak.main([*SMALL, "--calls", "2"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(SMALL, "expected --seconds or --calls"), ([*SMALL, "--calls", "1", "--shapes", "0"], "expected positive")],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="needs compute capability 9.0"
)
def test_two_hundred_calls_on_the_hopper_kernels() -> None:
    assert soak.main(["--calls", "200", "--shapes", "16", "--hidden", "256", "1024", "2048"]) == 0
