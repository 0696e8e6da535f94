"""One process of two: fits its half of a store over gloo and writes what it found. Run by test_workers.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from fastlstm.states import open_states
from fastlstm_probes.l1 import L1LogisticOvR, StoreRows
from fastlstm_probes.l1.objective import Problem
from fastlstm_probes.l1.passes import LocalPasses
from fastlstm_probes.l1.workers import ProcessGroupPasses


def main(store: Path, labels: Path, out: Path) -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    codes = torch.from_numpy(np.load(labels))
    cuts = np.linspace(0, len(codes), size + 1).astype(int).tolist()
    first, last = cuts[rank], cuts[rank + 1]
    cost = torch.full((3,), 0.5, dtype=torch.float64)
    local = LocalPasses(
        StoreRows(open_states(store), np.arange(first, last)),
        Problem(codes[first:last], torch.arange(3), cost, cost),
        first,
    )
    model = L1LogisticOvR(tol=1e-8, random_state=0, memory_limit=1)
    model.fit_passes(ProcessGroupPasses(local), np.arange(3))
    np.save(f"{out}-{rank}.npy", np.hstack([model.coef_, model.intercept_[:, None], model.objective_[:, None]]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
