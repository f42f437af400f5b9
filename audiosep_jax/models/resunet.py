"""ResUNet30 with FiLM: turns a magnitude spectrogram and a query embedding into a complex mask (flax.linen).

This is the network of AudioSep (arXiv 2308.05037, section III; `models/resunet.py` of the original): six encoder
blocks, a bottleneck, and six decoder blocks with skip connections. Every batch norm is followed by a shift that a
linear layer computes from the embedding (FiLM without the scale). tests/models/test_parity.py compares it with the
original; layers.py lists the same layers.

Letters: B clips, N frames, F frequency bins, C and D channels, E embedding size.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Complex64, Float, Float32, Int

from audiosep_jax.models.activated_conv import activated_conv3x3
from audiosep_jax.models.convolution import average_pool, conv1x1, conv3x3, joined, matmul, product, upsample
from audiosep_jax.models.layers import DOWNSAMPLING, FREQUENCY_DOWNSAMPLING, TIME_DOWNSAMPLING, film_layout
from audiosep_jax.models.normalization import NORM_EPSILON, batch_norm_shift_activate, normalize_shift_activate
from audiosep_jax.models.packing import pack_conv1x1, pack_conv3x3, packing_at, packings_of, repack, tile

_NORM_MOMENTUM = 0.99  # PyTorch calls it 0.01
_CONVOLVED = 'convolved'  # names the outputs of convolutions, which the backward pass keeps under remat 'norms'
# What ConvBlock.keep says of blocks at the full resolution, which hold half of all activations: of the first block even
# the input, which is one multiplication of each bin; of the last one not what the backward pass begins with.
_KEPT, _KEPT_OF_FIRST, _KEPT_OF_LAST = (True, True, True), (False, False, False), (True, False, True)
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
                _move_statistics(running_mean, running_var, mean, var, x.size // channels)
        else:
            mean, var = running_mean.value, running_var.value
        # x is centered before it is scaled: in x * a + (bias - mean * a) the gradients of scale and mean would be
        # differences of large sums, and ten training steps would drift 5 % from the original's instead of 1 %.
        return (x - mean) * (scale * jax.lax.rsqrt(var + NORM_EPSILON)) + bias


def _move_statistics(
    running_mean: nn.Variable, running_var: nn.Variable, mean: Float[Array, ' C'], var: Float[Array, ' C'], count: int
) -> None:
    """Moves running statistics towards mean and biased variance of a batch with `count` numbers a channel."""
    unbiased = var * (count / max(count - 1, 1))
    running_mean.value = _NORM_MOMENTUM * running_mean.value + (1 - _NORM_MOMENTUM) * mean
    running_var.value = _NORM_MOMENTUM * running_var.value + (1 - _NORM_MOMENTUM) * unbiased


class _Norm(nn.Module):
    """Holds the parameters and running statistics of a batch norm of C channels."""

    channels: int

    def setup(self) -> None:
        self.scale = self.param('scale', nn.initializers.ones, (self.channels,))
        self.bias = self.param('bias', nn.initializers.zeros, (self.channels,))
        self.mean = self.variable('batch_stats', 'mean', jnp.zeros, (self.channels,))
        self.var = self.variable('batch_stats', 'var', jnp.ones, (self.channels,))

    def update(self, mean: Float[Array, ' C'], var: Float[Array, ' C'], count: int) -> None:
        """Moves the running statistics towards those of a batch with `count` numbers a channel."""
        if not self.is_initializing():
            _move_statistics(self.mean, self.var, mean, var, count)


class NormShiftActivate(nn.Module):
    """leaky_relu(batch_norm(x) + shift), in `dtype`, and the 3×3 convolution of it if there are kernels.

    The channels may come in several arrays, because no channel's statistics depend on the others: joining the arrays
    first would be a copy. The convolution's result is one array.

    Attributes:
        channels: of each array; their sum is C.
        dtype: of the outputs.
        keep_inputs: whether the inputs are kept for the backward pass, or computed again from what they are made of.
        keep_activations: whether the results before a convolution are kept, or computed again from the inputs.
    """

    channels: tuple[int, ...]
    dtype: DTypeLike
    keep_inputs: bool = True
    keep_activations: bool = True

    def setup(self) -> None:
        self.norm = _Norm(sum(self.channels))

    def __call__(
        self,
        arrays: Sequence[Float[Array, 'B N G _']],
        shift: Float[Array, 'B C'],
        kernels: Sequence[Float[Array, '3 3 _ D']] = (),
        *,
        train: bool,
    ) -> Float[Array, 'B N _ _']:
        norm, dtype, ends = self.norm, self.dtype, np.cumsum(self.channels)[:-1]
        of_all = norm.scale, norm.bias, shift, norm.mean.value, norm.var.value
        of_each = [*zip(arrays, *(jnp.split(vector, ends, axis=-1) for vector in of_all), strict=True)]
        if not train:
            y = joined([normalize_shift_activate(*each, dtype=dtype) for each in of_each], -1)
            if not kernels:
                return y
            kernel = joined(kernels, 2)
            return conv3x3(repack(y, kernel.shape[2]), kernel)
        inputs = [each[:-1] for each in of_each]
        if kernels:
            keep = self.keep_inputs, self.keep_activations
            y, means, variances = activated_conv3x3(inputs, list(kernels), dtype, *keep)
        else:
            y, mean, var = batch_norm_shift_activate(*inputs[0], dtype)
            means, variances = [mean], [var]
        norm.update(joined(means, 0), joined(variances, 0), arrays[0].size // self.channels[0])
        return y


class ConvBlock(nn.Module):
    """Two 3×3 convolutions, each after norm, shift and activation, and a shortcut around both.

    Attributes:
        inputs: channels of each of its inputs, which stand for one array that has all of them.
        features: channels of its output.
        packing: of its inputs and its output.
        dtype: of the activations.
        keep: of (its inputs, the activations before the first convolution, those before the second one), whether the
            backward pass finds them in memory or computes them again.
    """

    inputs: tuple[int, ...]
    features: int
    packing: int
    dtype: DTypeLike
    keep: tuple[bool, bool, bool] = (True, True, True)

    @nn.compact
    def __call__(
        self,
        inputs: Sequence[Float[Array, 'B N G _']],
        shifts: dict[str, Float[Array, 'B _']],
        then: 'Linear | None' = None,
        then_packing: int = 1,
        *,
        train: bool,
    ) -> Float[Array, 'B N _ _']:
        """Computes the block, and the 1×1 convolution `then` if one follows it, whose results have their own packing.

        The last operations of the block are linear, so what follows is a matter of other kernels for them.
        """
        init, into = nn.initializers.xavier_uniform(), sum(self.inputs)
        kernel1 = self.param('conv1', init, (3, 3, into, self.features))
        kernel2 = self.param('conv2', init, (3, 3, self.features, self.features))
        packing = self.packing
        if then is not None:
            kernel2, packing = matmul(kernel2, then.kernel), then_packing
        keep_inputs, *keep_activations = self.keep
        norm1 = NormShiftActivate(self.inputs, self.dtype, keep_inputs, keep_activations[0], name='norm1')
        norm2 = NormShiftActivate((self.features,), self.dtype, True, keep_activations[1], name='norm2')
        kernels1 = [pack_conv3x3(kernel, self.packing).astype(self.dtype) for kernel in self._of_inputs(kernel1)]
        y = checkpoint_name(norm1(inputs, shifts['norm1'], kernels1, train=train), _CONVOLVED)

        def in_order(of_outputs: Array) -> Array:
            return (of_outputs if then is None else maps_first(of_outputs, packing)).astype(self.dtype)

        y = norm2([y], shifts['norm2'], [in_order(pack_conv3x3(kernel2, packing))], train=train)
        if into == self.features:
            return checkpoint_name(inputs[0] + y, _CONVOLVED)
        shortcut = _Linear(into, self.features, name='shortcut')()
        if then is not None:
            shortcut = Linear(matmul(shortcut.kernel, then.kernel), matmul(shortcut.bias, then.kernel) + then.bias)
        for x, kernel in zip(inputs, self._of_inputs(shortcut.kernel), strict=True):
            kernel = in_order(pack_conv1x1(kernel, packing))
            y = y + product(repack(x, kernel.shape[0]), kernel)
        return checkpoint_name(y + in_order(tile(shortcut.bias, packing)), _CONVOLVED)

    def _of_inputs(self, kernel: Float[Array, '... C D']) -> list[Array]:
        return jnp.split(kernel, np.cumsum(self.inputs)[:-1], axis=-2)


class EncoderBlock(nn.Module):
    """A ConvBlock. Returns its output average-pooled, and as it is for the skip connection."""

    inputs: int
    features: int
    packing: int
    downsampling: tuple[int, int]
    dtype: DTypeLike
    keep: tuple[bool, bool, bool] = (True, True, True)

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B N G C'], shifts: dict[str, Float[Array, 'B _']], train: bool
    ) -> tuple[Float[Array, 'B N_down G_down C_down'], Float[Array, 'B N G D']]:
        block = ConvBlock((self.inputs,), self.features, self.packing, self.dtype, self.keep, name='conv_block')
        x = block([x], shifts, train=train)
        return average_pool(x, self.downsampling, self.packing), x


class DecoderBlock(nn.Module):
    """Upsamples, and applies a ConvBlock to that and the encoder's output of that level."""

    inputs: int
    features: int
    packing: tuple[int, int]
    upsampling: tuple[int, int]
    dtype: DTypeLike
    keep: tuple[bool, bool, bool] = (True, True, True)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, 'B N G C'],
        skip: Float[Array, 'B N_up G_up D'],
        shifts: dict[str, Float[Array, 'B _']],
        train: bool,
        then: 'Linear | None',
        then_packing: int,
    ) -> Float[Array, 'B N_up _ _']:
        init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform', in_axis=0, out_axis=3)
        kernel = self.param('upsample', init, (self.inputs, *self.upsampling, self.features))
        x = NormShiftActivate((self.inputs,), self.dtype, name='norm_up')([x], shifts['norm_up'], train=train)
        x = checkpoint_name(upsample(x, kernel, self.packing), _CONVOLVED)
        widths = self.features, self.features
        block = ConvBlock(widths, self.features, self.packing[1], self.dtype, self.keep, name='conv_block')
        return block([x, skip], shifts, then, then_packing, train=train)


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
        widths: channels of the encoder blocks; the article's network has six.
        dtype: type of the activations and of the kernels when they are applied. Parameters, statistics and masks are
            float32.
        remat: `none`, `norms` or `blocks`; see `ModelConfig`.
        lanes: how many channels the hardware computes at once; arrays with fewer are packed (packing.py). It changes
            how the network is computed, and nothing else. 1: nothing is packed.
        devices: over how many the clips are split. Arrays are packed by how many clips each has.
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 384, 384)
    dtype: DTypeLike = jnp.float32
    remat: Literal['none', 'norms', 'blocks'] = 'none'
    lanes: int = 1
    devices: int = 1

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
        packings = packings_of(self.lanes, self.widths[0], f - 1, x.shape[0] // self.devices)
        x = _spread(x, _Linear(1, self.widths[0], name='pre_conv')(), packings.bins, self.dtype)
        x = repack(x, packings.first * self.widths[0])

        skips, channels, of_blocks = [], self.widths[0], DOWNSAMPLING[: len(self.widths)]
        of_levels = _packings_of_levels(packings.first, of_blocks)
        for i, (width, downsampling) in enumerate(zip(self.widths, of_blocks, strict=True), 1):
            name = f'encoder_block{i}'
            keep = _KEPT if i > 1 else _KEPT_OF_FIRST
            encoder = encoder_block(channels, width, of_levels[i - 1], downsampling, self.dtype, keep, name=name)
            x, skip = encoder(x, shifts[name], train)
            skips.append(skip)
            channels = width
        bottleneck = ConvBlock((channels,), channels, of_levels[-1], self.dtype, name='bottleneck')
        x = bottleneck([x], shifts['bottleneck'], train=train)
        mirrored = zip(reversed(self.widths), reversed(of_blocks), reversed(skips), strict=True)
        for i, (width, upsampling, skip) in enumerate(mirrored, 1):
            name = f'decoder_block{i}'
            packing = of_levels[-i], of_levels[-i - 1]
            keep = _KEPT if i < len(self.widths) else _KEPT_OF_LAST
            decoder = decoder_block(channels, width, packing, upsampling, self.dtype, keep, name=name)
            then = _Linear(width, 3, name='after_conv')() if i == len(self.widths) else None
            x = decoder(x, skip, shifts[name], train, then, packings.maps)
            channels = width

        mask = complex_mask(unpacked_maps(x.astype(jnp.float32)[:, :n]))
        if valid is not None:
            mask = jnp.where(valid, mask, 0)
        # The network does not see the top bin; its mask is zero. The mask is padded instead of the maps, because the
        # angle of a zero has no gradient.
        return jnp.pad(mask, [(0, 0), (0, 0), (0, 1)])


def _packings_of_levels(first: int, downsampling: Sequence[tuple[int, int]]) -> list[int]:
    packings = [first]
    for _, bins_pooled in downsampling:
        packings.append(packing_at(packings[-1], bins_pooled))
    return packings


class Linear(NamedTuple):
    """A 1×1 convolution with a bias."""

    kernel: Float[Array, 'C D']
    bias: Float[Array, ' D']

    def packed(self, packing: int, dtype: DTypeLike) -> 'Linear':
        """Returns the same for packed arrays, in `dtype`."""
        kernel, bias = pack_conv1x1(self.kernel, packing), tile(self.bias, packing)
        return Linear(kernel.astype(dtype), bias.astype(dtype))

    def __call__(self, x: Float[Array, '... C']) -> Float[Array, '... D']:
        return conv1x1(x, self.kernel, self.bias)


class _Linear(nn.Module):
    """Holds the parameters of a `Linear`."""

    inputs: int
    features: int

    @nn.compact
    def __call__(self) -> Linear:
        kernel = self.param('kernel', nn.initializers.xavier_uniform(), (self.inputs, self.features))
        return Linear(kernel, self.param('bias', nn.initializers.zeros, (self.features,)))


def maps_first(x: Float[Array, '*shape D'], packing: int) -> Float[Array, '*shape D']:
    """Orders packed channels by map, and then by bin, so that the bins of a map are side by side."""
    return x.reshape(*x.shape[:-1], packing, -1).swapaxes(-1, -2).reshape(x.shape)


def unpacked_maps(x: Float[Array, 'B N G _']) -> Float[Array, 'B N F 3']:
    """Turns three packed maps in the order of `maps_first` into others."""
    b, n, groups, width = x.shape
    return jnp.moveaxis(x.reshape(b, n, groups, 3, width // 3), 3, -1).reshape(b, n, -1, 3)


def _spread(x: Float[Array, 'B N F'], layer: Linear, packing: int, dtype: DTypeLike) -> Float[Array, 'B N G pC']:
    """Applies the 1×1 convolution of one channel to bins side by side, which gives packed channels."""
    b, n, f = x.shape
    if packing == 1:
        # One multiplication for each result, which XLA does again where it is needed rather than keep the results.
        return (x[..., None] * layer.kernel[0] + layer.bias).astype(dtype)
    # A product moves each bin to lanes of its own.
    return layer.packed(packing, dtype)(x.astype(dtype).reshape(b, n, f // packing, packing))


def complex_mask(maps: Float32[Array, '*shape 3']) -> Complex64[Array, '*shape']:
    """Computes sigmoid(magnitude) at the angle of (tanh(real), tanh(imaginary)) from maps of the three."""
    magnitude = nn.sigmoid(maps[..., 0])
    real, imag = jnp.tanh(maps[..., 1]), jnp.tanh(maps[..., 2])
    gain = magnitude * jax.lax.rsqrt(jnp.maximum(real**2 + imag**2, _MASK_FLOOR))
    return jax.lax.complex(gain * real, gain * imag)
