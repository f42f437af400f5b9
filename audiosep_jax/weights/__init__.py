"""Files of tensors: safetensors, PyTorch checkpoints (read and written without PyTorch), and the hub they come from."""
