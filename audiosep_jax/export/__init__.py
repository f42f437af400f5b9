"""A checkpoint for other runtimes: ONNX, and StableHLO for programs that have JAX and nothing of this project."""
