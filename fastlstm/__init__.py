"""Fast LSTMs, byte-level language models, and the states of their cells."""

from importlib import import_module
from typing import TYPE_CHECKING

from fastlstm.errors import InputError
from fastlstm.version import __version__

if TYPE_CHECKING:
    from fastlstm.functional import lstm
    from fastlstm.model import ByteLM
    from fastlstm.module import LSTM, explain

__all__ = ["LSTM", "ByteLM", "InputError", "__version__", "explain", "lstm"]

# Imported when first used, so that `fastlstm --help` and the workers of `prepare` do not wait for torch.
_MODULES = {
    "LSTM": "fastlstm.module",
    "explain": "fastlstm.module",
    "lstm": "fastlstm.functional",
    "ByteLM": "fastlstm.model",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'fastlstm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
