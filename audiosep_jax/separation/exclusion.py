"""Sounds to exclude (negative queries): the spectral gain that turns them down in a target.

The network is asked for the sounds to exclude as well. Where they are louder than the target, the target is turned
down: its spectrum P becomes P·|P|⁴ / (|P|⁴ + Σ |s·Nₖ|⁴), where Nₖ are the spectra of the sounds to exclude and s is the
strength. The gain is one half where |P| = s·|N|. The exponent and the strength were chosen by `benchmarks/queries.py`.

Letters: K sounds to exclude, T samples, N frames, F frequency bins.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex, Float, Float32, Real

from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.errors import QueryError

STRENGTH = 0.7
# Lengths are padded to multiples of this many hops, so that few shapes are compiled.
_HOPS_PER_SHAPE = 32
# The least power of a target in a quotient: 1e-30 is 300 dB below full scale.
_POWER_FLOOR = 1e-30


def exclude(
    targets: Float[np.ndarray, '*batch channels T'],
    unwanted: Float[np.ndarray, 'K channels T'],
    *,
    window_size: int,
    hop_size: int,
    strength: float = STRENGTH,
) -> Float32[np.ndarray, '*batch channels T']:
    """Turns the unwanted sounds down in targets, by the formula at the top of this file.

    All channels get the same gain, so that the stereo image stays. Because a gain depends only on the frames around it,
    the function suits whole recordings as well as each window of a long one.

    Args:
        targets: what the network separated for the queries, at the model's rate.
        unwanted: what it separated for the sounds to exclude; K may be 0.
        window_size: of the STFT, samples.
        hop_size: of the STFT, samples.
        strength: s. 0 changes nothing; 0.7 removes a quarter of the leakage's amplitude at hardly any cost to the
            target; 1 removes a third, and does more harm where an unwanted sound is similar to the target.

    Raises:
        QueryError: a strength that is negative or not finite.
    """
    check_strength(strength)
    targets = np.asarray(targets, np.float32)
    length = targets.shape[-1]
    if not len(unwanted) or not length or not strength:
        return targets
    # Zeros are enough for padding, although they are not the reflection of the signal: a gain is a ratio of loudness.
    padding = exclusion_padding(length, hop_size)
    padded, others = (np.pad(x, [(0, 0)] * (np.ndim(x) - 1) + [(0, padding)]) for x in (targets, unwanted))
    return np.asarray(_exclude(padded, others, strength, window_size, hop_size))[..., :length].copy()


def exclusion_padding(length: int, hop_size: int) -> int:
    """Returns how many zeros follow a recording of `length` samples before its gains are computed."""
    return -length % (_HOPS_PER_SHAPE * hop_size)


def check_strength(strength: float) -> None:
    """Raises QueryError for a strength that is negative or not finite."""
    if not (strength >= 0 and math.isfinite(strength)):
        raise QueryError(f'the strength of the exclusion must be 0 or more, got {strength}')


@functools.partial(jax.jit, static_argnames=('window_size', 'hop_size'))
def _exclude(
    targets: Float32[Array, '*batch channels T'],
    unwanted: Float[Array, 'K channels T'],
    strength: Real[Array, ''],
    window_size: int,
    hop_size: int,
) -> Float32[Array, '*batch channels T']:
    spectra = stft(targets, window_size, hop_size)
    powers = spectral_power(spectra)
    unwanted_powers = spectral_power(stft(unwanted, window_size, hop_size))
    gains = exclusion_gain(powers, unwanted_powers, strength)
    return istft(spectra * gains[..., None, :, :], window_size, hop_size, length=targets.shape[-1])


def exclusion_gain(
    power: Float[Array, '*batch N F'], unwanted_powers: Float[Array, 'K N F'], strength: float | Real[Array, '']
) -> Float[Array, '*batch N F']:
    """Computes |P|⁴ / (|P|⁴ + Σ |s·Nₖ|⁴) from the squared magnitudes |P|² and |Nₖ|²; 1 where all of them are 0."""
    ratio = jnp.zeros_like(power)
    for other in unwanted_powers:
        # Quotients are taken before squares, because the fourth powers of quiet bins exceed the range of float32.
        ratio += jnp.square(strength**2 * other / jnp.maximum(power, _POWER_FLOOR))
    return 1 / (1 + ratio)


def spectral_power(spectra: Complex[Array, '*batch channels N F']) -> Float[Array, '*batch N F']:
    """Computes the energy of all channels together."""
    return jnp.sum(jnp.square(spectra.real) + jnp.square(spectra.imag), axis=-3)
