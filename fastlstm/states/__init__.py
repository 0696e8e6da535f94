"""Cell states on disk: the Zarr contract between models and probes (`schema.py` describes a store)."""

from fastlstm.states.reader import States, open_states
from fastlstm.states.schema import ModelAttributes, StoreAttributes, TextAttributes
from fastlstm.states.statistics import Statistics, open_statistics

__all__ = [
    "ModelAttributes",
    "States",
    "Statistics",
    "StoreAttributes",
    "TextAttributes",
    "open_states",
    "open_statistics",
]
