"""The LSTM's kernels for hours on mixed shapes: no hang, and never another bit than the first time.

    python bench/soak.py --calls 10000          # ten thousand consecutive calls
    python bench/soak.py --seconds 3600         # an hour
    python bench/soak.py --device cpu --backend torch --dtypes fp32 --hidden 32 --calls 20

Draws --shapes calls, each a layer forward and backward, and repeats them in random order. The first result of each is
held against float64 with the tests' tolerance, every later one against the first bit by bit: h, c, every c_t and all
gradients. A wrong result is named and counted, and makes the exit status 1; an error ends the run.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

import fastlstm  # noqa: E402
from bench.contestants import DTYPES  # noqa: E402
from fastlstm_kernels.hopper.launch import why_it_gave_up  # noqa: E402
from fastlstm_kernels.hopper.plans import LARGEST, MULTIPLE  # noqa: E402
from plain_lstm import assert_right, module_lstm  # noqa: E402

INPUT_SIZE = 64
BATCH_SIZES = (1, 2, 5, 16, 17, 33, 64, 77, 128, 130, 300, 512)
STEPS = (1, 2, 3, 7, 20, 64, 128)
MOST = 2**23  # T x B x H: about 100 MB of results that are kept
REPORT_EVERY = 10.0  # seconds


class Soaked(NamedTuple):
    """One layer's call."""

    H: int
    B: int
    T: int
    dtype: str
    ids: bool
    resets: bool
    recompute: bool

    def __str__(self) -> str:
        asked = [name for name in ("ids", "resets", "recompute") if getattr(self, name)]
        return " ".join([f"H={self.H} B={self.B} T={self.T} {self.dtype}", *asked])


def draw(generator: random.Random, hidden: Sequence[int], dtypes: Sequence[str]) -> Iterator[Soaked]:
    """Different calls, each of at most ``MOST`` cells, until new ones hardly come."""
    seen: set[Soaked] = set()
    drawn_again = 0
    while drawn_again < 1000:
        sizes = (generator.choice(hidden), generator.choice(BATCH_SIZES), generator.choice(STEPS))
        flags = (generator.random() < 0.5 for _ in range(3))
        call = Soaked(*sizes, generator.choice(dtypes), *flags)
        drawn_again += 1
        if call.H * call.B * call.T <= MOST and call not in seen:
            drawn_again = 0
            seen.add(call)
            yield call


class Subject:
    """A call's module and arguments, and its first result."""

    def __init__(self, call: Soaked, backend: str, device: str, seed: int) -> None:
        dtype, generator = DTYPES[call.dtype], torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.lstm = fastlstm.LSTM(INPUT_SIZE, call.H, backend=backend, recompute=call.recompute).to(device, dtype)
        size = (call.T, call.B)
        self.x = torch.randn(*size, INPUT_SIZE, generator=generator).to(device, dtype)
        if call.ids:
            self.x = torch.randint(0, INPUT_SIZE, size, generator=generator, dtype=torch.uint8).to(device)
        h0, c0 = torch.randn(2, 1, call.B, call.H, generator=generator).to(device)
        self.hx = h0.to(dtype), c0
        self.resets = (torch.rand(*size, generator=generator) < 0.2).to(device) if call.resets else None
        self.first: dict[str, Tensor] | None = None

    def run(self) -> str:
        """What is wrong with a run; nothing if it is right."""
        if self.first is not None:
            again = module_lstm(self.lstm, self.x, self.hx, resets=self.resets)
            return ", ".join(name for name, tensor in again.items() if not torch.equal(tensor, self.first[name]))
        # Kept before it is judged, so that a wrong one is named once.
        self.first = module_lstm(self.lstm, self.x, self.hx, resets=self.resets)
        try:
            held = assert_right(self.lstm, self.x, self.hx, resets=self.resets)
        except AssertionError as error:
            return str(error)
        return ", ".join(name for name, tensor in held.items() if not torch.equal(tensor, self.first[name]))


@dataclass
class Counts:
    """Of a run so far."""

    calls: int = 0
    seconds: float = 0.0
    seen: set[Soaked] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.calls / self.seconds if self.seconds else 0.0
        return (
            f"{self.calls} calls of {len(self.seen)} shapes in {self.seconds:.0f} s, {rate:.1f} a second, "
            f"{len(self.wrong)} wrong"
        )


def soak(
    calls: Sequence[Soaked],
    run: Callable[[Soaked], str],
    generator: random.Random,
    *,
    most_calls: float,
    most_seconds: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Counts:
    """Each call once, then in random order until ``most_calls`` or ``most_seconds`` are reached."""
    counts, begin, reported = Counts(), clock(), 0.0
    while counts.calls < most_calls and counts.seconds < most_seconds:
        call = calls[counts.calls] if counts.calls < len(calls) else generator.choice(calls)
        problem = run(call)
        counts.calls += 1
        counts.seen.add(call)
        counts.seconds = clock() - begin
        if problem:
            counts.wrong.append(f"{call}: {problem}")
            say(f"WRONG at call {counts.calls}, {counts.wrong[-1]}")
        if counts.seconds - reported >= REPORT_EVERY:
            reported = counts.seconds
            say(str(counts))
    return counts


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after; default: --calls alone")
    parser.add_argument("--calls", type=float, default=float("inf"), help="stop after; default: --seconds alone")
    parser.add_argument("--shapes", type=int, default=48, help="how many different calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--hidden",
        type=int,
        nargs="+",
        default=list(range(MULTIPLE, LARGEST + 1, MULTIPLE)),
        help=f"hidden sizes; default: every multiple of {MULTIPLE} up to {LARGEST}",
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp16"])
    parser.add_argument("--backend", choices=("hopper", "triton", "torch"), default="hopper")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    if options.seconds == options.calls == float("inf"):
        parser.error("expected --seconds or --calls, else it would never end")
    if options.shapes < 1 or min(options.hidden) < 1:
        parser.error(f"expected positive --shapes and --hidden, got {options.shapes} and {options.hidden}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --backend torch runs on the CPU")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    generator = random.Random(options.seed)
    drawn = draw(generator, options.hidden, options.dtypes)
    subjects: dict[Soaked, Subject] = {}

    def run(call: Soaked) -> str:
        if call not in subjects:
            subjects[call] = Subject(call, options.backend, options.device, options.seed + len(subjects))
        return subjects[call].run()

    def say(line: str) -> None:
        print(line, flush=True)

    calls = list(itertools.islice(drawn, options.shapes))
    try:
        counts = soak(calls, run, generator, most_calls=options.calls, most_seconds=options.seconds, say=say)
    except RuntimeError:
        say(f"ended by an error; {why_it_gave_up() or 'no kernel says that it gave up'}")
        raise
    say(f"done: {counts}")
    return 1 if counts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
