"""The separator: a mixture and a query embedding in, the target's waveform out; and its configuration."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.errors import ConfigError
from audiosep_jax.models.resunet import DOWNSAMPLING, FREQUENCY_DOWNSAMPLING, ResUNet30

POWER_FLOOR = 1e-10  # of |X|², under the square root (`models/base.py` of the original)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What the network is. The defaults are those of the released checkpoint (the article says window 1024).

    Attributes:
        sample_rate: Hz of the waveforms.
        window_size: samples of the STFT's window; a multiple of 128.
        hop_size: samples between frames.
        widths: channels of the six encoder blocks.
        condition_size: E, the size of a query embedding.
        dtype: of the network's activations; parameters, statistics, STFT and loss are float32 always.
        remat: what of the activations the backward pass recomputes, for less memory and more time. `none`; `norms`:
            what lies between two convolutions, which is cheap; `blocks`: all but the inputs of the blocks.
    """

    sample_rate: int = 32000
    window_size: int = 2048
    hop_size: int = 320
    widths: tuple[int, ...] = (32, 64, 128, 256, 384, 384)
    condition_size: int = 512
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    remat: Literal['none', 'norms', 'blocks'] = 'none'

    def __post_init__(self):
        if self.sample_rate <= 0 or self.condition_size <= 0:
            raise ConfigError('model: sample_rate and condition_size must be positive')
        if self.window_size <= 0 or self.window_size % (2 * FREQUENCY_DOWNSAMPLING):
            raise ConfigError(
                f'model.window_size: {self.window_size} is not a positive multiple of {2 * FREQUENCY_DOWNSAMPLING}, '
                'which the six halvings of the frequency axis need'
            )
        if not 0 < self.hop_size <= self.window_size // 2:
            raise ConfigError(f'model.hop_size: {self.hop_size} is not between 1 and half a window')
        if len(self.widths) != len(DOWNSAMPLING) or min(self.widths) <= 0:
            raise ConfigError(f'model.widths: {self.widths} are not {len(DOWNSAMPLING)} positive numbers')
        if self.dtype not in ('float32', 'bfloat16'):
            raise ConfigError(f"model.dtype: {self.dtype!r} is neither 'float32' nor 'bfloat16'")
        if self.remat not in ('none', 'norms', 'blocks'):
            raise ConfigError(f'model.remat: {self.remat!r} must be none, norms or blocks')


class AudioSep(nn.Module):
    """Mixtures [B, T] and embeddings [B, E] -> targets float32 [B, T].

    Variables: `params` and `batch_stats`. With `train=True` the statistics are updated: apply with
    `mutable=['batch_stats']`.

    Attributes:
        config: what the network is.
        by_clip: turns a function of arrays with the leading axis B, that treats each clip by itself, into one that is
            run where the clips lie (`parallel.mesh.by_clip`). XLA's partitioner does not know that of an FFT: it sends
            all clips to all devices, and each transforms all of them.
    """

    config: ModelConfig
    by_clip: Callable[[Callable], Callable] = lambda function: function

    def setup(self):
        self.resunet = ResUNet30(self.config.widths, jnp.dtype(self.config.dtype), self.config.remat)

    def mask(
        self,
        spectrum: jax.Array,
        embedding: jax.Array,
        frame_count: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """complex64 [B, N, F], float [B, E], and the number of real frames int [B] -> complex64 mask [B, N, F]."""
        power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
        magnitude = jnp.sqrt(jnp.maximum(power, POWER_FLOOR))
        return self.resunet(magnitude, embedding, frame_count, train=train)

    def __call__(self, mixture: jax.Array, embedding: jax.Array, *, train: bool = False) -> jax.Array:
        window, hop = self.config.window_size, self.config.hop_size
        spectrum = self.by_clip(lambda x: stft(x, window, hop))(mixture)
        # |Y| at angle(X) + angle(M), written as one product: |X| times the cosine of its angle is its real part.
        spectrum = spectrum * self.mask(spectrum, embedding, train=train)
        return self.by_clip(lambda y: istft(y, window, hop, length=mixture.shape[-1]))(spectrum)


def init_variables(config: ModelConfig, key: jax.Array) -> dict:
    """Fresh `params` and `batch_stats` of an AudioSep of this configuration."""
    # Parameter shapes depend on neither B nor T; one hop is the cheapest input. Under jit the network itself, whose
    # output nobody asks for, is not even run.
    mixture, embedding = jnp.zeros((1, config.hop_size)), jnp.zeros((1, config.condition_size))
    return jax.jit(AudioSep(config).init)(key, mixture, embedding)
