"""The largest hidden size that trains on this GPU, by trying: two updates at each size, from the largest down.

    python bench/largest.py --data CORPUS                 # the study's recipe, bf16, B = 128, T = 128
    python bench/largest.py --data CORPUS --sizes 30720 28672 26624

Rows of bench/results/train.csv for the first size that fits: case `largest`, its peak memory and bytes a second.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "tests")]

from bench.loops import ours  # noqa: E402
from bench.lstm import say  # noqa: E402
from bench.records import RESULTS, Row, complete, machine, quantiles, save  # noqa: E402
from fastlstm.config import load_config  # noqa: E402
from fastlstm.corpus.shards import Corpus  # noqa: E402
from fastlstm.training.config import TrainConfig, resolved  # noqa: E402

SIZES = (30720, 28672, 26624, 24576, 20480, 16384, 8192)
MIB = 2**20


def trained(H: int, options: argparse.Namespace, corpus: Corpus, device: torch.device) -> list[Row]:
    """Rows of two updates at ``H``; raises ``torch.OutOfMemoryError`` where they do not fit."""
    overrides = [*options.overrides, f"model.hidden_size={H}", "run.graph=false"]
    config = resolved(load_config(TrainConfig, options.recipe, overrides), device)
    torch.cuda.reset_peak_memory_stats()
    loop = ours(config, corpus, device)
    loop.fed()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    loop.fed()
    loss = loop.update.take_totals().loss
    rate = config.data.batch_size * config.data.window / (time.perf_counter() - begin)
    if not math.isfinite(loss):
        raise AssertionError(f"H={H}: the loss is {loss}")
    sizes = {"suite": "train", "case": "largest", "H": H, "B": config.data.batch_size, "T": config.data.window}
    peak = {"metric": "peak_memory", "unit": "MiB"} | quantiles([torch.cuda.max_memory_allocated() / MIB])
    speed = {"metric": "throughput", "unit": "bytes/s"} | quantiles([rate])
    return [complete(sizes | loop.columns() | values) for values in (peak, speed)]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    parser.add_argument("--data", type=Path, required=True, help="corpus folder (from fastlstm prepare)")
    parser.add_argument("--recipe", default="carvalho2018")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="hidden sizes, in this order")
    parser.add_argument("--commit", help="for the results; default: what git says")
    parser.add_argument("--out", type=Path, default=RESULTS / "train.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        say("largest.py: there is no GPU here")
        return 2
    corpus, device = Corpus(options.data), torch.device("cuda")
    for H in options.sizes:
        try:
            rows = trained(H, options, corpus, device)
        except torch.OutOfMemoryError as error:
            say(f"H={H}: {str(error).splitlines()[0]}")
        else:
            for row in rows:
                say(f"H={H}: {row['metric']} {row['median']} {row['unit']}")
            save(options.out, (row | machine("cuda", options.commit) for row in rows))
            return 0
        gc.collect()
        torch.cuda.empty_cache()
    return 1


if __name__ == "__main__":
    sys.exit(main())
