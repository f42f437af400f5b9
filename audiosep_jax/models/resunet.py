"""ResUNet30 with FiLM: a magnitude spectrogram and a query embedding in, a complex mask out (flax.linen).

The network of AudioSep (arXiv 2308.05037, section III; `models/resunet.py` of the original): six encoder blocks, a
bottleneck, six decoder blocks with skip connections. Every batch norm is followed by a shift that a linear layer makes
of the embedding (FiLM without the scale). Parity with the original is tested in tests/test_parity.py.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from audiosep_jax.models.convolution import average_pool, conv1x1, conv3x3, matmul, upsample

TIME_DOWNSAMPLING = 32  # N is padded to a multiple of this
FREQUENCY_DOWNSAMPLING = 64  # F - 1 has to be a multiple of this
DOWNSAMPLING = ((2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (1, 2))  # (frames, bins), of each encoder block
NORM_EPSILON = 1e-5
_NORM_MOMENTUM = 0.99  # torch's 0.01
LEAKY_SLOPE = 0.01
_CONVOLVED = 'convolved'  # what the backward pass keeps under remat 'norms': the outputs of convolutions
_MASK_FLOOR = 1e-20  # of the squared magnitude of (tanh real, tanh imaginary): torchlibrosa's 1e-10 on the magnitude


def film_layout(widths: tuple[int, ...]) -> dict[str, int]:
    """The batch norms that FiLM shifts, in the order of its fused output: 'block/norm' -> channels."""
    layout = {}
    into = widths[0]
    for i, out in enumerate(widths, 1):
        layout |= {f'encoder_block{i}/norm1': into, f'encoder_block{i}/norm2': out}
        into = out
    layout |= {'bottleneck/norm1': into, 'bottleneck/norm2': into}
    for i, out in enumerate(reversed(widths), 1):
        layout |= {
            f'decoder_block{i}/norm_up': into,
            f'decoder_block{i}/norm1': 2 * out,
            f'decoder_block{i}/norm2': out,
        }
        into = out
    return layout


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, as PyTorch's: the running variance is the unbiased one.

    The batch statistics are those of the whole (global) batch. [..., C] of any float type -> float32 [..., C]; XLA
    fuses that with what follows it, so a caller that ends in bfloat16 moves no float32 through memory.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,))
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,))
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axes)
            # Two passes: E[x²] − E[x]² loses digits where the mean is large, as it is for spectrogram bins.
            var = jnp.mean(jnp.square(x - mean), axes)
            if not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = _NORM_MOMENTUM * running_mean.value + (1 - _NORM_MOMENTUM) * mean
                running_var.value = _NORM_MOMENTUM * running_var.value + (1 - _NORM_MOMENTUM) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        # Centred before it is scaled: as x * a + (bias - mean * a) the gradients of scale and mean are differences of
        # large sums, and ten training steps drift 5 % from the original's instead of 1 %.
        return (x - mean) * (scale * jax.lax.rsqrt(var + NORM_EPSILON)) + bias


class NormShiftActivate(nn.Module):
    """leaky_relu(batch_norm(x) + shift): [B, N, F, C] and a shift [B, C] -> [B, N, F, C] in `dtype`."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array, *, train: bool) -> jax.Array:
        x = BatchNorm(name='norm')(x, train=train) + shift[:, None, None, :]
        return nn.leaky_relu(x, LEAKY_SLOPE).astype(self.dtype)


class ConvBlock(nn.Module):
    """Two 3×3 convolutions, each after norm, shift and activation, around a shortcut: [B, N, F, C] -> [B, N, F, C']."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, shifts: dict[str, jax.Array], *, train: bool) -> jax.Array:
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
    """A ConvBlock and its average-pooled copy: [B, N, F, C] -> ([B, N / s, F / t, C'], [B, N, F, C'])."""

    features: int
    downsampling: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, shifts: dict[str, jax.Array], train: bool) -> tuple[jax.Array, jax.Array]:
        x = ConvBlock(self.features, self.dtype, name='conv_block')(x, shifts, train=train)
        return average_pool(x, self.downsampling), x


class DecoderBlock(nn.Module):
    """Upsamples, appends the encoder's output of that level and applies a ConvBlock.

    [B, N, F, C] and a skip connection [B, N * s, F * t, C'] -> [B, N * s, F * t, C'].
    """

    features: int
    upsampling: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, shifts: dict[str, jax.Array], train: bool) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=3)
        kernel = self.param('upsample', init, (x.shape[-1], *self.upsampling, self.features)).astype(self.dtype)
        x = upsample(NormShiftActivate(self.dtype, name='norm_up')(x, shifts['norm_up'], train=train), kernel)
        x = checkpoint_name(x, _CONVOLVED)
        x = jnp.concatenate([x, skip], axis=-1)
        return ConvBlock(self.features, self.dtype, name='conv_block')(x, shifts, train=train)


class FiLM(nn.Module):
    """All the shifts of a query by one matrix product: [B, E] -> {block: {norm: [B, C]}}, float32.

    The columns of the fused kernel follow `film_layout`; each norm's share is initialised like a layer of its own.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, embedding: jax.Array) -> dict[str, dict[str, jax.Array]]:
        layout = film_layout(self.widths)
        sizes = list(layout.values())

        def init(key, shape):
            limit = np.repeat([np.sqrt(6 / (shape[0] + size)) for size in sizes], sizes).astype(np.float32)
            return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) * limit

        embedding = embedding.astype(jnp.float32)
        kernel = self.param('kernel', init, (embedding.shape[-1], sum(sizes)))
        bias = self.param('bias', nn.initializers.zeros, (sum(sizes),))
        fused = jnp.split(matmul(embedding, kernel) + bias, np.cumsum(sizes)[:-1], axis=-1)
        shifts: dict[str, dict[str, jax.Array]] = {}
        for name, shift in zip(layout, fused, strict=True):
            block, norm = name.split('/')
            shifts.setdefault(block, {})[norm] = shift
        return shifts


class ResUNet30(nn.Module):
    """Magnitudes [B, N, F] and embeddings [B, E] -> a complex64 mask [B, N, F] of magnitude at most 1.

    Attributes:
        widths: channels of the six encoder blocks.
        dtype: of the activations and of the kernels as used; parameters, statistics and masks are float32.
        remat: `none`, `norms` or `blocks`, see `ModelConfig`.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 384, 384)
    dtype: jnp.dtype = jnp.float32
    remat: Literal['none', 'norms', 'blocks'] = 'none'

    @nn.compact
    def __call__(
        self,
        magnitude: jax.Array,
        embedding: jax.Array,
        frame_count: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        """The mask that turns the mixture's spectrum into the target's, by one complex multiplication.

        Args:
            magnitude: float32 [B, N, F], F - 1 a multiple of 64, any N.
            embedding: [B, E].
            frame_count: int [B], the frames of each row that are real; the others count as the zero padding that
                the network gives any N. The mask is zero there.
            train: normalise with the statistics of the batch, and update the running ones.

        Raises:
            ValueError: F - 1 is not a multiple of 64.
        """
        _, n, f = magnitude.shape
        if (f - 1) % FREQUENCY_DOWNSAMPLING:
            raise ValueError(f'{f} bins: one less must be a multiple of {FREQUENCY_DOWNSAMPLING}')
        encoder_block, decoder_block = EncoderBlock, DecoderBlock
        if self.remat != 'none':
            policy = jax.checkpoint_policies.save_only_these_names(_CONVOLVED) if self.remat == 'norms' else None
            # `train` is static; the count of arguments includes self.
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
        # The top bin, dropped on the way in, stays silent. It is padded on the mask and not on the maps: the angle of
        # a zero has no gradient.
        return jnp.pad(mask, [(0, 0), (0, 0), (0, 1)])


class _Linear(nn.Module):
    """A 1×1 convolution with a bias: [..., C] -> [..., features]."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', nn.initializers.xavier_uniform(), (x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        return conv1x1(x, kernel.astype(self.dtype), bias.astype(self.dtype))


def complex_mask(maps: jax.Array) -> jax.Array:
    """Maps [..., 3] -> sigmoid(magnitude) at the angle of (tanh(real), tanh(imaginary)), complex64 [...]."""
    magnitude = nn.sigmoid(maps[..., 0])
    real, imag = jnp.tanh(maps[..., 1]), jnp.tanh(maps[..., 2])
    gain = magnitude * jax.lax.rsqrt(jnp.maximum(real**2 + imag**2, _MASK_FLOOR))
    return jax.lax.complex(gain * real, gain * imag)
