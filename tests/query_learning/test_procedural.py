"""Procedural backgrounds."""

import numpy as np
import pytest

from audiosep_jax.query_learning.procedural import procedural_background


@pytest.mark.parametrize('sample_rate', [8000, 32000])
def test_backgrounds_differ_and_are_equally_loud(sample_rate):
    rng = np.random.default_rng(0)
    sounds = [procedural_background(rng, sample_rate // 2, sample_rate) for _ in range(40)]
    assert {(sound.dtype, sound.shape) for sound in sounds} == {(np.dtype(np.float32), (sample_rate // 2,))}
    assert np.isfinite(sounds).all()
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(sounds), axis=-1)), 0.1, rtol=1e-3)
    spectra = np.abs(np.fft.rfft(sounds)) ** 2
    frequencies = np.fft.rfftfreq(sample_rate // 2, 1 / sample_rate)
    centers = spectra @ frequencies / spectra.sum(-1)
    assert centers.max() > 5 * centers.min()  # of the spectra, in Hz
    assert np.abs(np.corrcoef(sounds) - np.eye(40)).max() < 0.9


@pytest.mark.parametrize('length', [1, 2, 50])
def test_short_backgrounds(length):
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert procedural_background(rng, length, 8000).shape == (length,)
