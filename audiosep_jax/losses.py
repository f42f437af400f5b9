"""Training losses: functions of waveforms, computed in float32."""

import jax
import jax.numpy as jnp


def l1_waveform(estimate: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute error of the samples: [B, T], [B, T] -> float32 scalar. Source: the original's `l1_wav` (losses.py).

    Raises:
        ValueError: shapes that differ (broadcasting would average over the wrong pairs).
    """
    if jnp.shape(estimate) != jnp.shape(target):
        raise ValueError(f'estimate {list(jnp.shape(estimate))} and target {list(jnp.shape(target))} differ in shape')
    return jnp.mean(jnp.abs(jnp.asarray(estimate, jnp.float32) - jnp.asarray(target, jnp.float32)))
