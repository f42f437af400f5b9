"""Batch norm, the shift by the query and the activation as one operation, whose gradient keeps nothing but its input.

Letters: B clips, C channels, p packing (see packing.py). An array is [B, …, p·C].
"""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from audiosep_jax.models.packing import tile, untile_sum

NormInputs = tuple[Array, Array, Array, Array, Array]  # x, scale, bias, shift and center
Saved = tuple[Array, Array, Array, Array, Array]  # see norm_gradients
T = TypeVar('T')

NORM_EPSILON = 1e-5
LEAKY_SLOPE = 0.01


def normalize_shift_activate(
    x: Float[Array, 'B *positions pC'],
    scale: Float[Array, ' C'],
    bias: Float[Array, ' C'],
    shift: Float[Array, 'B C'],
    mean: Float[Array, ' C'],
    var: Float[Array, ' C'],
    *,
    dtype: DTypeLike,
) -> Float[Array, 'B *positions pC']:
    """leaky_relu((x - mean) / sqrt(var + epsilon) * scale + bias + shift), in `dtype`, with the given statistics."""
    return activated((x, scale, bias + shift, mean, lax.rsqrt(var + NORM_EPSILON)), dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def batch_norm_shift_activate(
    x: Float[Array, 'B *positions pC'],
    scale: Float[Array, ' C'],
    bias: Float[Array, ' C'],
    shift: Float[Array, 'B C'],
    center: Float[Array, ' C'],
    dtype: DTypeLike,
    keep_x: bool = True,
) -> tuple[Float[Array, 'B *positions pC'], Float[Array, ' C'], Float[Array, ' C']]:
    """Does the same with the statistics of the batch, and returns the mean and the (biased) variance as well.

    JAX's own gradient would keep the normalized input, the activation's sign and more; this one keeps x and computes
    the rest again, which is arithmetic on what it reads anyway.

    Args:
        x: any number of axes between clips and channels.
        scale: of the batch norm.
        bias: of the batch norm.
        shift: of the query.
        center: values near the means. Mean and variance are computed in one pass from x - center; without it the
            variance E[x²] - E[x]² would lose digits where the mean is large. The result does not depend on it.
        dtype: of the output.
        keep_x: whether x is kept for the gradient as it is. Otherwise XLA may compute it again.
    """
    return _forward(x, scale, bias, shift, center, dtype, keep_x)[0]


def with_statistics(inputs: NormInputs) -> tuple[Array, Array, Saved]:
    """Returns mean and variance of the batch, and what `activated` and `norm_gradients` need."""
    x, scale, bias, shift, center = inputs
    mean, var = batch_statistics(x, center)
    return mean, var, (x, scale, bias + shift, mean, lax.rsqrt(var + NORM_EPSILON))


def activated(saved: Saved, dtype: DTypeLike) -> Array:
    """Computes the output from what `norm_gradients` needs."""
    z = _before_activation(*saved)
    return jnp.where(z >= 0, z, LEAKY_SLOPE * z).astype(dtype)


def batch_statistics(
    x: Float[Array, 'B *positions pC'], center: Float[Array, ' C']
) -> tuple[Float[Array, ' C'], Float[Array, ' C']]:
    """Computes mean and biased variance of each channel in one pass; see `batch_norm_shift_activate`."""
    packing, count = _packing(x, center), x.size // center.size
    centered = x.astype(jnp.float32) - tile(center, packing)
    sums = _sums(centered, jnp.square(centered), tuple(range(x.ndim - 1)))
    offset, square = (untile_sum(each, packing) / count for each in sums)
    return center + offset, jnp.maximum(square - jnp.square(offset), 0)


def _sums(a: Array, b: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Adds up each of two arrays over the same axes, of which the last one is that before the channels."""

    def at_once(a: Array, b: Array) -> tuple[Array, Array]:
        # XLA for CPUs gives sums of products to a library, for which it writes the products to memory. One reduction of
        # both is a loop of its own, but a quick one only over one axis.
        def add(x: tuple[Array, Array], y: tuple[Array, Array]) -> tuple[Array, Array]:
            return x[0] + y[0], x[1] + y[1]

        zero = np.zeros((), a.dtype)
        a, b = lax.reduce((a, b), (zero, zero), add, axes[-1:])
        return a.sum(axes[:-1]), b.sum(axes[:-1])

    def separately(a: Array, b: Array) -> tuple[Array, Array]:
        return a.sum(axes), b.sum(axes)

    def bins_first(a: Array, b: Array) -> tuple[Array, Array]:
        # Where all sums are computed along with a strided convolution, libtpu 0.0.42 crashes on a v6e: its stack
        # overflows. On other TPUs, this takes 1 % more cycles for such an operation.
        a, b = lax.optimization_barrier((a.sum(axes[-1]), b.sum(axes[-1])))
        return a.sum(axes[:-1]), b.sum(axes[:-1])

    return lax.platform_dependent(a, b, cpu=at_once, tpu=bins_first, default=separately)


def _forward(x, scale, bias, shift, center, dtype, keep_x):
    mean, var, saved = with_statistics((x, scale, bias, shift, center))
    return (activated(saved, dtype), mean, var), saved


def _backward(dtype, keep_x, saved, gradients):
    # Statistics are for the running averages, which have no gradient.
    return (*norm_gradients(saved, gradients[0], keep_x), jnp.zeros_like(saved[3]))


batch_norm_shift_activate.defvjp(_forward, _backward)


def norm_gradients(saved: Saved, g: Array, keep_x: bool) -> tuple[Array, Array, Array, Array]:
    """Returns the gradients of x, scale, bias and shift from the output's.

    Args:
        saved: x; scale [C], bias + shift [B, C], mean [C] and 1 / sqrt(var + epsilon) [C].
        g: the gradient of the output.
        keep_x: see `batch_norm_shift_activate`.
    """
    x, channels = saved[0], saved[1].size
    packing, positions, count = x.shape[-1] // channels, tuple(range(1, x.ndim - 1)), x.size // channels

    def before_activation(saved: Saved) -> tuple[Array, Array]:
        """The gradient before the activation, and x - mean."""
        x, _, _, mean, _ = saved
        wide = g.astype(jnp.float32)
        wide = jnp.where(_before_activation(*saved) >= 0, wide, LEAKY_SLOPE * wide)
        return wide, x.astype(jnp.float32) - tile(mean, packing)

    # Without the barriers XLA would notice that it compares the same numbers with 0 as before, and store what it found
    # then, which is as large as x.
    again, _ = behind_barrier(saved, (), keep_x)
    before, centered = before_activation(again)
    # Sums of frames first, and both of the same axes: one pass computes both, at every size of the array.
    sums = lax.optimization_barrier(_sums(before, before * centered, positions[1:]))
    again, sums = behind_barrier(saved, sums, keep_x)
    _, scale, _, _, inverse = again
    dshift, products = (untile_sum(each.sum(1), packing) for each in sums)
    dbias, dscale = dshift.sum(0), products.sum(0) * inverse
    # x has a gradient by itself and through both statistics.
    before, centered = before_activation(again)
    before = before - tile(dbias / count, packing) - centered * tile(dscale * inverse / count, packing)
    dx = tile(scale * inverse, packing) * before
    return dx.astype(x.dtype), dscale, dbias, dshift


def behind_barrier(saved: Saved, others: T, keep_x: bool) -> tuple[Saved, T]:
    """Returns the same values. For XLA, what is computed from them is new, and needs all of them first.

    Args:
        saved: what `norm_gradients` takes.
        others: any arrays.
        keep_x: whether x is behind the barrier as well, and therefore kept as it is.
    """
    if keep_x:
        return lax.optimization_barrier((saved, others))
    x, *vectors = saved
    (scale, shift, mean, inverse), others = lax.optimization_barrier((vectors, others))
    return (x, scale, shift, mean, inverse), others


def _before_activation(x: Array, scale: Array, shift: Array, mean: Array, inverse: Array) -> Array:
    """(x - mean) * scale * inverse + shift in float32, with a shift [B, C] for each clip.

    x is centered before it is scaled: in x * a + (shift - mean * a) large numbers would cancel.
    """
    packing, scale = _packing(x, scale), scale * inverse
    shift = jnp.expand_dims(tile(shift, packing), tuple(range(1, x.ndim - 1)))
    return (x.astype(jnp.float32) - tile(mean, packing)) * tile(scale, packing) + shift


def _packing(x: Array, channels: Array) -> int:
    return x.shape[-1] // channels.size
