"""Training a byte-level language model: configuration, loop, checkpoints, evaluation."""
