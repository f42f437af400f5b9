"""CLAP's audio tower: HTSAT (arXiv 2202.00874), a Swin transformer (arXiv 2103.14030) on log-mel spectrograms.

The variant without feature fusion, as in `models/CLAP/open_clip/htsat.py` of the original; names and layouts of the
parameters are those of LAION's files (`audio_branch.*`, `audio_projection.*`), but query, key and value stand apart.
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
WINDOW_SAMPLES = 480000  # T: what the tower hears at once, 10 s
WINDOW_SIZE = 1024
HOP_SIZE = 480
MEL_BANDS = 64
IMAGE_SIZE = 256  # the spectrogram, folded into a square: rows are 4 times 64 bands, columns a quarter of the time
PATCH_SIZE = 4
WINDOW = 8  # patches along a side of what attends to each other
_FOLDS = IMAGE_SIZE // MEL_BANDS
_POWER_FLOOR = 1e-10
_BATCH_NORM_EPSILON = 1e-5
_MASKED = -100.0  # as trained: not infinite


@dataclasses.dataclass(frozen=True)
class HtsatConfig:
    """Sizes; the defaults are HTSAT-base's. HTSAT-tiny has width 96 and depths 2, 2, 6, 2."""

    width: int = 128  # of the first stage; each further stage has twice the one before
    depths: tuple[int, ...] = (2, 2, 12, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    hidden_ratio: float = 4.0
    embedding_size: int = 512
    lowest: float = 50.0  # Hz, of the mel bands
    highest: float = 14000.0  # Hz
    epsilon: float = 1e-5  # of the blocks' layer norms; all other norms have 1e-5 in any case


# ---------------------------------------------------------------------------------------------------------------------
# From waveform to image
# ---------------------------------------------------------------------------------------------------------------------


def mel_filters(lowest: float, highest: float) -> np.ndarray:
    """float32 [F, M]: triangles of area 1 over `WINDOW_SIZE` // 2 + 1 bins, librosa's default (Slaney's mel scale)."""
    edges = _mel_to_hertz(np.linspace(*_hertz_to_mel(np.array([lowest, highest])), MEL_BANDS + 2))
    bins = np.linspace(0, SAMPLE_RATE / 2, WINDOW_SIZE // 2 + 1)
    ramps = bins[:, None] - edges
    rising = ramps[:, :-2] / (edges[1:-1] - edges[:-2])
    falling = -ramps[:, 2:] / (edges[2:] - edges[1:-1])
    return (np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))).astype(np.float32)


# Slaney's Auditory Toolbox: linear up to 1 kHz, 15 mels, and 27 logarithmic steps for each factor of 6.4 above.
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
    """Power in mel bands, in dB above 1, not below −100: float [B, T] at 48 kHz -> float32 [B, N, M], N = 1 + T // 480.

    `Spectrogram` and `LogmelFilterBank` of torchlibrosa, with librosa's default filters.
    """
    spectrum = stft(waveform, WINDOW_SIZE, HOP_SIZE)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    bands = jnp.matmul(power, mel_filters(lowest, highest), precision=PRECISION)
    return 10 * jnp.log10(jnp.maximum(bands, _POWER_FLOOR))


def bicubic(x: jax.Array, length: int) -> jax.Array:
    """Resizes the middle axis, [B, N, M] -> [B, length, M], both ends kept in place.

    `torch.nn.functional.interpolate(mode='bicubic', align_corners=True)`: the cubic convolution of Keys with a = −0.75,
    edges repeated. Positions are worked out in float32, as there: at 1000 frames that is 3e-5 of a frame off.
    """
    taps, weights = _cubic(x.shape[1], length)
    return sum(x[:, taps[k]] * weights[k][:, None] for k in range(4))


def _cubic(n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """int [4, length] frames and float32 [4, length] weights, of each output frame."""
    position = np.arange(length, dtype=np.float32) * (np.float32(n - 1) / np.float32(length - 1))
    first = np.floor(position)
    t = position - first
    a = np.float32(-0.75)

    def near(d):  # within one frame
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d):  # within two
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    weights = np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)]).astype(np.float32)
    taps = first.astype(int) + np.arange(-1, 3)[:, None]
    return np.clip(taps, 0, n - 1), weights


class BandNorm(nn.Module):
    """Batch norm with fixed statistics, of each mel band: [B, N, M] -> [B, N, M]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        names = ('weight', 'bias', 'running_mean', 'running_var')
        weight, bias, mean, var = (self.param(name, nn.initializers.zeros, x.shape[-1:]) for name in names)
        return (x - mean) * (weight * jax.lax.rsqrt(var + _BATCH_NORM_EPSILON)) + bias


class Front(nn.Module):
    """Waveforms to patches: [B, T] -> [B, H, W, C], H = W = 64."""

    config: HtsatConfig

    def setup(self):
        self.bn0 = BandNorm()
        self.patch_embed = PatchEmbedding(self.config.width)

    def __call__(self, waveform: jax.Array) -> jax.Array:
        x = self.bn0(log_mel(waveform, self.config.lowest, self.config.highest))
        return self.patch_embed(fold(x))


def fold(x: jax.Array) -> jax.Array:
    """A spectrogram as a square image: [B, N, M], N up to 1024 -> [B, 256, 256], four stretches of time on top of each
    other, each with its bands as rows."""
    x = bicubic(x, IMAGE_SIZE * _FOLDS)
    x = x.reshape(x.shape[0], _FOLDS, IMAGE_SIZE, MEL_BANDS)
    return x.transpose(0, 1, 3, 2).reshape(x.shape[0], IMAGE_SIZE, IMAGE_SIZE)


class PatchEmbedding(nn.Module):
    """A linear layer on patches of 4 × 4 and a norm: [B, 256, 256] -> [B, 64, 64, C]."""

    width: int

    def setup(self):
        self.proj = _PatchProjection(self.width)
        self.norm = LayerNorm(1e-5)

    def __call__(self, image: jax.Array) -> jax.Array:
        return self.norm(self.proj(image))


class _PatchProjection(nn.Module):
    width: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        shape = (self.width, 1, PATCH_SIZE, PATCH_SIZE)  # a convolution's, with a stride of its own size
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
    """Attention within windows: [B, K, P, C] of K windows with P patches each, a mask [K, P, P] -> [B, K, P, C]."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        shape = ((2 * WINDOW - 1) ** 2, self.heads)
        table = self.param('relative_position_bias_table', nn.initializers.zeros, shape)
        bias = table[_relative_positions()].transpose(2, 0, 1) + mask[:, None]  # [K, heads, P, P]
        query, key, value = (Linear(x.shape[-1], name=name)(x) for name in ('query', 'key', 'value'))
        return Linear(x.shape[-1], name='proj')(attention(query, key, value, self.heads, bias))


class Block(nn.Module):
    """Window attention and MLP, normalised before, around a residual stream: [B, H, W, C] -> [B, H, W, C].

    `shifted`, a bool: whether the windows are moved by half their size, cyclically. An input, so that both kinds of
    block share a compilation: three fewer of 0.25 s each before the first embedding, and no slower after.
    """

    heads: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, shifted: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = LayerNorm(self.epsilon, name='norm1')(x)
        shift = jnp.where(shifted, WINDOW // 2, 0)
        y = jnp.roll(y, (-shift, -shift), axis=(1, 2))
        y = y.reshape(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).transpose(0, 1, 3, 2, 4, 5)
        mask = jnp.where(shifted, _shift_mask(h, w), 0.0)
        y = WindowAttention(self.heads, name='attn')(y.reshape(b, -1, WINDOW * WINDOW, c), mask)
        y = y.reshape(b, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + jnp.roll(y, (shift, shift), axis=(1, 2))
        return x + _Mlp(self.hidden, name='mlp')(LayerNorm(self.epsilon, name='norm2')(x))


class _Mlp(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Linear(x.shape[-1], name='fc2')(gelu(Linear(self.hidden, name='fc1')(x)))


class Merge(nn.Module):
    """Four patches become one of twice the channels: [B, H, W, C] -> [B, H / 2, W / 2, 2 C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        return Linear(x.shape[-1] // 2, use_bias=False, name='reduction')(LayerNorm(1e-5, name='norm')(x))


class Pool(nn.Module):
    """The normalised mean patch: [B, H, W, C] -> [B, C]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.mean(LayerNorm(1e-5, name='norm')(x), axis=(1, 2))


def _relative_positions() -> np.ndarray:
    """int [P, P]: the row of the bias table for each pair of patches of a window."""
    rows, columns = np.divmod(np.arange(WINDOW * WINDOW), WINDOW)
    down, right = rows[:, None] - rows, columns[:, None] - columns
    return (down + WINDOW - 1) * (2 * WINDOW - 1) + right + WINDOW - 1


def _shift_mask(h: int, w: int) -> np.ndarray:
    """float32 [K, P, P]: what keeps patches apart that are neighbours only because the shift is cyclic."""
    down, right = (np.digitize(np.arange(size), [size - WINDOW, size - WINDOW // 2]) for size in (h, w))
    region = (3 * down[:, None] + right).reshape(h // WINDOW, WINDOW, w // WINDOW, WINDOW)
    region = region.transpose(0, 2, 1, 3).reshape(-1, WINDOW * WINDOW)
    return np.where(region[:, :, None] != region[:, None, :], _MASKED, 0.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One step of the tower."""

    prefix: str  # of the names of its tensors
    module: nn.Module
    shape: tuple[int, ...]  # of its input
    inputs: tuple[np.bool_, ...] = ()  # further ones

    def parameters(self) -> dict[str, tuple[int, ...]]:
        return parameter_shapes(self.module, self.shape, *((),) * len(self.inputs))


def _parts(config: HtsatConfig) -> list[_Part]:
    """In the order of the computation."""
    parts = [_Part('audio_branch.', Front(config), (1, WINDOW_SAMPLES))]
    for stage, (depth, heads) in enumerate(zip(config.depths, config.heads, strict=True)):
        width, side = config.width << stage, IMAGE_SIZE // PATCH_SIZE >> stage
        shape = (1, side, side, width)
        block = Block(heads, int(width * config.hidden_ratio), config.epsilon)
        for i in range(depth):
            shifted = np.bool_(i % 2 and side > WINDOW)  # one window is all there is to attend to
            parts.append(_Part(f'audio_branch.layers.{stage}.blocks.{i}.', block, shape, (shifted,)))
        if stage + 1 < len(config.depths):
            parts.append(_Part(f'audio_branch.layers.{stage}.downsample.', Merge(), shape))
    parts.append(_Part('audio_branch.', Pool(), shape))
    parts.append(_Part('audio_projection.', ProjectionHead(config.embedding_size), (1, width)))
    return parts


def tensor_shapes(config: HtsatConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the tower uses, as LAION's files name them (query, key, value apart)."""
    return {f'{part.prefix}{name}': shape for part in _parts(config) for name, shape in part.parameters().items()}


class AudioTower:
    """Ten seconds of sound to an embedding of length 1."""

    def __init__(self, config: HtsatConfig, tensors: Mapping[str, np.ndarray]):
        self._parts = [(part, load_parameters(tensors, part.prefix, part.parameters())) for part in _parts(config)]

    def __call__(self, waveforms: np.ndarray) -> np.ndarray:
        """float32 [B, T] at 48 kHz, T = `WINDOW_SAMPLES` -> float32 [B, E]. Compiled for each B."""
        x = jax.device_put(waveforms)
        for part, weights in self._parts:
            x = apply(part.module, weights, x, *jax.device_put(part.inputs))
        return jax.device_get(x)
