"""The STFT: its definition, its inverse, and what it does with signals shorter than its window."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.audio.stft import hann_window, istft, num_frames, reflect_pad, stft

CASES = [(2048, 320), (1024, 160), (512, 128), (256, 96), (100, 33), (64, 64), (128, 1)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stft_by_definition(x, window_size, hop_size):
    padded = np.pad(x.astype(np.float64), window_size // 2, mode='reflect')
    n = np.arange(window_size)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / window_size)
    bins = np.exp(-2j * np.pi * np.outer(np.arange(window_size // 2 + 1), n) / window_size)
    starts = range(0, len(x) + 1, hop_size)
    return np.stack([bins @ (window * padded[s : s + window_size]) for s in starts])


@pytest.mark.parametrize(('window_size', 'hop_size'), CASES)
def test_equals_its_definition(window_size, hop_size):
    x = noise(3 * window_size + 17)
    expected = stft_by_definition(x, window_size, hop_size)
    actual = stft(x, window_size, hop_size)
    assert actual.dtype == jnp.complex64
    assert actual.shape == expected.shape == (num_frames(len(x), hop_size), window_size // 2 + 1)
    np.testing.assert_allclose(actual, expected, atol=1e-6 * np.abs(expected).max() * 5)


@pytest.mark.parametrize(('window_size', 'hop_size'), [c for c in CASES if c[1] <= c[0] // 2])
@pytest.mark.parametrize('length', [1, 2, 63, 700, 2049])
def test_inverse_restores_the_signal(window_size, hop_size, length):
    x = noise(2, length)
    restored = istft(stft(x, window_size, hop_size), window_size, hop_size, length=length)
    assert restored.shape == x.shape
    np.testing.assert_allclose(restored, x, atol=1e-6 * max(1, np.abs(x).max()))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40).map(lambda k: 2 * k), st.data(), st.integers(1, 200), st.integers(0, 2**31))
def test_inverse_of_any_window_hop_and_length(window_size, data, length, seed):
    hop_size = data.draw(st.integers(1, max(1, window_size // 2)))
    x = noise(length, seed=seed)
    restored = istft(stft(x, window_size, hop_size), window_size, hop_size, length=length)
    # The Hann window is zero at its first sample: with a window of 2 some samples are in no frame at all.
    if window_size >= 4:
        # A sample that frames cover only with their ends is divided by little: its rounding grows by one over the root
        # of the window's energy there.
        square, energy = hann_window(window_size) ** 2, np.zeros(length + 2 * window_size)
        for start in range(0, length + 1, hop_size):
            energy[start : start + window_size] += square
        energy = energy[window_size // 2 :][:length]
        error = np.abs(restored - x) * np.sqrt(np.minimum(energy, 1))
        assert error.max() <= 1e-6 * max(1, np.abs(x).max())


def test_short_signals_reflect_back_and_forth():
    assert reflect_pad(np.array([1.0, 2.0, 3.0]), 8).tolist() == [1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3]
    assert reflect_pad(jnp.array([1.0, 2.0, 3.0]), 8).tolist() == [1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3]
    assert reflect_pad(np.array([5.0]), 4).tolist() == [5, 5, 5, 5, 5]
    with pytest.raises(ValueError, match='no samples'):
        reflect_pad(np.zeros((2, 0)), 4)


def test_jit_batch_and_other_float_types():
    x = noise(2, 3, 1000)
    spectrum = jax.jit(stft, static_argnums=(1, 2))(x, 256, 64)
    np.testing.assert_allclose(spectrum[1, 2], stft(x[1, 2], 256, 64), atol=1e-4)
    assert stft(x.astype(jnp.bfloat16), 256, 64).dtype == jnp.complex64
    assert istft(spectrum, 256, 64, length=1000).dtype == jnp.float32


def test_masked_frames_are_as_if_they_were_not_there():
    window, hop = 256, 64
    x = noise(640)
    frames = num_frames(640, hop)
    spectrum = stft(x, window, hop)
    rest = noise(5, window // 2 + 1, seed=1)
    padded = jnp.concatenate([spectrum, rest.astype(np.complex64)])
    masked = istft(padded, window, hop, length=640, frame_count=jnp.array(frames))
    np.testing.assert_allclose(masked, istft(spectrum, window, hop, length=640), atol=1e-6)


def test_length_beyond_the_last_frame_is_silent():
    spectrum = stft(noise(256), 128, 64)
    longer = istft(spectrum, 128, 64, length=1000)
    assert longer.shape == (1000,)
    assert not np.any(longer[256 + 64 :])


def test_gradient_of_the_round_trip_is_the_identity():
    x, direction = noise(300), noise(300, seed=1)
    gradient = jax.grad(lambda x: jnp.vdot(istft(stft(x, 64, 16), 64, 16, length=300), direction))(x)
    np.testing.assert_allclose(gradient, direction, atol=1e-5)


def test_window_is_periodic_hann():
    window = hann_window(8)
    assert window[0] == 0
    assert window[4] == 1
    np.testing.assert_allclose(window[1:], window[1:][::-1], atol=1e-7)


@pytest.mark.parametrize(('window_size', 'hop_size'), [(0, 1), (7, 2), (8, 0), (8, 9)])
def test_impossible_sizes_are_refused(window_size, hop_size):
    with pytest.raises(ValueError, match='must be even'):
        stft(noise(100), window_size, hop_size)


def test_wrong_number_of_bins_is_refused():
    with pytest.raises(ValueError, match='bins do not belong'):
        istft(jnp.zeros((3, 64), jnp.complex64), 64, 16, length=10)


def test_annotated_shapes_are_checked_while_the_tests_run():
    spectrum = np.zeros((2, 5, 33), np.complex64)
    with pytest.raises(jaxtyping.TypeCheckError, match='frame_count'):
        istft(spectrum, 64, 32, length=100, frame_count=np.array([1, 2, 3]))
