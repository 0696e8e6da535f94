"""How many bits the labels cost to someone who has the cells: the online code of Voita and Titov (2020).

The rows come document by document, in an order drawn by seed, in parts that end at 1/64, 1/32, ..., 1/2 and all of
them. The labels of the first part are sent by the uniform code, log2 K bits each; those of each next part by the
probabilities of classifiers fitted on all parts before it. A concept that few examples teach has a short code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastlstm_probes.classifiers import Part
from fastlstm_probes.control_fits import ControlFits
from fastlstm_probes.l1 import L1Fit, margins
from fastlstm_probes.results import DescriptionLength
from fastlstm_probes.single_cells import Codes

SHARES = tuple(2.0**power for power in range(-6, 0))  # of the rows, at which parts end; the last ends with them


def online_code(fits: ControlFits, train: Part, strength: Mapping[int, float]) -> DescriptionLength | None:
    """The code length of the classes of the train rows; None of one document or one class: nothing to code.

    A probability p of n rows and K classes is smoothed to (n p + 1) / (n + K), Laplace's rule, so that a class that the
    parts so far lack costs log2(n + K) bits. The code of the class frequencies alone (the same rule with the parts' own
    counts) says what is due to the cells.

    Args:
        strength: C of the classifier of each class, by code.
    """
    documents = np.unique(train.document)
    codes = np.unique(train.code)
    if documents.size < 2 or codes.size < 2:
        return None
    order, ends = parts_of(train.document, fits.seed)
    X, code = train.X[order], train.code[order]
    uniform = float(np.log2(codes.size))
    bits = frequency_bits = ends[0] * uniform
    before: dict[int, L1Fit] | None = None
    for begin, end in pairwise(ends):
        before = fits.fit("online code", X[:begin], code[:begin], strength, start=before)
        coded = np.searchsorted(codes, code[begin:end])
        bits += code_bits(probabilities(before, X[begin:end], codes), coded, begin)
        counts = (code[:begin, None] == codes).sum(axis=0)
        frequency_bits += code_bits(np.broadcast_to(counts / begin, (end - begin, codes.size)), coded, begin)
    return DescriptionLength(
        rows=code.size,
        classes=codes.size,
        bits_per_row=bits / code.size,
        uniform_bits_per_row=uniform,
        frequency_bits_per_row=frequency_bits / code.size,
        compression=uniform * code.size / bits,
        parts=np.diff([0, *ends]).tolist(),
    )


def parts_of(document: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], list[int]]:
    """Rows (n,) document by document in an order drawn by `seed`, and where each part of whole documents ends."""
    documents, place, counts = np.unique(document, return_inverse=True, return_counts=True)
    rank = np.random.default_rng(seed).permutation(documents.size)
    order = np.argsort(rank[place], kind="stable")
    ends = np.cumsum(counts[np.argsort(rank)])
    chosen = np.searchsorted(ends, [share * document.size for share in SHARES])
    return order, sorted({*ends[chosen].tolist(), document.size})


def probabilities(
    fits: Mapping[int, L1Fit], X: NDArray[np.float32], codes: Sequence[int] | Codes
) -> NDArray[np.float64]:
    """Of each row (n,) and class (K,): one-vs-rest probabilities over their sum; 0 for a class without a classifier."""
    share = np.zeros((len(X), len(codes)))
    there = [place for place, code in enumerate(np.asarray(codes).tolist()) if code in fits]
    margin = margins([fits[int(codes[place])] for place in there], X)
    share[:, there] = 1 / (1 + np.exp(-np.clip(margin, -700, 700)))
    total = share.sum(axis=1, keepdims=True)
    return np.asarray(share / total)


def code_bits(p: NDArray[np.float64], coded: NDArray[np.intp], rows: int) -> float:
    """Bits of the classes coded (n,) by p (n, K), smoothed as learnt from that many rows."""
    classes = p.shape[1]
    return float(-np.log2((rows * p[np.arange(coded.size), coded] + 1) / (rows + classes)).sum())
