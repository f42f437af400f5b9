"""Files of `torch.save`, read and written without torch. A file is untrusted: nothing that it names is imported or run.

reader.py     the containers (zip, and the stream of pickles before it) and the tensors in them, memory-mapped
unpickler.py  the pickle machine; inert.py: what becomes of foreign classes, and what is refused
writer.py     what `torch.load(path, weights_only=True)` reads
"""

from audiosep_jax.weights.torch_files.inert import Inert
from audiosep_jax.weights.torch_files.reader import read_torch
from audiosep_jax.weights.torch_files.writer import write_torch

__all__ = ['Inert', 'read_torch', 'write_torch']
