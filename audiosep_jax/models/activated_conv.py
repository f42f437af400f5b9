"""Batch norm, shift, activation and the 3×3 convolution of the result as one operation.

Its gradient can do without the activations, which are half of what the backward pass would keep: they are computed
again from the norm's input, which it needs anyway.

Letters: B clips, N frames, G groups of bins, C and D channels, p packing (packing.py).
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from audiosep_jax.models.barriers import barrier_except_on_tpus
from audiosep_jax.models.convolution import conv3x3_gradients, joined, native_conv3x3
from audiosep_jax.models.normalization import (
    NormInputs,
    Saved,
    activated,
    behind_barrier,
    norm_gradients,
    with_statistics,
)
from audiosep_jax.models.packing import repack


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def activated_conv3x3(
    norms: list[NormInputs], kernels: list[Array], dtype: DTypeLike, keep_inputs: bool, keep_activations: bool
) -> tuple[Array, list[Array], list[Array]]:
    """Normalizes, shifts and activates arrays, and convolves them as if they lay side by side in the channels.

    Forward it is one convolution of the joined arrays. The gradient of each array is a convolution by itself, because
    the rest of its gradient treats each array by itself as well.

    Args:
        norms: for each array the arguments of `normalization.batch_norm_shift_activate`: x [B, N, G, p·C], scale,
            bias, shift and center.
        kernels: [3, 3, p·C, p·D] for each array. If there is only one array, they may be packed otherwise.
        dtype: of the activations.
        keep_inputs: whether the arrays are kept for the gradient as they are. Otherwise XLA may compute them again.
        keep_activations: whether the activations are kept.

    Returns:
        The output [B, N, G, p·D], and mean and biased variance [C] of each array.
    """
    return _forward(norms, kernels, dtype, keep_inputs, keep_activations)[0]


def _forward(norms, kernels, dtype, keep_inputs, keep_activations):
    activations: list[Array] = []
    means: list[Array] = []
    variances: list[Array] = []
    saved: list[Saved] = []
    for norm, kernel in zip(norms, kernels, strict=True):
        if means:
            # One after the other: XLA for GPUs would pair the sums of different arrays, and read both arrays twice. For
            # TPUs it adds them up where the arrays are made.
            norm, _ = barrier_except_on_tpus((norm, means[-1]))
        mean, var, kept = with_statistics(norm)
        activations.append(_activated(kept, kernel, dtype))
        means.append(mean)
        variances.append(var)
        saved.append(kept)
    y = joined(activations, -1)
    outputs = native_conv3x3(y, joined(kernels, 2)), means, variances
    return outputs, (saved, kernels, y if keep_activations else None)


def _backward(dtype, keep_inputs, keep_activations, saved, gradients):
    norms, kernels, y = saved
    g = gradients[0]  # the statistics are for the running averages, which have no gradient
    if not keep_activations:
        # The barrier has them computed again, and not before their gradient is there.
        activations = []
        for norm, kernel in zip(norms, kernels, strict=True):
            again, g = behind_barrier(norm, g, keep_inputs)
            activations.append(_activated(again, kernel, dtype))
        y = joined(activations, -1)
    dys, dkernels = conv3x3_gradients(y, kernels, g)
    dnorms = []
    for norm, dy in zip(norms, dys, strict=True):
        gradients_ = norm_gradients(norm, _repacked(dy, norm[0].shape[-1]), keep_inputs)
        dnorms.append((*gradients_, jnp.zeros_like(norm[3])))
    return dnorms, dkernels


def _activated(saved: Saved, kernel: Array, dtype: DTypeLike) -> Array:
    """Computes the activations, packed as the kernel is.

    XLA for TPUs makes one operation of an activation and its convolution only if nothing comes between, be it a new
    name for the same numbers. The sums over x are packed as x is, for the same reason.
    """
    x, scale, shift, mean, inverse = saved
    return activated((_repacked(x, kernel.shape[2]), scale, shift, mean, inverse), dtype)


def _repacked(x: Array, channels: int) -> Array:
    # Without the barrier, XLA for TPUs would keep x in float32, in which both the sums and the rest are computed.
    return x if x.shape[-1] == channels else lax.optimization_barrier(repack(x, channels))


activated_conv3x3.defvjp(_forward, _backward)
