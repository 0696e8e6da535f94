"""Probes: what the cells of a byte-level LSTM know.

Text is labelled (`concepts`), its cell states are dumped by `fastlstm`, and logistic regressions are fitted
on the stored states. A states store and its labels are all that the fits read, never a model.
"""

from __future__ import annotations

__all__: list[str] = []
