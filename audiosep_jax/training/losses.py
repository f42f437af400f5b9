"""Training losses: functions of waveforms, computed in float32."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32


def l1_waveform(
    estimate: Float[Array | np.ndarray, '...'], target: Float[Array | np.ndarray, '...']
) -> Float32[Array, '']:
    """Returns the mean absolute error of the samples. Source: the original's `l1_wav` (losses.py).

    A sample that is exactly right has no gradient, as in PyTorch.

    Raises:
        ValueError: the shapes differ (broadcasting would average over the wrong pairs).
    """
    if jnp.shape(estimate) != jnp.shape(target):
        raise ValueError(f'estimate {list(jnp.shape(estimate))} and target {list(jnp.shape(target))} differ in shape')
    difference = jnp.asarray(estimate, jnp.float32) - jnp.asarray(target, jnp.float32)
    # The derivative of `jnp.abs` at 0 is 1 in JAX, which would pull on every sample of digital silence.
    return jnp.mean(difference * jnp.sign(difference))
