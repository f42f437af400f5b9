"""Weight files: safetensors, PyTorch checkpoints (read and written without PyTorch), and downloads from the hub."""
