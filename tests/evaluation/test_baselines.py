"""Tests the equalizer per class and the oracle mask."""

import numpy as np
import pytest

from audiosep_jax import metrics
from audiosep_jax.errors import DataError
from audiosep_jax.evaluation.baselines import SpectralMask, oracle_ratio_mask

STFT = {'window_size': 256, 'hop_size': 64}
T = 2000


def _tones(hertz, count=3, seed=0):
    """Returns tones of random phase and loudness at 8 kHz, [count, T]."""
    rng = np.random.default_rng(seed)
    phase, gain = rng.uniform(0, 6, (2, count, 1))
    return (0.1 + gain) * np.sin(2 * np.pi * hertz * np.arange(T) / 8000 + phase)


def _equal(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True))


def test_classes_apart_in_frequency_are_separated():
    mask = SpectralMask.fit({'low': _tones(500), 'high': _tones(2500)}, **STFT)
    low, high = _equal(_tones(500, seed=1)), _equal(_tones(2500, seed=2))
    out = mask.separate(np.concatenate([low + high, low + high]), ['low'] * 3 + ['high'] * 3)
    assert out.dtype == np.float32
    assert np.min(metrics.sdr(np.concatenate([low, high]), out)) > 20


def test_classes_with_the_same_spectrum_are_halved():
    noise = np.random.default_rng(0).standard_normal((40, T))
    mask = SpectralMask.fit({'one': noise[:20], 'other': noise[20:]}, **STFT)
    for gains in mask.masks.values():
        np.testing.assert_allclose(gains, 0.5, atol=0.05)
    fresh = _equal(np.random.default_rng(1).standard_normal((2, 8, T)))
    mixtures = fresh[0] + fresh[1]
    improvement = metrics.sdri(fresh[0], mask.separate(mixtures, ['one'] * 8), mixtures)
    np.testing.assert_allclose(np.mean(improvement), 10 * np.log10(2), atol=0.3)


def test_loudness_does_not_matter_and_silent_clips_are_ignored():
    quiet = SpectralMask.fit({'low': 1e-3 * _tones(500), 'high': _tones(2500)}, **STFT)
    with_silence = {'low': np.concatenate([_tones(500), np.zeros((2, T))]), 'high': _tones(2500)}
    for name, gains in SpectralMask.fit(with_silence, **STFT).masks.items():
        np.testing.assert_allclose(gains, quiet.masks[name], atol=1e-4)


def test_no_mixtures_give_no_separations():
    mask = SpectralMask.fit({'low': _tones(500), 'high': _tones(2500)}, **STFT)
    assert mask.separate(np.zeros((0, T)), []).shape == (0, T)


def test_wrong_classes_are_refused():
    with pytest.raises(DataError, match='at least two classes'):
        SpectralMask.fit({'low': _tones(500)}, **STFT)
    with pytest.raises(DataError, match="'quiet' are silent"):
        SpectralMask.fit({'quiet': np.zeros((2, T)), 'low': _tones(500)}, **STFT)
    mask = SpectralMask.fit({'low': _tones(500), 'high': _tones(2500)}, **STFT)
    with pytest.raises(DataError, match='not fitted: middle'):
        mask.separate(_tones(500), ['low', 'middle', 'low'])
    with pytest.raises(DataError, match='3 mixtures, 1 classes'):
        mask.separate(_tones(500), ['low'])


def test_a_ratio_mask_knows_the_target():
    rng = np.random.default_rng(0)
    time = np.arange(3000) / 8000
    targets = np.stack([np.sin(2 * np.pi * hertz * time) for hertz in (300, 1200)]).astype(np.float32)
    mixtures = targets + np.sin(2 * np.pi * 3000 * time).astype(np.float32)
    estimates = oracle_ratio_mask(mixtures, targets, 256, 64)
    assert np.all(metrics.sdri(targets, estimates, mixtures) > 20)
    # Nothing but the target: the mask is 1. Nothing of the target: it is 0.
    np.testing.assert_allclose(oracle_ratio_mask(targets, targets, 256, 64), targets, atol=1e-5)
    np.testing.assert_allclose(oracle_ratio_mask(mixtures, 0 * targets, 256, 64), 0, atol=1e-6)
    # Zeros at the end, with which batches are padded, change nothing before them.
    noisy = mixtures + 0.1 * rng.standard_normal(mixtures.shape).astype(np.float32)
    padded = [np.pad(x, ((0, 0), (0, 1000))) for x in (noisy, targets)]
    alone = oracle_ratio_mask(noisy, targets, 256, 64)
    np.testing.assert_allclose(oracle_ratio_mask(*padded, 256, 64)[:, :3000], alone, atol=1e-5)
