"""How strongly a recording is separated: its sounds, blended with the recording itself.

At strength s, from 0 to 1, every target y of the recording x becomes s·y + (1 − s)·x, and the residual r = x − Σ y
becomes s·r + (1 − s)·x. At 1 they are what the network separated, at 0 all of them equal the recording. In between,
the other sounds are attenuated by −20·log10(1 − s) dB: 6 dB at 0.5, 20 dB at 0.9.
"""

import numpy as np
from jaxtyping import Float32

from audiosep_jax.errors import ConfigError


def check_strength(strength: float | None) -> float:
    """Returns the strength. Raises ConfigError if it is not between 0 and 1."""
    if strength is None or not 0 <= strength <= 1:
        raise ConfigError(f'the strength must be between 0 and 1, got {strength}')
    return strength


def blended(
    separated: Float32[np.ndarray, '*batch T'], mixture: Float32[np.ndarray, '...'], strength: float
) -> Float32[np.ndarray, '*batch T']:
    """Returns s·separated + (1 − s)·mixture; at s = 1 exactly `separated`."""
    if strength == 1:
        return separated
    return np.float32(strength) * separated + np.float32(1 - strength) * mixture
