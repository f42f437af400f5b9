"""The mask network by itself: padding in time, the mask's range, and the batch norm's statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.models.resunet import BatchNorm, ResUNet30, complex_mask

WIDTHS = (4, 4, 6, 6, 8, 8)
network = jax.jit(ResUNet30(WIDTHS).apply)


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope='module')
def variables():
    """New variables with statistics and biases that are not the identity."""
    new = jax.jit(ResUNet30(WIDTHS).init)(jax.random.key(0), noise(1, 1, 65), noise(1, 16))
    keys = iter(jax.random.split(jax.random.key(1), 500))
    params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), new['params'])
    return {'params': params, 'batch_stats': jax.tree.map(lambda a: a + 0.3, new['batch_stats'])}


def test_frames_beyond_the_end_change_nothing(variables):
    magnitude, embedding = np.abs(noise(1, 50, 65)), noise(1, 16)
    whole = network(variables, magnitude, embedding)
    rest = np.concatenate([magnitude, 9 + np.abs(noise(1, 14, 65))], axis=1)
    masked = network(variables, rest, embedding, jnp.array([50]))
    np.testing.assert_allclose(masked[:, :50], whole, atol=1e-6)
    assert not np.any(masked[:, 50:])


def test_a_number_of_bins_that_cannot_be_halved_is_refused(variables):
    with pytest.raises(ValueError, match='66 bins: one less must be a multiple of 64'):
        network(variables, np.abs(noise(1, 5, 66)), noise(1, 16))


def test_the_mask_has_the_angle_and_magnitude_of_its_maps():
    maps = 10 * noise(7, 3)
    mask = np.asarray(complex_mask(jnp.asarray(maps)))
    np.testing.assert_allclose(np.abs(mask), 1 / (1 + np.exp(-maps[:, 0])), rtol=1e-5)
    np.testing.assert_allclose(np.angle(mask), np.arctan2(np.tanh(maps[:, 2]), np.tanh(maps[:, 1])), rtol=1e-5)


def test_batch_norm_keeps_the_unbiased_variance():
    x = noise(5, 3)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=True)
    out, updated = norm.apply(variables, x, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(updated['batch_stats']['var'], 0.99 + 0.01 * x.var(0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(updated['batch_stats']['mean'], 0.01 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(out, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), atol=1e-5)
