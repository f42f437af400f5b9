"""A tiny separator of random weights whose mask depends on the query, and noise for it: what its tests share."""

import jax
import numpy as np

from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.separation.separator import Separator

CONFIG = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2,) * 6)


def noisy_variables(config: ModelConfig = CONFIG) -> dict:
    fresh = init_variables(config, jax.random.key(0))

    def noisy(tree, key):
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.key(key), len(leaves))
        noise = [0.5 * jax.random.uniform(k, a.shape, minval=-1) for a, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(structure, [a + n for a, n in zip(leaves, noise, strict=True)])

    return {'params': noisy(fresh['params'], 1), 'batch_stats': noisy(fresh['batch_stats'], 2)}


def noisy_separator(**options) -> Separator:
    return Separator(CONFIG, noisy_variables(), load_encoder('words'), **options)


def sound(*shape, seed=0):
    """Noise below a quarter of 8 kHz: what a resampler to and from that rate leaves alone."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    spectrum = np.fft.rfft(noise)
    spectrum[..., spectrum.shape[-1] // 4 :] = 0
    return (0.1 * np.fft.irfft(spectrum, shape[-1])).astype(np.float32)
