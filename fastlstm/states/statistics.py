"""Statistics of cell states that need not be stored: what they are, and how they are read.

They are over the rows of a dump, of the states as they would be stored. In the store they are the group `statistics`,
with U units, E = 65 edges, K tags of the text and the R = 16 documents in which a unit is largest:

    sum, sum_squares  (U,)        float64  over rows: mean and standard deviation
    minimum, maximum  (U,)        float32
    edges             (E,)        float64  of the histogram
    histogram         (U, E + 1)  int64    rows with x < edges[0], edges[i - 1] <= x < edges[i], x >= edges[E - 1]
    label_sums        (3,)        float64  over rows whose document has a label y: number, sum of y, sum of y^2
    labelled_sum, labelled_sum_squares, labelled_cross  (U,)  float64  over the same rows: of x, x^2 and x y
    tag_count         (K,)        int64    rows with each tag, K = 0 without words
    tag_sum           (K, U)      float64  sums of x over them
    top_value         (R, U)      float32  a unit's largest states, of different documents, in falling order (NaN: none)
    top_position      (R, U)      int64    bytes of the text at which they are (-1: none)
    top_document      (R, U)      int64    their documents, counted in the dump's splits
    top_context       (R, U, 64)  uint8    the text up to and with those bytes, within the document; zeros before it

The number of rows is the group's attribute "count". Sums run in float64, first for each lane, then over lanes, then
over groups in their order: nothing depends on how many workers there were.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from fastlstm.errors import InputError
from fastlstm.states.reader import open_array, read_attributes
from fastlstm.states.schema import STATISTICS, StoreAttributes
from fastlstm.states.storage import storage_at

LOW, WIDTH, BINS = -8.0, 0.25, 64
TOP = 16
CONTEXT = 64  # bytes

Arrays = dict[str, npt.NDArray[Any]]
# Every array of the group, and its dtype.
STORED: dict[str, str] = {
    "sum": "float64",
    "sum_squares": "float64",
    "minimum": "float32",
    "maximum": "float32",
    "edges": "float64",
    "histogram": "int64",
    "label_sums": "float64",
    "labelled_sum": "float64",
    "labelled_sum_squares": "float64",
    "labelled_cross": "float64",
    "tag_count": "int64",
    "tag_sum": "float64",
    "top_value": "float32",
    "top_position": "int64",
    "top_document": "int64",
    "top_context": "uint8",
}


@dataclass(frozen=True)
class Statistics:
    """The statistics of a finished store; fields as at the head of this file. units (U,): which cell each column is."""

    attributes: StoreAttributes
    units: npt.NDArray[np.int32]
    count: int
    sum: npt.NDArray[np.float64]
    sum_squares: npt.NDArray[np.float64]
    minimum: npt.NDArray[np.float32]
    maximum: npt.NDArray[np.float32]
    edges: npt.NDArray[np.float64]
    histogram: npt.NDArray[np.int64]
    label_sums: npt.NDArray[np.float64]
    labelled_sum: npt.NDArray[np.float64]
    labelled_sum_squares: npt.NDArray[np.float64]
    labelled_cross: npt.NDArray[np.float64]
    tag_count: npt.NDArray[np.int64]
    tag_sum: npt.NDArray[np.float64]
    top_value: npt.NDArray[np.float32]
    top_position: npt.NDArray[np.int64]
    top_document: npt.NDArray[np.int64]
    top_context: npt.NDArray[np.uint8]

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """(U,)."""
        return self.sum / self.count

    @property
    def std(self) -> npt.NDArray[np.float64]:
        """(U,): over rows, divided by their number."""
        return np.sqrt(np.maximum(self.sum_squares / self.count - self.mean**2, 0))

    def label_correlation(self) -> npt.NDArray[np.float64]:
        """(U,): Pearson's correlation of a unit with the label of its document over labelled rows; NaN if none vary."""
        n, y, yy = self.label_sums
        with np.errstate(invalid="ignore", divide="ignore"):
            covariance = self.labelled_cross / n - self.labelled_sum / n * (y / n)
            variance = self.labelled_sum_squares / n - (self.labelled_sum / n) ** 2
            correlation: npt.NDArray[np.float64] = covariance / np.sqrt(variance * (yy / n - (y / n) ** 2))
        return correlation

    def label_difference(self) -> npt.NDArray[np.float64]:
        """(U,): mean over rows with label 1 minus mean over rows with label 0; for labels that are 0 or 1."""
        n, ones, _ = self.label_sums
        with np.errstate(invalid="ignore", divide="ignore"):
            difference: npt.NDArray[np.float64] = self.labelled_cross / ones
            difference -= (self.labelled_sum - self.labelled_cross) / (n - ones)
        return difference

    def tag_difference(self) -> npt.NDArray[np.float64]:
        """(K, U): mean over rows with a tag minus mean over all other rows."""
        rest = self.count - self.tag_count[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            difference: npt.NDArray[np.float64] = self.tag_sum / self.tag_count[:, None]
            difference -= (self.sum - self.tag_sum) / rest
        return difference


def open_statistics(place: str | Path) -> Statistics:
    """Read the statistics of a finished store; InputError naming it if it has none or is damaged."""
    store = storage_at(place)
    attributes = None if store.is_empty() or store.is_file() else read_attributes(store)
    if attributes is None:
        raise InputError(f"{store}: expected a states store (written by fastlstm dump)")
    if not attributes.complete:
        raise InputError(f"{store}: unfinished: give the same fastlstm dump command again, it goes on")
    if STATISTICS not in attributes.keeps:
        raise InputError(f"{store}: has no statistics: fastlstm dump --keep statistics makes them")
    root = zarr.open_group(store.zarr(read_only=True), mode="r", zarr_format=3)
    group = root.get(STATISTICS)
    if not isinstance(group, zarr.Group):
        raise InputError(f"{store}: group {STATISTICS} is missing: the store is damaged")
    units = np.asarray(open_array(root, str(store), "units")[...])
    arrays: Arrays = {}
    for name, dtype in STORED.items():
        if name in ("tag_count", "tag_sum") and attributes.text.tagset is None:
            arrays[name] = np.zeros((0, len(units))[: 1 + (name == "tag_sum")], dtype)
        else:
            arrays[name] = np.asarray(open_array(group, f"{store}/{STATISTICS}", name)[...])
    return Statistics(attributes=attributes, units=units, count=int(group.attrs["count"]), **arrays)  # type: ignore[arg-type]
