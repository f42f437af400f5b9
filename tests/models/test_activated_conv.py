"""The fused block of norm, activation and convolution against its parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.models.activated_conv import activated_conv3x3
from audiosep_jax.models.convolution import native_conv3x3
from audiosep_jax.models.normalization import batch_norm_shift_activate
from audiosep_jax.models.packing import pack_conv3x3, repack


def arguments(channels):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    norms = [(draw(2, 5, 8, c), draw(c), draw(c), draw(2, c), draw(c)) for c in channels]
    return norms, [draw(3, 3, c, 4) for c in channels]


def in_parts(norms, kernels):
    activations = [batch_norm_shift_activate(*norm, jnp.float32)[0] for norm in norms]
    return native_conv3x3(jnp.concatenate(activations, -1), jnp.concatenate(kernels, 2))


@pytest.mark.parametrize('channels', [(3,), (3, 2)])
@pytest.mark.parametrize(('keep_inputs', 'keep_activations'), [(True, True), (True, False), (False, False)])
def test_output_statistics_and_gradients(channels, keep_inputs, keep_activations):
    norms, kernels = arguments(channels)

    def ours(norms, kernels):
        return activated_conv3x3(norms, kernels, jnp.float32, keep_inputs, keep_activations)[0]

    y, pull = jax.vjp(ours, norms, kernels)
    expected, expected_pull = jax.vjp(in_parts, norms, kernels)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    g = jnp.ones_like(y) + y
    for found, other in zip(jax.tree.leaves(pull(g)), jax.tree.leaves(expected_pull(g)), strict=True):
        np.testing.assert_allclose(found, other, atol=1e-5 * max(np.abs(other).max(), 1))
    _, means, variances = activated_conv3x3(norms, kernels, jnp.float32, keep_inputs, keep_activations)
    for norm, mean, var in zip(norms, means, variances, strict=True):
        np.testing.assert_allclose(mean, norm[0].mean((0, 1, 2)), atol=1e-5)
        np.testing.assert_allclose(var, norm[0].var((0, 1, 2)), atol=1e-5)


def test_the_kernel_may_be_packed_otherwise_than_the_array():
    (norm,), (kernel,) = arguments((3,))
    x, *vectors = norm

    def packed(x, kernel, packing):
        kernels = [pack_conv3x3(kernel, packing)]
        return activated_conv3x3([(repack(x, 6), *vectors)], kernels, jnp.float32, True, True)[0]

    y, pull = jax.vjp(lambda x, kernel: in_parts([(x, *vectors)], [kernel]), x, kernel)
    for packing in (1, 4, 8):
        found, found_pull = jax.vjp(functools.partial(packed, packing=packing), x, kernel)
        np.testing.assert_allclose(repack(found, 4), y, atol=1e-5)
        for ours, theirs in zip(found_pull(found), pull(y), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_activations_that_are_not_kept_take_no_memory():
    """Between forward and backward pass there are only inputs, vectors and kernels."""
    norms, kernels = arguments((3,))

    def largest_saved(keep_activations):
        def ours(kernels):
            return activated_conv3x3(norms, kernels, jnp.float32, True, keep_activations)[0]

        saved = jax.tree.leaves(jax.eval_shape(lambda kernels: jax.vjp(ours, kernels)[1], kernels))
        return sum(leaf.size for leaf in saved if leaf.ndim == 4 and leaf.shape[0] == 2)

    assert largest_saved(True) - largest_saved(False) == 2 * 5 * 8 * 3
