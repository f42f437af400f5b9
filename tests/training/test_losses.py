import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.training.losses import l1_waveform


def test_is_the_mean_absolute_error():
    estimate, target = jnp.array([[0.5, -0.5], [1.0, 0.0]]), jnp.array([[0.0, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(l1_waveform(estimate, target), (0.5 + 1 + 1 + 0) / 4)


def test_computes_in_float32_whatever_the_network_gives():
    # bfloat16 has 8 bits: 256 + 1 is 256 there, and a sum in bfloat16 would stop growing.
    estimate = jnp.ones([1, 1000], jnp.bfloat16)
    loss = l1_waveform(estimate, jnp.zeros([1, 1000]))
    assert loss.dtype == jnp.float32
    assert loss == 1


def test_gradient_is_the_sign_and_zero_where_equal():
    gradient = jax.grad(l1_waveform)(jnp.array([[1.0, -1.0, 0.0, 3.0]]), jnp.array([[0.0, 0.0, 0.0, 4.0]]))
    np.testing.assert_allclose(gradient, [[0.25, -0.25, 0.0, -0.25]])


def test_a_non_finite_estimate_gives_a_non_finite_loss():
    target = jnp.zeros([1, 2])
    assert jnp.isnan(l1_waveform(jnp.array([[jnp.nan, 0.0]]), target))
    assert jnp.isinf(l1_waveform(jnp.array([[-jnp.inf, 0.0]]), target))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r'estimate \[2, 5\] and target \[5\] differ in shape'):
        l1_waveform(jnp.zeros([2, 5]), jnp.zeros([5]))
