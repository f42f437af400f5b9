"""Reads and writes the files of `torch.save`, without torch and without running anything that a file names."""

from audiosep_jax.weights.torch_files.reader import read_torch
from audiosep_jax.weights.torch_files.writer import write_torch

__all__ = ['read_torch', 'write_torch']
