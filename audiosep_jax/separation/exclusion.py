"""Sounds to exclude: the spectral gain that keeps them out of a target."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.errors import QueryError

STRENGTH = 0.7
# Shapes are compiled once per this many hops of length.
_HOPS_PER_SHAPE = 32
# Powers below this count as this: 1e-30 is 300 dB below full scale.
_POWER_FLOOR = 1e-30


def keep_out(
    targets: np.ndarray,
    unwanted: np.ndarray,
    *,
    window_size: int,
    hop_size: int,
    strength: float = STRENGTH,
) -> np.ndarray:
    """Targets in which the unwanted sounds are turned down: formula 2 at the top of this file.

    One gain serves all channels, so that the stereo image stays. For whole recordings or for each window of a long one:
    a gain depends on the frames around it alone.

    Args:
        targets: float [..., channels, T], what the network gave for the queries, at the model's rate.
        unwanted: float [K, channels, T], what it gave for the unwanted sounds; K may be 0.
        window_size: of the STFT, samples.
        hop_size: of the STFT, samples.
        strength: s, 0 or more. 0 changes nothing; 0.7 takes a quarter of the leakage's amplitude at hardly any cost to
            the target, 1 a third, and does more harm where an unwanted sound is like the target.

    Returns:
        float32, the shape of the targets.

    Raises:
        QueryError: a strength below 0 or not finite.
    """
    check_strength(strength)
    targets = np.asarray(targets, np.float32)
    length = targets.shape[-1]
    if not len(unwanted) or not length or not strength:
        return targets
    # The zeros are cut off again; a gain is a ratio of loudness and needs no reflection at the end.
    padding = keep_out_padding(length, hop_size)
    padded, others = (np.pad(x, [(0, 0)] * (np.ndim(x) - 1) + [(0, padding)]) for x in (targets, unwanted))
    return np.asarray(_keep_out(padded, others, strength, window_size, hop_size))[..., :length].copy()


def keep_out_padding(length: int, hop_size: int) -> int:
    """How many zeros follow a recording of `length` samples before its gains are computed."""
    return -length % (_HOPS_PER_SHAPE * hop_size)


def check_strength(strength: float) -> None:
    """Raises QueryError for a strength below 0 or not finite."""
    if not (strength >= 0 and math.isfinite(strength)):
        raise QueryError(f'the strength of what must stay out is 0 or more, got {strength}')


@functools.partial(jax.jit, static_argnames=('window_size', 'hop_size'))
def _keep_out(targets: jax.Array, unwanted: jax.Array, strength: jax.Array, window_size: int, hop_size: int):
    spectra = stft(targets, window_size, hop_size)  # [..., channels, N, F]
    powers = spectral_power(spectra)
    other_powers = spectral_power(stft(unwanted, window_size, hop_size))
    gains = keep_out_gain(powers, other_powers, strength)
    return istft(spectra * gains[..., None, :, :], window_size, hop_size, length=targets.shape[-1])


def keep_out_gain(power: jax.Array, unwanted_powers: jax.Array, strength: float) -> jax.Array:
    """|P|⁴ / (|P|⁴ + Σ |s·Nₖ|⁴) from the squared magnitudes |P|² [..., N, F] and |Nₖ|² [K, N, F]; 1 where all is 0."""
    ratio = jnp.zeros_like(power)
    for other in unwanted_powers:
        # Quotients before squares: fourth powers of quiet bins leave the range of float32.
        ratio += jnp.square(strength**2 * other / jnp.maximum(power, _POWER_FLOOR))
    return 1 / (1 + ratio)


def spectral_power(spectra: jax.Array) -> jax.Array:
    """complex [..., channels, N, F] -> the energy of the channels together, float32 [..., N, F]."""
    return jnp.sum(jnp.square(spectra.real) + jnp.square(spectra.imag), axis=-3)
