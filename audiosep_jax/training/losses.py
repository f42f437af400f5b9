"""Training losses: functions of waveforms, computed in float32."""

import jax
import jax.numpy as jnp


def l1_waveform(estimate: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute error of the samples: [B, T] x 2 -> float32 []. Source: the original's `l1_wav` (losses.py).

    A sample that is exact gives no gradient, as in PyTorch.

    Raises:
        ValueError: shapes that differ (broadcasting would average over the wrong pairs).
    """
    if jnp.shape(estimate) != jnp.shape(target):
        raise ValueError(f'estimate {list(jnp.shape(estimate))} and target {list(jnp.shape(target))} differ in shape')
    difference = jnp.asarray(estimate, jnp.float32) - jnp.asarray(target, jnp.float32)
    # Not `jnp.abs`: JAX gives it the derivative 1 at 0, which would pull on every sample of digital silence.
    return jnp.mean(difference * jnp.sign(difference))
