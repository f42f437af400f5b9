"""ResUNet30 with FiLM: turns a magnitude spectrogram and a query embedding into a complex mask (flax.linen).

This is the network of AudioSep (arXiv 2308.05037, section III; `models/resunet.py` of the original): six encoder
blocks, a bottleneck, and six decoder blocks with skip connections. Every batch norm is followed by a shift that a
linear layer computes from the embedding (FiLM without the scale). tests/models/test_parity.py compares it with the
original; layers.py lists the same layers.

Letters: B clips, N frames, F frequency bins, C and D channels, E embedding size.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Complex64, Float, Float32, Int

from audiosep_jax.models.convolution import average_pool, conv1x1, conv3x3, matmul, upsample
from audiosep_jax.models.layers import DOWNSAMPLING, FREQUENCY_DOWNSAMPLING, TIME_DOWNSAMPLING, film_layout

NORM_EPSILON = 1e-5
_NORM_MOMENTUM = 0.99  # PyTorch calls it 0.01
LEAKY_SLOPE = 0.01
_CONVOLVED = 'convolved'  # names the outputs of convolutions, which the backward pass keeps under remat 'norms'
# The least squared magnitude of (tanh real, tanh imaginary). torchlibrosa's floor on the magnitude is 1e-10.
_MASK_FLOOR = 1e-20


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last. As in PyTorch, the running variance is the unbiased one.

    The batch statistics are those of the whole (global) batch. The output is float32; XLA fuses it with what follows,
    so that no float32 moves through memory if the caller converts it to bfloat16.
    """

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, '... C'], *, train: bool) -> Float32[Array, '... C']:
        """Normalizes with the statistics of the batch, and updates the running ones, if `train` is set."""
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,))
        x = jnp.asarray(x, jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axes)
            # In two passes, because E[x²] − E[x]² loses digits where the mean is large, as it is for spectrogram bins.
            var = jnp.mean(jnp.square(x - mean), axes)
            if not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = _NORM_MOMENTUM * running_mean.value + (1 - _NORM_MOMENTUM) * mean
                running_var.value = _NORM_MOMENTUM * running_var.value + (1 - _NORM_MOMENTUM) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        # x is centered before it is scaled: in x * a + (bias - mean * a) the gradients of scale and mean would be
        # differences of large sums, and ten training steps would drift 5 % from the original's instead of 1 %.
        return (x - mean) * (scale * jax.lax.rsqrt(var + NORM_EPSILON)) + bias


class NormShiftActivate(nn.Module):
    """leaky_relu(batch_norm(x) + shift), in `dtype`."""

    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B N F C'], shift: Float[Array, 'B C'], *, train: bool
    ) -> Float[Array, 'B N F C']:
        x = BatchNorm(name='norm')(x, train=train) + shift[:, None, None, :]
        return nn.leaky_relu(x, LEAKY_SLOPE).astype(self.dtype)


class ConvBlock(nn.Module):
    """Two 3×3 convolutions, each after norm, shift and activation, and a shortcut around both."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B N F C'], shifts: dict[str, Float[Array, 'B _']], *, train: bool
    ) -> Float[Array, 'B N F {self.features}']:
        init = nn.initializers.xavier_uniform()
        into = x.shape[-1]
        kernel1 = self.param('conv1', init, (3, 3, into, self.features)).astype(self.dtype)
        kernel2 = self.param('conv2', init, (3, 3, self.features, self.features)).astype(self.dtype)
        y = conv3x3(NormShiftActivate(self.dtype, name='norm1')(x, shifts['norm1'], train=train), kernel1)
        y = checkpoint_name(y, _CONVOLVED)
        y = conv3x3(NormShiftActivate(self.dtype, name='norm2')(y, shifts['norm2'], train=train), kernel2)
        if into != self.features:
            x = _Linear(self.features, self.dtype, name='shortcut')(x)
        return checkpoint_name(x + y, _CONVOLVED)


class EncoderBlock(nn.Module):
    """A ConvBlock. Returns its output average-pooled, and as it is for the skip connection."""

    features: int
    downsampling: tuple[int, int]
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B N F C'], shifts: dict[str, Float[Array, 'B _']], train: bool
    ) -> tuple[Float[Array, 'B N_down F_down D'], Float[Array, 'B N F D']]:
        x = ConvBlock(self.features, self.dtype, name='conv_block')(x, shifts, train=train)
        return average_pool(x, self.downsampling), x


class DecoderBlock(nn.Module):
    """Upsamples, appends the encoder's output of that level and applies a ConvBlock."""

    features: int
    upsampling: tuple[int, int]
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'B N F C'],
        skip: Float[Array, 'B N_up F_up D'],
        shifts: dict[str, Float[Array, 'B _']],
        train: bool,
    ) -> Float[Array, 'B N_up F_up D']:
        init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=3)
        kernel = self.param('upsample', init, (x.shape[-1], *self.upsampling, self.features)).astype(self.dtype)
        x = upsample(NormShiftActivate(self.dtype, name='norm_up')(x, shifts['norm_up'], train=train), kernel)
        x = checkpoint_name(x, _CONVOLVED)
        x = jnp.concatenate([x, skip], axis=-1)
        return ConvBlock(self.features, self.dtype, name='conv_block')(x, shifts, train=train)


class FiLM(nn.Module):
    """Computes all the shifts of a query by one matrix product in float32: block -> norm -> [B, C].

    The columns of the fused kernel follow `film_layout`; each norm's share is initialized like a separate layer.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, embedding: Float[Array | np.ndarray, 'B E']) -> dict[str, dict[str, Float32[Array, 'B _']]]:
        layout = film_layout(self.widths)
        sizes = list(layout.values())

        def init(key: Array, shape: tuple[int, int]) -> Array:
            limit = np.repeat([np.sqrt(6 / (shape[0] + size)) for size in sizes], sizes).astype(np.float32)
            return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * limit

        embedding = embedding.astype(jnp.float32)
        kernel = self.param('kernel', init, (embedding.shape[-1], sum(sizes)))
        bias = self.param('bias', nn.initializers.zeros, (sum(sizes),))
        fused = jnp.split(matmul(embedding, kernel) + bias, np.cumsum(sizes)[:-1], axis=-1)
        shifts: dict[str, dict[str, Array]] = {}
        for name, shift in zip(layout, fused, strict=True):
            block, norm = name.split('/')
            shifts.setdefault(block, {})[norm] = shift
        return shifts


class ResUNet30(nn.Module):
    """Computes a complex mask of magnitude at most 1 from magnitudes and query embeddings.

    Attributes:
        widths: channels of the six encoder blocks.
        dtype: type of the activations and of the kernels when they are applied. Parameters, statistics and masks are
            float32.
        remat: `none`, `norms` or `blocks`; see `ModelConfig`.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 384, 384)
    dtype: DTypeLike = jnp.float32
    remat: Literal['none', 'norms', 'blocks'] = 'none'

    @nn.compact
    def __call__(
        self,
        magnitude: Float[Array | np.ndarray, 'B N F'],
        embedding: Float[Array | np.ndarray, 'B E'],
        frame_count: Int[Array | np.ndarray, ' B'] | None = None,
        *,
        train: bool = False,
    ) -> Complex64[Array, 'B N F']:
        """Computes the mask that turns the mixture's spectrum into the target's by one complex multiplication.

        Args:
            magnitude: of the mixture's spectrum. N is arbitrary, F - 1 a multiple of 64.
            embedding: of the queries.
            frame_count: how many leading frames of each clip are real. The others are treated like the zeros to which
                the network pads any N, and their mask is zero. None: all are real.
            train: normalize with the statistics of the batch, and update the running ones.

        Raises:
            ValueError: F - 1 is not a multiple of 64.
        """
        _, n, f = magnitude.shape
        if (f - 1) % FREQUENCY_DOWNSAMPLING:
            raise ValueError(f'{f} bins: one less must be a multiple of {FREQUENCY_DOWNSAMPLING}')
        encoder_block, decoder_block = EncoderBlock, DecoderBlock
        if self.remat != 'none':
            policy = jax.checkpoint_policies.save_only_these_names(_CONVOLVED) if self.remat == 'norms' else None
            # `train` is static; argument numbers count self.
            encoder_block = nn.remat(EncoderBlock, static_argnums=3, policy=policy)
            decoder_block = nn.remat(DecoderBlock, static_argnums=4, policy=policy)
        shifts = FiLM(self.widths, name='film')(embedding)

        x = BatchNorm(name='norm0')(magnitude, train=train)
        valid = None
        if frame_count is not None:
            valid = (jnp.arange(n) < frame_count[:, None])[..., None]
            x = jnp.where(valid, x, 0)
        x = jnp.pad(x[..., : f - 1], [(0, 0), (0, -n % TIME_DOWNSAMPLING), (0, 0)])
        x = _Linear(self.widths[0], self.dtype, name='pre_conv')(x[..., None].astype(self.dtype))

        skips = []
        for i, (width, downsampling) in enumerate(zip(self.widths, DOWNSAMPLING, strict=True), 1):
            name = f'encoder_block{i}'
            x, skip = encoder_block(width, downsampling, self.dtype, name=name)(x, shifts[name], train)
            skips.append(skip)
        x = ConvBlock(self.widths[-1], self.dtype, name='bottleneck')(x, shifts['bottleneck'], train=train)
        mirrored = zip(reversed(self.widths), reversed(DOWNSAMPLING), reversed(skips), strict=True)
        for i, (width, upsampling, skip) in enumerate(mirrored, 1):
            name = f'decoder_block{i}'
            x = decoder_block(width, upsampling, self.dtype, name=name)(x, skip, shifts[name], train)

        maps = _Linear(3, self.dtype, name='after_conv')(x).astype(jnp.float32)[:, :n]
        mask = complex_mask(maps)
        if valid is not None:
            mask = jnp.where(valid, mask, 0)
        # The network does not see the top bin; its mask is zero. The mask is padded instead of the maps, because the
        # angle of a zero has no gradient.
        return jnp.pad(mask, [(0, 0), (0, 0), (0, 1)])


class _Linear(nn.Module):
    """A 1×1 convolution with a bias."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, '... C']) -> Float[Array, '... {self.features}']:
        kernel = self.param('kernel', nn.initializers.xavier_uniform(), (x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return conv1x1(x, kernel.astype(self.dtype), bias.astype(self.dtype))


def complex_mask(maps: Float32[Array, '*shape 3']) -> Complex64[Array, '*shape']:
    """Computes sigmoid(magnitude) at the angle of (tanh(real), tanh(imaginary)) from maps of the three."""
    magnitude = nn.sigmoid(maps[..., 0])
    real, imag = jnp.tanh(maps[..., 1]), jnp.tanh(maps[..., 2])
    gain = magnitude * jax.lax.rsqrt(jnp.maximum(real**2 + imag**2, _MASK_FLOOR))
    return jax.lax.complex(gain * real, gain * imag)
