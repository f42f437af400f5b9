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

from audiosep_jax.models.convolution import conv3x3_gradients, joined, native_conv3x3
from audiosep_jax.models.normalization import NormInputs, Saved, activated, behind_barrier, norm_gradients, normalized


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
        kernels: [3, 3, p·C, p·D] for each array.
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
    for norm in norms:
        if means:
            # One after the other: XLA for GPUs would pair the sums of different arrays, and read both arrays twice.
            norm, _ = lax.optimization_barrier((norm, means[-1]))
        y, mean, var, kept = normalized(norm, dtype)
        activations.append(y)
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
        for norm in norms:
            again, g = behind_barrier(norm, g, keep_inputs)
            activations.append(activated(again, dtype))
        y = joined(activations, -1)
    dys, dkernels = conv3x3_gradients(y, kernels, g)
    dnorms = []
    for norm, dy in zip(norms, dys, strict=True):
        dnorms.append((*norm_gradients(norm, dy, keep_inputs), jnp.zeros_like(norm[3])))
    return dnorms, dkernels


activated_conv3x3.defvjp(_forward, _backward)
