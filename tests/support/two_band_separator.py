"""A network made by hand that extracts the lower or the upper half of the spectrum, as two numbers of a query say.

The first number lets the lower half pass if it is near 1, the second the upper half; near -1 they do not.
"""

import functools

import jax
import numpy as np

from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.separation.separator import Separator

CONFIG = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2,) * 6, condition_size=2)
STEEPNESS = 5.0  # of the mask, from one half of the spectrum to the other
EMBEDDINGS = {'low': (1, -1), 'high': (-0.5, 0.6)}


class TwoWords:
    """Knows the queries `low` and `high`."""

    name, embedding_size = 'two words', 2

    def __init__(self, version=1):
        self.version = version

    def identity(self):
        return {'name': self.name, 'embedding_size': 2, 'version': self.version}

    def encode_text(self, texts):
        return np.array([EMBEDDINGS[text] for text in texts], np.float32)


class HearingWords(TwoWords):
    """Also knows sounds: `low` if most of a sound is in the lower half."""

    def encode_audio(self, waveforms, *, sample_rate):
        powers = [np.abs(np.fft.rfft(waveform)) ** 2 for waveform in waveforms]
        halves = [np.add.reduceat(power, [0, len(power) // 2]) for power in powers]
        return self.encode_text(['low' if low > high else 'high' for low, high in halves])


def two_band_separator(encoder=None) -> Separator:
    shapes = jax.eval_shape(functools.partial(init_variables, CONFIG), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    variables['batch_stats'] = jax.tree_util.tree_map_with_path(
        lambda path, x: x + (path[-1].key == 'var'), variables['batch_stats']
    )
    network = variables['params']['resunet']
    # What the network hears is replaced by 1 in the lower half and -1 in the upper, and goes over the first skip
    # connection to the last block, where the query shifts it.
    network['norm0']['bias'][:] = np.repeat([1, -1, 0], [32, 32, 1])
    network['pre_conv']['kernel'][:] = [[1, -1]]
    block = network['decoder_block6']['conv_block']
    for norm in ('norm1', 'norm2'):
        block[norm]['norm']['scale'][:] = 1
    block['conv1'][1, 1] = [[0, 0], [0, 0], [1, 0], [0, 1]]
    block['conv2'][1, 1] = np.eye(2)
    # The shifts of the last block are the last but two: norm1's four channels, of which two are the skip connection's,
    # then norm2's two.
    network['film']['kernel'][:, -4:-2] = np.eye(2)
    network['after_conv']['kernel'][:, 0] = STEEPNESS
    network['after_conv']['bias'][:] = [-STEEPNESS, 5, 0]
    return Separator(CONFIG, variables, encoder or TwoWords(), info={'path': 'by hand', 'step': 3})


def band(low: bool, seconds: float, seed: int) -> np.ndarray:
    """Noise in one half of the spectrum, float32 [T]."""
    noise = np.random.default_rng(seed).standard_normal(round(seconds * CONFIG.sample_rate))
    spectrum = np.fft.rfft(noise)
    edge = len(spectrum) // 2
    spectrum[edge - edge // 10 :] *= not low
    spectrum[: edge + edge // 10] *= low
    return (0.1 * np.fft.irfft(spectrum, len(noise))).astype(np.float32)
