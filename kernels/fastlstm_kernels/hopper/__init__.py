"""Persistent LSTM kernels for the H100: the recurrent weights stay in registers and shared memory for all T steps."""
