"""Loss at equal updates: fastlstm's training and the plain loop around torch.nn.LSTM in float32, on the same windows.

    python bench/same_loss.py --data CORPUS                      # the study's recipe, 2,000 updates, seeds 0 1 2
    python bench/same_loss.py --data CORPUS --updates 40 --device cpu model.hidden_size=64 data.batch_size=8

Every contestant starts from the weights of each seed and follows the same learning rates. A row of
bench/results/train.csv (case `equal_updates`, metric `loss`) holds the quantiles over seeds of the mean loss of the
last tenth. Printed is the loss of every tenth, and how far ours is from the float32 loop's beside how far its seeds are
from each other. tf32 is what PyTorch's default lets cuDNN do with float32; fp32 forbids it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench.loops import ours, plain  # noqa: E402
from bench.lstm import say  # noqa: E402
from bench.records import RESULTS, complete, machine, quantiles, save  # noqa: E402
from fastlstm.config import load_config  # noqa: E402
from fastlstm.corpus.shards import Corpus  # noqa: E402
from fastlstm.training.config import TrainConfig, learning_rate, resolved  # noqa: E402

TENTHS = 10
Columns = dict[str, object]


def losses_of_ours(config: TrainConfig, corpus: Corpus, device: torch.device) -> tuple[Columns, list[float]]:
    """Mean loss in bits per byte of each tenth of ``config.optimizer.steps`` updates."""
    loop, found = ours(config, corpus, device), []
    for _ in range(TENTHS):
        for _ in range(_tenth(config)):
            loop.fed()
        found.append(loop.update.take_totals().loss)
    return loop.columns(), found


def losses_of_plain(config: TrainConfig, corpus: Corpus, device: torch.device) -> tuple[Columns, list[float]]:
    """The same of the loop around torch.nn.LSTM in float32."""
    loop, found = plain(config, corpus, device, "fp32"), []
    total = torch.zeros((), device=device)
    for _ in range(TENTHS):
        total.zero_()
        for _ in range(_tenth(config)):
            rate = learning_rate(config.optimizer, loop.taken, _steps(config))
            for group in loop.update.adam.param_groups:
                group["lr"] = rate
            loop.fed()
            total += loop.update.loss
        found.append(total.item() / _tenth(config) / math.log(2))
    return loop.columns(), found


def _steps(config: TrainConfig) -> int:
    assert config.optimizer.steps is not None
    return config.optimizer.steps


def _tenth(config: TrainConfig) -> int:
    return _steps(config) // TENTHS


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, for all")
    parser.add_argument("--data", type=Path, required=True, help="corpus folder (from fastlstm prepare)")
    parser.add_argument("--recipe", default="carvalho2018")
    parser.add_argument("--updates", type=int, default=2000, help="a multiple of 10")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of ours and of tf32 (CPU: fp32)")
    parser.add_argument("--fp32-seeds", nargs="*", type=int, default=[0], help="of fp32 on a GPU: about 100 s each")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--commit", help="for the results; default: what git says")
    parser.add_argument("--out", type=Path, default=RESULTS / "train.csv")
    options = parser.parse_args(arguments)
    if options.updates < TENTHS or options.updates % TENTHS:
        parser.error(f"--updates: expected a multiple of {TENTHS}, got {options.updates}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    corpus, device = Corpus(options.data), torch.device(options.device)
    on_gpu = device.type == "cuda"
    overrides = [*options.overrides, f"optimizer.steps={options.updates}", f"run.device={options.device}"]
    config = resolved(load_config(TrainConfig, options.recipe, overrides), device)
    runs: dict[str, list[tuple[Columns, list[float]]]] = {}

    def run(name: str, seed: int) -> None:
        seeded = replace(config, model=replace(config.model, seed=seed))
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        found = (losses_of_ours if name == "ours" else losses_of_plain)(seeded, corpus, device)
        runs.setdefault(name, []).append(found)
        say(f"{name} seed {seed}: " + " ".join(f"{loss:.4f}" for loss in found[1]))

    baseline = "tf32" if on_gpu else "fp32"
    for seed in options.seeds:
        run("ours", seed)
        run(baseline, seed)
    if on_gpu:
        for seed in options.fp32_seeds:
            run("fp32", seed)

    sizes = {"H": config.model.hidden_size, "B": config.data.batch_size, "T": config.data.window}
    key = {"suite": "train", "case": "equal_updates", "metric": "loss", "unit": "bits/byte"} | sizes
    rows = []
    for name, found in runs.items():
        columns = found[0][0] if name == "ours" else found[0][0] | {"dtype": name}
        rows.append(complete(key | columns | quantiles([losses[-1] for _, losses in found])))
    save(options.out, (row | machine(options.device, options.commit) for row in rows))
    means = {name: torch.tensor([losses for _, losses in found]) for name, found in runs.items()}
    apart = (means["ours"].mean(0) - means[baseline].mean(0)).abs()
    noise = means[baseline].max(0).values - means[baseline].min(0).values
    say("ours from the float32 loop: " + " ".join(f"{value:.4f}" for value in apart.tolist()))
    say("its seeds from each other:  " + " ".join(f"{value:.4f}" for value in noise.tolist()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
