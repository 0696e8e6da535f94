"""LSTM recurrences on tensors: no text, no files, no training.

Dimensions, everywhere in this package: ``T`` time steps, ``B`` sequences in the batch, ``H`` hidden size,
``V`` rows of an input table (256 for bytes). Gates are stacked in PyTorch's order i, f, g, o.
"""

from fastlstm_kernels.reference import (
    lstm_backward,
    lstm_forward,
    table_gradient,
    weight_gradient,
)
from fastlstm_kernels.shapes import check_shapes

__all__ = ["check_shapes", "lstm_backward", "lstm_forward", "table_gradient", "weight_gradient"]
