"""The network: as it is trained, as it separates, what it costs, and what PyTorch calls its tensors."""
