"""Training: configuration, step, loop, logs and checkpoints."""
