"""The weights behind resunet30_reference.npz and clap_reference.npz, rebuilt from names and shapes alone."""

import math
import zlib

import numpy as np


def separator_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that the original's state dict calls `name`: one draw of a generator seeded by the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    of_bn0 = '.bn0.' in name
    kind = name.rsplit('.', 1)[-1]
    if kind == 'num_batches_tracked':
        return np.array(1000, np.int64)
    if kind == 'running_mean':
        values = rng.standard_normal(shape) * (2.0 if of_bn0 else 0.1) + (5.0 if of_bn0 else 0.0)
    elif kind == 'running_var':
        values = rng.uniform(4.0, 16.0, shape) if of_bn0 else rng.uniform(0.5, 1.5, shape)
    elif kind == 'bias':
        values = rng.standard_normal(shape) * 0.1
    elif len(shape) == 1:
        values = rng.uniform(0.8, 1.2, shape)
    else:
        transposed = '.decoder_block' in name and name.count('.') == 3 and name.endswith('.conv1.weight')
        transposed = transposed and 'conv_block2' not in name
        fan_in = shape[0] if transposed else math.prod(shape[1:])
        gain = 0.5 if name.endswith('.conv2.weight') or name.startswith('film.') else 1.0
        values = rng.standard_normal(shape) * (gain * (1.0 / fan_in) ** 0.5)
    return np.asarray(values, np.float32)


def clap_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor that LAION's state dict of CLAP calls `name`, behind clap_reference.npz; drawn as above."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('running_var'):
        values = rng.uniform(50, 100, shape)
    elif name.endswith('running_mean'):
        values = rng.standard_normal(shape) * 5 - 30
    elif len(shape) >= 2:
        gain = 0.05 if 'embeddings' in name else 0.6 / math.sqrt(math.prod(shape[1:]))
        values = rng.standard_normal(shape) * gain
    elif 'norm' in name.lower() and name.endswith('weight'):
        values = 1 + 0.2 * rng.standard_normal(shape)
    else:
        values = 0.1 * rng.standard_normal(shape)
    return values.astype(np.float32)
