"""Is what was found better than chance? Tests over all cells at once, and lists with a bounded share of false ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from tqdm import tqdm

PERMUTATIONS = 199


def best_cell_p_values(
    X: NDArray[np.float32],
    targets: NDArray[np.bool_],
    group: NDArray[np.int64],
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Whether any cell knows a tag: p of the largest |correlation| over all cells, (K,), family-wise over the cells.

    The null keeps what text has anyway: the labels of each group are rotated by a random offset, so that runs (the
    bytes of a word) stay runs and only their place is lost; where every group is one row the labels are permuted. p is
    (1 + permutations whose largest correlation is at least the observed one) / (1 + permutations) (Westfall and Young
    1993).

    Args:
        X: (n, U). targets: (n, K). group: (n,) document of each row, ascending.
    """
    cells = torch.from_numpy(X).double()
    cells = (cells - cells.mean(0)).float()
    norm = cells.double().square().sum(0).sqrt().float()
    cells = cells / torch.where(norm > 0, norm, 1.0)
    labels = torch.from_numpy(targets.astype(np.float32))
    labels -= labels.mean(0)
    size = labels.square().sum(0).sqrt()

    def largest(order: NDArray[np.int64]) -> torch.Tensor:
        return (cells.T @ labels[torch.from_numpy(order)]).abs().amax(0) / torch.where(size > 0, size, 1.0)

    observed = largest(np.arange(len(X)))
    rng = np.random.default_rng(seed)
    reached = torch.zeros(targets.shape[1])
    for _ in tqdm(range(permutations), desc="chance", unit="permutation", disable=not progress):
        # Float32 sums of the same numbers in another order differ by their rounding.
        reached += largest(rotation(group, rng)) >= observed * (1 - 1e-5)
    return np.asarray((1 + reached.double()) / (1 + permutations))


def rotation(group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Row numbers (n,) with the rows of each group rotated by a random offset; any order if every group is one row."""
    begins = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    lengths = np.diff(np.append(begins, len(group)))
    if lengths.max() == 1:
        return rng.permutation(len(group))
    offset = rng.integers(0, lengths)
    begin, length = np.repeat(begins, lengths), np.repeat(lengths, lengths)
    return np.asarray(begin + (np.arange(len(group)) - begin + np.repeat(offset, lengths)) % length)


def false_discovery(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Benjamini and Hochberg (1995): the false discovery rate of the list that ends with each."""
    return np.asarray(false_discovery_control(p, method="bh"))
