"""CLAP's audio tower: HTSAT (arXiv 2202.00874), a Swin transformer (arXiv 2103.14030) on log-mel spectrograms.

This is the variant without feature fusion, as in `models/CLAP/open_clip/htsat.py` of the original. Names and layouts of
the parameters are those of LAION's files (`audio_branch.*`, `audio_projection.*`), except that query, key and value are
separate.
Letters: B batch, T samples at 48 kHz, N frames, M mel bands, H and W rows and columns of patches, C channels.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.audio.stft import stft
from audiosep_jax.encoders.layers import (
    PRECISION,
    LayerNorm,
    Linear,
    ProjectionHead,
    apply,
    attention,
    gelu,
    load_parameters,
    parameter_shapes,
)

SAMPLE_RATE = 48000  # Hz
WINDOW_SAMPLES = 480000  # T: the tower takes 10 s at a time
WINDOW_SIZE = 1024
HOP_SIZE = 480
MEL_BANDS = 64
IMAGE_SIZE = 256  # side of the square into which the spectrogram is folded: 4 times 64 bands, a quarter of the time
PATCH_SIZE = 4
WINDOW = 8  # patches along a side of the windows within which patches attend to each other
_FOLDS = IMAGE_SIZE // MEL_BANDS
_POWER_FLOOR = 1e-10
_BATCH_NORM_EPSILON = 1e-5
_MASKED = -100.0  # the tower was trained with this value, not with -infinity


@dataclasses.dataclass(frozen=True)
class HtsatConfig:
    """Sizes of the tower. The defaults are those of HTSAT-base; HTSAT-tiny has width 96 and depths 2, 2, 6, 2."""

    width: int = 128  # channels of the first stage; each further stage doubles them
    depths: tuple[int, ...] = (2, 2, 12, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    hidden_ratio: float = 4.0
    embedding_size: int = 512
    lowest: float = 50.0  # lower end of the mel bands, in Hz
    highest: float = 14000.0  # upper end of the mel bands, in Hz
    epsilon: float = 1e-5  # of the blocks' layer norms; all other norms always have 1e-5


# ---------------------------------------------------------------------------------------------------------------------
# From waveform to image
# ---------------------------------------------------------------------------------------------------------------------


def mel_filters(lowest: float, highest: float) -> np.ndarray:
    """Returns triangular filters of area 1 on Slaney's mel scale (librosa's default), float32 [F, M].

    Args:
        lowest: lower end of the first band, in Hz.
        highest: upper end of the last band, in Hz.
    """
    first, last = _hertz_to_mel(np.array([lowest, highest]))
    edges = _mel_to_hertz(np.linspace(first, last, MEL_BANDS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW_SIZE // 2 + 1)
    ramps = bins[:, None] - edges
    rising = ramps[:, :-2] / (edges[1:-1] - edges[:-2])
    falling = -ramps[:, 2:] / (edges[2:] - edges[1:-1])
    return (np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)


# Slaney's Auditory Toolbox: 15 linear steps up to 1 kHz, above it 27 logarithmic steps for each factor of 6.4.
_LINEAR_STEP = 200 / 3
_KNEE = 1000.0
_LOG_STEP = np.log(6.4) / 27


def _hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    above = _KNEE / _LINEAR_STEP + np.log(np.maximum(hertz, _KNEE) / _KNEE) / _LOG_STEP
    return np.where(hertz < _KNEE, hertz / _LINEAR_STEP, above)


def _mel_to_hertz(mels: np.ndarray) -> np.ndarray:
    knee = _KNEE / _LINEAR_STEP
    return np.where(mels < knee, mels * _LINEAR_STEP, _KNEE * np.exp(_LOG_STEP * (np.maximum(mels, knee) - knee)))


def log_mel(waveform: jax.Array, lowest: float = 50.0, highest: float = 14000.0) -> jax.Array:
    """Returns the power in mel bands in dB, at least −100, float32 [B, N, M] with N = 1 + T // 480.

    Equal to `Spectrogram` and `LogmelFilterBank` of torchlibrosa, with librosa's default filters.

    Args:
        waveform: float [B, T] at 48 kHz.
        lowest: lower end of the mel bands, in Hz.
        highest: upper end of the mel bands, in Hz.
    """
    spectrum = stft(waveform, WINDOW_SIZE, HOP_SIZE)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    bands = jnp.matmul(power, mel_filters(lowest, highest), precision=PRECISION)
    return 10 * jnp.log10(jnp.maximum(bands, _POWER_FLOOR))


def bicubic(x: jax.Array, length: int) -> jax.Array:
    """Resizes the middle axis, [B, N, M] -> [B, length, M], and keeps both ends in place.

    Equal to `torch.nn.functional.interpolate(mode='bicubic', align_corners=True)`: Keys' cubic convolution with
    a = −0.75 and repeated edges. Positions are computed in float32, as in PyTorch, so they are off by up to 3e-5 frames
    at 1000 frames.
    """
    taps, weights = _cubic_weights(x.shape[1], length)
    return sum(x[:, taps[k]] * weights[k][:, None] for k in range(4))


def _cubic_weights(n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the four input frames of each output frame, int [4, length], and their weights, float32 [4, length]."""
    position = np.arange(length, dtype=np.float32) * (np.float32(n - 1) / np.float32(length - 1))
    first = np.floor(position)
    t = position - first
    a = np.float32(-0.75)

    def near(d: np.ndarray) -> np.ndarray:  # within one frame
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: np.ndarray) -> np.ndarray:  # within two frames
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    weights = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)]).astype(np.float32)
    taps = first.astype(int) + np.arange(-1, 3)[:, None]
    return np.clip(taps, 0, n - 1), weights


class BandNorm(nn.Module):
    """Batch norm of each mel band with fixed statistics: [B, N, M] -> [B, N, M]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names = ('weight', 'bias', 'running_mean', 'running_var')
        weight, bias, mean, var = (self.param(name, nn.initializers.zeros, x.shape[-1:]) for name in names)
        return (x - mean) * (weight * jax.lax.rsqrt(var + _BATCH_NORM_EPSILON)) + bias


class Front(nn.Module):
    """Converts waveforms to patches: [B, T] -> [B, H, W, C], H = W = 64."""

    config: HtsatConfig

    def setup(self) -> None:
        self.bn0 = BandNorm()
        self.patch_embed = PatchEmbedding(self.config.width)

    def __call__(self, waveform: jax.Array) -> jax.Array:
        x = self.bn0(log_mel(waveform, self.config.lowest, self.config.highest))
        return self.patch_embed(fold(x))


def fold(x: jax.Array) -> jax.Array:
    """Folds a spectrogram into a square image, [B, N, M] -> [B, 256, 256], N up to 1024.

    The image has four stretches of time on top of each other, each with its bands as rows.
    """
    x = bicubic(x, IMAGE_SIZE * _FOLDS)
    x = x.reshape(x.shape[0], _FOLDS, IMAGE_SIZE, MEL_BANDS)
    return x.transpose(0, 1, 3, 2).reshape(x.shape[0], IMAGE_SIZE, IMAGE_SIZE)


class PatchEmbedding(nn.Module):
    """A linear layer on patches of 4 × 4 pixels, and a norm: [B, 256, 256] -> [B, 64, 64, C]."""

    width: int

    def setup(self) -> None:
        self.proj = _PatchProjection(self.width)
        self.norm = LayerNorm(1e-5)

    def __call__(self, image: jax.Array) -> jax.Array:
        return self.norm(self.proj(image))


class _PatchProjection(nn.Module):
    """A linear layer on patches of 4 × 4 pixels: [B, 256, 256] -> [B, 64, 64, C]."""

    width: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        shape = (self.width, 1, PATCH_SIZE, PATCH_SIZE)  # that of a convolution whose stride equals its size
        weight = self.param('weight', nn.initializers.zeros, shape)
        bias = self.param('bias', nn.initializers.zeros, (self.width,))
        side = IMAGE_SIZE // PATCH_SIZE
        patches = image.reshape(-1, side, PATCH_SIZE, side, PATCH_SIZE).transpose(0, 1, 3, 2, 4)
        patches = patches.reshape(-1, side, side, PATCH_SIZE**2)
        return jnp.matmul(patches, weight.reshape(self.width, -1).T, precision=PRECISION) + bias


# ---------------------------------------------------------------------------------------------------------------------
# The Swin transformer
# ---------------------------------------------------------------------------------------------------------------------


class WindowAttention(nn.Module):
    """Attention within windows: K windows of P patches, [B, K, P, C], and a mask [K, P, P] -> [B, K, P, C]."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        shape = ((2 * WINDOW - 1) ** 2, self.heads)
        table = self.param('relative_position_bias_table', nn.initializers.zeros, shape)
        bias = table[_relative_positions()].transpose(2, 0, 1) + mask[:, None]  # [K, heads, P, P]
        query, key, value = (Linear(x.shape[-1], name=name)(x) for name in ('query', 'key', 'value'))
        return Linear(x.shape[-1], name='proj')(attention(query, key, value, self.heads, bias))


class Block(nn.Module):
    """Window attention and an MLP, each after a norm and with a skip connection: [B, H, W, C] -> [B, H, W, C].

    The input `shifted`, a bool, says whether the windows are cyclically moved by half their size. It is an input so
    that both kinds of block share a compilation. That saves three compilations of 0.25 s each before the first
    embedding, and costs nothing afterwards.
    """

    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, shifted: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = LayerNorm(self.epsilon, name='norm1')(x)
        shift = jnp.where(shifted, WINDOW // 2, 0)
        y = jnp.roll(y, jnp.stack([-shift, -shift]), axis=(1, 2))
        y = y.reshape(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).transpose(0, 1, 3, 2, 4, 5)
        mask = jnp.where(shifted, _shift_mask(h, w), 0.0)
        y = WindowAttention(self.heads, name='attn')(y.reshape(b, -1, WINDOW * WINDOW, c), mask)
        y = y.reshape(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + jnp.roll(y, jnp.stack([shift, shift]), axis=(1, 2))
        return x + _Mlp(self.hidden, name='mlp')(LayerNorm(self.epsilon, name='norm2')(x))


class _Mlp(nn.Module):
    """Two linear layers with a GELU between: [..., C] -> [..., C]."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Linear(x.shape[-1], name='fc2')(gelu(Linear(self.hidden, name='fc1')(x)))


class Merge(nn.Module):
    """Merges four patches into one with twice the channels: [B, H, W, C] -> [B, H / 2, W / 2, 2 C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        return Linear(x.shape[-1] // 2, use_bias=False, name='reduction')(LayerNorm(1e-5, name='norm')(x))


class Pool(nn.Module):
    """Returns the mean of the normalized patches: [B, H, W, C] -> [B, C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.mean(LayerNorm(1e-5, name='norm')(x), axis=(1, 2))


def _relative_positions() -> np.ndarray:
    """Returns the row of the bias table for each pair of patches of a window, int [P, P]."""
    rows, columns = np.divmod(np.arange(WINDOW * WINDOW), WINDOW)
    down, right = rows[:, None] - rows, columns[:, None] - columns
    return (down + WINDOW - 1) * (2 * WINDOW - 1) + right + WINDOW - 1


def _shift_mask(h: int, w: int) -> np.ndarray:
    """Returns a mask for patches that are neighbors only because the shift is cyclic, float32 [K, P, P]."""
    down, right = (np.digitize(np.arange(size), [size - WINDOW, size - WINDOW // 2]) for size in (h, w))
    regions = (3 * down[:, None] + right).reshape(h // WINDOW, WINDOW, w // WINDOW, WINDOW)
    region = regions.transpose(0, 2, 1, 3).reshape(-1, WINDOW * WINDOW)
    return np.where(region[:, :, None] != region[:, None, :], _MASKED, 0.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One step of the tower: a module, its input's shape, and the prefix that its tensors' names have."""

    prefix: str
    module: nn.Module
    shape: tuple[int, ...]
    inputs: tuple[np.bool_, ...] = ()  # further inputs

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Returns the names and shapes of the module's parameters."""
        return parameter_shapes(self.module, self.shape, *((),) * len(self.inputs))


def _parts(config: HtsatConfig) -> list[_Part]:
    """Returns the steps of the tower in the order of the computation."""
    parts = [_Part('audio_branch.', Front(config), (1, WINDOW_SAMPLES))]
    for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        width, side = config.width << stage, IMAGE_SIZE // PATCH_SIZE >> stage
        shape = (1, side, side, width)
        block = Block(heads, int(width * config.hidden_ratio), config.epsilon)
        for i in range(depth):
            shifted = np.bool_(i % 2 and side > WINDOW)  # the last stage has a single window
            parts.append(_Part(f'audio_branch.layers.{stage}.blocks.{i}.', block, shape, (shifted,)))
        if stage + 1 < len(config.depths):
            parts.append(_Part(f'audio_branch.layers.{stage}.downsample.', Merge(), shape))
    parts.append(_Part('audio_branch.', Pool(), shape))
    parts.append(_Part('audio_projection.', ProjectionHead(config.embedding_size), (1, width)))
    return parts


def tensor_shapes(config: HtsatConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor that the tower uses, by LAION's name with query, key and value separate."""
    return {f'{part.prefix}{name}': shape for part in _parts(config) for name, shape in part.parameters().items()}


class AudioTower:
    """Embeds ten seconds of sound; embeddings have length 1.

    Args:
        config: the sizes.
        tensors: the weights, by the names of `tensor_shapes`.
    """

    def __init__(self, config: HtsatConfig, tensors: Mapping[str, np.ndarray]):
        self._parts = [(part, load_parameters(tensors, part.prefix, part.parameters())) for part in _parts(config)]

    def __call__(self, waveforms: np.ndarray) -> np.ndarray:
        """Returns embeddings, float32 [B, E], of waveforms [B, `WINDOW_SAMPLES`] at 48 kHz. Compiled for each B."""
        x = jax.device_put(waveforms)
        for part, weights in self._parts:
            x = apply(part.module, weights, x, *jax.device_put(part.inputs))
        return jax.device_get(x)
