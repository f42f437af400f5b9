"""The separation model from waveform to waveform, and its configuration.

Letters: B clips, T samples, N frames, F frequency bins, E embedding size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex64, Float, Float32, Int, PRNGKeyArray

from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.errors import ConfigError
from audiosep_jax.models.layers import DOWNSAMPLING, FREQUENCY_DOWNSAMPLING
from audiosep_jax.models.resunet import ResUNet30

POWER_FLOOR = 1e-10  # the least |X|² under the square root (`models/base.py` of the original)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model's configuration. The defaults are those of the released checkpoint (the article says window 1024).

    Attributes:
        sample_rate: Hz of the waveforms.
        window_size: samples of the STFT's window; a multiple of 128.
        hop_size: samples between frames.
        widths: channels of the encoder blocks, of which there are two to six.
        condition_size: E, the size of a query embedding.
        dtype: type of the network's activations. Parameters, statistics, STFT and loss are always float32.
        remat: which activations the backward pass recomputes, to save memory at the cost of time. `norms` recomputes
            those between two convolutions, which is cheap; `blocks` all but the inputs of the blocks.
    """

    sample_rate: int = 32000
    window_size: int = 2048
    hop_size: int = 320
    widths: tuple[int, ...] = (32, 64, 128, 256, 384, 384)
    condition_size: int = 512
    dtype: Literal['float32', 'bfloat16'] = 'float32'
    remat: Literal['none', 'norms', 'blocks'] = 'none'

    def __post_init__(self) -> None:
        if self.sample_rate <= 0 or self.condition_size <= 0:
            raise ConfigError('model: sample_rate and condition_size must be positive')
        if self.window_size <= 0 or self.window_size % (2 * FREQUENCY_DOWNSAMPLING):
            raise ConfigError(
                f'model.window_size: {self.window_size} is not a positive multiple of {2 * FREQUENCY_DOWNSAMPLING}, '
                'which six halvings of the frequency axis need'
            )
        if not 0 < self.hop_size <= self.window_size // 2:
            raise ConfigError(f'model.hop_size: {self.hop_size} is not between 1 and half a window')
        if not 2 <= len(self.widths) <= len(DOWNSAMPLING) or min(self.widths) <= 0:
            raise ConfigError(f'model.widths: {self.widths} are not two to {len(DOWNSAMPLING)} positive numbers')
        if self.dtype not in ('float32', 'bfloat16'):
            raise ConfigError(f"model.dtype: {self.dtype!r} is neither 'float32' nor 'bfloat16'")
        if self.remat not in ('none', 'norms', 'blocks'):
            raise ConfigError(f'model.remat: {self.remat!r} must be none, norms or blocks')


class AudioSep(nn.Module):
    """Computes the targets' waveforms from mixtures and query embeddings.

    Its variables are `params` and `batch_stats`. `train=True` updates the statistics, so apply it with
    `mutable=['batch_stats']`.

    Attributes:
        config: the model's configuration.
        by_clip: wraps a function that treats each clip of its arrays [B, …] by itself, so that each device runs it on
            its own clips (`parallel.mesh.by_clip`). XLA cannot split an FFT: without the wrapper it sends all clips to
            all devices, and each device transforms all of them.
        lanes: see `ResUNet30`.
        devices: see `ResUNet30`.
    """

    config: ModelConfig
    by_clip: Callable[[Callable], Callable] = lambda function: function
    lanes: int = 1
    devices: int = 1

    def setup(self) -> None:
        config = self.config
        self.resunet = ResUNet30(config.widths, jnp.dtype(config.dtype), config.remat, self.lanes, self.devices)

    def mask(
        self,
        spectrum: Complex64[Array | np.ndarray, 'B N F'],
        embedding: Float[Array | np.ndarray, 'B E'],
        frame_count: Int[Array | np.ndarray, ' B'] | None = None,
        *,
        train: bool = False,
    ) -> Complex64[Array, 'B N F']:
        """Computes the masks of mixture spectra; see `ResUNet30` for the arguments."""
        power = jnp.real(spectrum) ** 2 + jnp.imag(spectrum) ** 2
        magnitude = jnp.sqrt(jnp.maximum(power, POWER_FLOOR))
        return self.resunet(magnitude, embedding, frame_count, train=train)

    def __call__(
        self,
        mixture: Float[Array | np.ndarray, 'B T'],
        embedding: Float[Array | np.ndarray, 'B E'],
        *,
        train: bool = False,
    ) -> Float32[Array, 'B T']:
        """Computes the targets' waveforms."""
        window, hop = self.config.window_size, self.config.hop_size
        spectrum = self.by_clip(lambda x: stft(x, window, hop))(mixture)
        # The original computes |X|·|M| at angle(X) + angle(M), which is this product.
        spectrum = spectrum * self.mask(spectrum, embedding, train=train)
        return self.by_clip(lambda y: istft(y, window, hop, length=mixture.shape[-1]))(spectrum)


def init_variables(config: ModelConfig, key: PRNGKeyArray) -> dict[str, Any]:
    """Makes new `params` and `batch_stats` for an AudioSep of this configuration."""
    # Parameter shapes depend on neither B nor T; one hop is the cheapest input. Under jit the network itself does not
    # run, because its output is not used.
    mixture, embedding = jnp.zeros((1, config.hop_size)), jnp.zeros((1, config.condition_size))
    return jax.jit(AudioSep(config).init)(key, mixture, embedding)
