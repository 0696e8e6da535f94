"""Cell states on disk: the Zarr contract between models and probes (`schema.py` describes a store)."""

from fastlstm.states.reader import States, open_states
from fastlstm.states.schema import ModelAttributes, StoreAttributes, TextAttributes

__all__ = ["ModelAttributes", "States", "StoreAttributes", "TextAttributes", "open_states"]
