"""Strength: the sounds blended with the recording, in memory, in pieces and within spans alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.noisy_separator import noisy_separator, sound

from audiosep_jax.errors import ConfigError
from audiosep_jax.separation.strength import blended, check_strength


@given(st.floats(0, 1, width=32))
def test_strength_keeps_what_both_share(strength):
    """What is in the target and in the recording alike stays; the rest is (1 − s) times as loud."""
    target = np.array([[0.5, 0.0, -0.25]], np.float32)
    other = np.array([[0.0, 0.5, 0.125]], np.float32)
    np.testing.assert_allclose(blended(target, target + other, strength), target + (1 - strength) * other, atol=1e-6)


def test_what_a_strength_is():
    assert [check_strength(strength) for strength in (0, 0.5, 1)] == [0, 0.5, 1]
    for strength in (-0.1, 1.1, float('nan'), None):
        with pytest.raises(ConfigError, match='between 0 and 1'):
            check_strength(strength)


def test_every_part_is_blended():
    separator, x = noisy_separator(), sound(2, 3000)
    alone = separator.separate(x, ['rain', 'a siren'], sample_rate=8000)
    np.testing.assert_allclose(alone.mixture, x, atol=1e-7)
    for strength in (0.9, 0.25):
        out = separator.separate(x, ['rain', 'a siren'], sample_rate=8000, strength=strength)
        np.testing.assert_allclose(out.targets, strength * alone.targets + (1 - strength) * x, atol=1e-7)
        np.testing.assert_allclose(out.residual, strength * alone.residual + (1 - strength) * x, atol=1e-7)
        again = alone.blended(strength)
        np.testing.assert_allclose(again.targets, out.targets, atol=1e-7)
        np.testing.assert_allclose(again.residual, out.residual, atol=1e-7)
    nothing = separator.separate(x, ['rain', 'a siren'], sample_rate=8000, strength=0)
    np.testing.assert_array_equal(nothing.targets[1], x)
    np.testing.assert_array_equal(nothing.residual, x)
    with pytest.raises(ConfigError, match='between 0 and 1'):
        separator.separate(x, 'rain', sample_rate=8000, strength=2)
