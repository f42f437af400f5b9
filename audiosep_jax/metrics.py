"""Separation metrics in dB over the last axis, float [..., T] -> float32 [...]: pure functions for jit and vmap.

Source: `calculate_sdr` and `calculate_sisdr` of the original (utils.py), including its treatment of silence: every
metric of silent signals is finite. No mean is removed. All is computed in float32.

Signals of different lengths can be padded with zeros to one shape: SDR then needs `num_samples`, while SI-SDR, which
consists of sums, is not changed by zeros.
"""

import jax
import jax.numpy as jnp

# The original's floor of mean squares in SDR, and the float32 epsilon that it adds to energies in SI-SDR.
_SDR_FLOOR = 1e-10
_SI_SDR_EPSILON = float(jnp.finfo(jnp.float32).eps)


def sdr(reference: jax.Array, estimate: jax.Array, *, num_samples: jax.Array | None = None) -> jax.Array:
    """Returns the signal-to-distortion ratio, the energy of the reference over that of the error.

    Mean squares below 1e-10 count as 1e-10: a perfect estimate of a signal with mean square P has 10 log10(P) + 100 dB,
    and a silent estimate 0 dB.

    Args:
        reference: float [..., T].
        estimate: float [..., T].
        num_samples: int [...], how many samples count, if zeros follow them; None: all T.

    Returns:
        float32 [...], in dB.

    Raises:
        ValueError: the shapes differ, or T is 0.
    """
    reference, estimate = _float32_pair(reference, estimate, 'estimate')
    return _decibels(_floored_power(reference, num_samples), _floored_power(estimate - reference, num_samples))


def sdri(
    reference: jax.Array, estimate: jax.Array, mixture: jax.Array, *, num_samples: jax.Array | None = None
) -> jax.Array:
    """Returns the SDR improvement: the SDR of the estimate minus that of the mixture from which it was separated.

    Args:
        reference: float [..., T].
        estimate: float [..., T].
        mixture: float [..., T].
        num_samples: as for `sdr`.

    Returns:
        float32 [...], in dB.

    Raises:
        ValueError: the shapes differ, or T is 0.
    """
    reference, mixture = _float32_pair(reference, mixture, 'mixture')
    return sdr(reference, estimate, num_samples=num_samples) - sdr(reference, mixture, num_samples=num_samples)


def si_sdr(reference: jax.Array, estimate: jax.Array) -> jax.Array:
    """Returns the scale-invariant SDR (Le Roux et al., arXiv 1811.02508, without mean removal).

    The float32 epsilon (1.2e-7) is added to each energy, a sum of squares, so that a silent estimate has 0 dB.

    Args:
        reference: float [..., T].
        estimate: float [..., T].

    Returns:
        float32 [...], in dB.

    Raises:
        ValueError: the shapes differ, or T is 0.
    """
    reference, estimate = _float32_pair(reference, estimate, 'estimate')
    # Sums of products, because accelerators may compute dot products in bfloat16 or TF32.
    correlation = jnp.sum(reference * estimate, axis=-1, keepdims=True)
    energy = jnp.sum(jnp.square(reference), axis=-1, keepdims=True)
    projection = (correlation + _SI_SDR_EPSILON) / (energy + _SI_SDR_EPSILON) * reference
    signal = jnp.sum(jnp.square(projection), axis=-1)
    residual = jnp.sum(jnp.square(estimate - projection), axis=-1)
    return _decibels(signal + _SI_SDR_EPSILON, residual + _SI_SDR_EPSILON)


def _floored_power(x: jax.Array, num_samples: jax.Array | None) -> jax.Array:
    count = x.shape[-1] if num_samples is None else num_samples
    return jnp.maximum(jnp.sum(jnp.square(x), axis=-1) / count, _SDR_FLOOR)


def _decibels(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    # A difference of logarithms, because the quotient of a loud and a silent energy could exceed the range of float32.
    return 10 * (jnp.log10(numerator) - jnp.log10(denominator))


def _float32_pair(reference: jax.Array, other: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
    if jnp.shape(reference) != jnp.shape(other):
        raise ValueError(f'reference {list(jnp.shape(reference))} and {name} {list(jnp.shape(other))} differ in shape')
    if not jnp.ndim(reference) or not jnp.shape(reference)[-1]:
        raise ValueError(f'reference and {name} hold no samples')
    return jnp.asarray(reference, jnp.float32), jnp.asarray(other, jnp.float32)
