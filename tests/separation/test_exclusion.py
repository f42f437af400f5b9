"""The gain that turns sounds to exclude down: its formula, its invariances, and any length and loudness."""

import numpy as np
import pytest

from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.errors import QueryError
from audiosep_jax.separation.exclusion import exclude

WINDOW, HOP = 128, 32


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_exclude(targets, unwanted, strength=0.7):
    return exclude(targets, unwanted, window_size=WINDOW, hop_size=HOP, strength=strength)


@pytest.mark.parametrize('length', [1024, 2000])
def test_the_formula(length):
    target, others = noise(1, length), noise(2, 1, length, seed=1)
    p, n = np.asarray(stft(target, WINDOW, HOP)), np.asarray(stft(others, WINDOW, HOP))
    gain = np.abs(p) ** 4 / (np.abs(p) ** 4 + np.sum(np.abs(0.7 * n) ** 4, axis=0))
    expected = istft(p * gain, WINDOW, HOP, length=length)
    actual = run_exclude(target, others)
    assert actual.dtype == np.float32
    assert actual.shape == (1, length)
    # The last frames see zeros after the end instead of a reflection.
    np.testing.assert_allclose(actual[:, :-WINDOW], expected[:, :-WINDOW], atol=1e-5)


def test_nothing_to_exclude_changes_nothing():
    x = noise(2, 3, 500)
    np.testing.assert_array_equal(run_exclude(x, noise(0, 3, 500)), x)
    np.testing.assert_array_equal(run_exclude(x, noise(2, 3, 500), strength=0), x)
    np.testing.assert_allclose(run_exclude(x, np.zeros((1, 3, 500))), x, atol=1e-6)
    assert run_exclude(noise(1, 0), noise(1, 1, 0)).shape == (1, 0)


def test_half_remains_where_both_are_equally_loud():
    x = noise(1, 640)
    np.testing.assert_allclose(run_exclude(x, x[None], strength=1), x / 2, atol=1e-6)


def test_the_target_loses_what_the_unwanted_sound_has_louder():
    """Each is loud in one half of the spectrum. The target loses its leak into the other half, and keeps its own."""
    t = np.arange(4000) / 4000
    own, leak = np.sin(2 * np.pi * 500 * t), 0.1 * np.sin(2 * np.pi * 1500 * t)
    unwanted = 10 * leak + 0.1 * own
    out = run_exclude((own + leak)[None], unwanted[None, None])[0][500:-500]
    own, leak = own[500:-500], leak[500:-500]
    assert abs(out @ own / (own @ own) - 1) < 0.01
    assert abs(out @ leak / (leak @ leak)) < 0.01


def test_one_gain_for_all_channels():
    x, other = noise(700), noise(1, 2, 700, seed=1)
    out = run_exclude(np.stack([x, -0.25 * x]), other)
    np.testing.assert_allclose(out[1], -0.25 * out[0], atol=1e-6)


def test_many_targets_at_once_are_each_alone():
    x, other = noise(3, 2, 700), noise(2, 2, 700, seed=1)
    np.testing.assert_allclose(run_exclude(x, other)[1], run_exclude(x[1], other), atol=1e-6)


@pytest.mark.parametrize('length', [1, 2, 63, 64, 65])
@pytest.mark.parametrize('scale', [0, 1e-12, 1e-5, 1e4])
def test_any_length_and_loudness_is_finite_and_no_louder(length, scale):
    x, other = scale * noise(1, length), noise(1, 1, length, seed=1)
    out = run_exclude(x, other)
    assert out.shape == x.shape
    assert np.isfinite(out).all()
    np.testing.assert_allclose(
        run_exclude(x, scale * other), scale * run_exclude(noise(1, length), other), atol=1e-6 * scale
    )


def test_a_window_is_the_whole_except_at_its_ends():
    x, other = noise(1, 4000), noise(1, 1, 4000, seed=1)
    whole = run_exclude(x, other)
    window = run_exclude(x[:, 1024:3072], other[..., 1024:3072])
    np.testing.assert_allclose(window[:, WINDOW:-WINDOW], whole[:, 1024 + WINDOW : 3072 - WINDOW], atol=1e-6)


@pytest.mark.parametrize('strength', [-1, np.nan, np.inf])
def test_invalid_strengths_are_refused(strength):
    with pytest.raises(QueryError, match='strength'):
        run_exclude(noise(1, 10), noise(1, 1, 10), strength)
