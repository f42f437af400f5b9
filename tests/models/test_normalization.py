"""Norm, shift and activation against the same written out, which JAX differentiates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.models.normalization import (
    LEAKY_SLOPE,
    NORM_EPSILON,
    batch_norm_shift_activate,
    batch_statistics,
    normalize_shift_activate,
)

CHANNELS = 3


def inputs(shape=(2, 4, 6, CHANNELS), mean=0.0, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape) + mean, dtype)
    scale, bias, center = (jnp.asarray(rng.standard_normal(CHANNELS), jnp.float32) for _ in range(3))
    shift = jnp.asarray(rng.standard_normal((shape[0], CHANNELS)), jnp.float32)
    return x, scale, bias, shift, center


def written_out(x, scale, bias, shift):
    x = x.astype(jnp.float32)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    z = (x - mean) / jnp.sqrt(var + NORM_EPSILON) * scale + bias + shift[:, None, None, :]
    return jnp.where(z >= 0, z, LEAKY_SLOPE * z)


@pytest.mark.parametrize('keep_x', [True, False])
def test_output_and_gradients(keep_x):
    *differentiated, center = inputs()
    g = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 6, CHANNELS)), jnp.float32)

    def ours(x, scale, bias, shift):
        return batch_norm_shift_activate(x, scale, bias, shift, center, jnp.float32, keep_x)[0]

    (y, pull), (expected, expected_pull) = jax.vjp(ours, *differentiated), jax.vjp(written_out, *differentiated)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for found, other in zip(pull(g), expected_pull(g), strict=True):
        np.testing.assert_allclose(found, other, atol=2e-5 * np.abs(other).max())


def test_bfloat16_in_and_out_with_sums_in_float32():
    x, scale, bias, shift, center = inputs(dtype=jnp.bfloat16)
    y, mean, var = batch_norm_shift_activate(x, scale, bias, shift, center, jnp.bfloat16)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(np.asarray(y, np.float32), written_out(x, scale, bias, shift), atol=0.03)
    dx = jax.vjp(lambda x: batch_norm_shift_activate(x, scale, bias, shift, center, jnp.bfloat16)[0], x)[1](y)[0]
    assert dx.dtype == jnp.bfloat16


def test_the_variance_keeps_its_digits_where_the_mean_is_large():
    x, *_ = inputs(mean=1000.0)
    expected = np.asarray(x, np.float64).var((0, 1, 2))
    _, near = batch_statistics(x, jnp.full(CHANNELS, 999.5))
    np.testing.assert_allclose(near, expected, rtol=1e-4)
    # A variance is never negative, however far the center is.
    _, far = batch_statistics(jnp.full((2, 4, 6, CHANNELS), 1000.0), jnp.zeros(CHANNELS))
    assert np.all(np.asarray(far) >= 0)


def test_running_statistics_give_the_same_formula():
    x, scale, bias, shift, _ = inputs()
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = normalize_shift_activate(x, scale, bias, shift, mean, var, dtype=jnp.float32)
    np.testing.assert_allclose(y, written_out(x, scale, bias, shift), atol=1e-5)
