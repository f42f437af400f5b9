"""Each loss against its formula, written again in NumPy."""

import functools
import re
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from audiosep_jax.parallel.mesh import MeshConfig, batch_sharded, by_clip, make_mesh
from audiosep_jax.training.losses import LossName, hearing_weights, l1_waveform, mean_loss

RATE = 16000
NAMES = get_args(LossName)


def sounds(seed=0, clips=5, num_samples=3000):
    """(estimates, targets, mixtures), float32 [B, T], with errors of unlike sizes, and levels from -6 to -46 dB."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((3, clips, num_samples))
    targets, mixtures = noise[0], noise[0] + noise[1]
    estimates = targets + np.logspace(0, -3, clips)[:, None] * noise[2]
    gains = np.logspace(-0.3, -2.3, clips)[:, None]
    return tuple((gains * x).astype(np.float32) for x in (estimates, targets, mixtures))


@functools.cache
def value_and_gradient(name):
    return jax.jit(jax.value_and_grad(mean_loss(name, RATE)))


def power(x):
    return np.mean(np.square(x, dtype=np.float64), axis=-1)


def test_is_the_mean_absolute_error():
    estimate, target = jnp.array([[0.5, -0.5], [1.0, 0.0]]), jnp.array([[0.0, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(l1_waveform(estimate, target), (0.5 + 1 + 1 + 0) / 4)


def test_computes_in_float32_whatever_the_network_gives():
    # bfloat16 has 8 bits: 256 + 1 is 256 there, and a sum in bfloat16 would stop growing.
    estimate = jnp.ones([1, 1000], jnp.bfloat16)
    loss = l1_waveform(estimate, jnp.zeros([1, 1000]))
    assert loss.dtype == jnp.float32
    assert loss == 1


def test_gradient_is_the_sign_and_zero_where_equal():
    gradient = jax.grad(l1_waveform)(jnp.array([[1.0, -1.0, 0.0, 3.0]]), jnp.array([[0.0, 0.0, 0.0, 4.0]]))
    np.testing.assert_allclose(gradient, [[0.25, -0.25, 0.0, -0.25]])


def test_a_non_finite_estimate_gives_a_non_finite_loss():
    target = jnp.zeros([1, 2])
    assert jnp.isnan(l1_waveform(jnp.array([[jnp.nan, 0.0]]), target))
    assert jnp.isinf(l1_waveform(jnp.array([[-jnp.inf, 0.0]]), target))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r'estimate \[2, 5\] and target \[5\] differ in shape'):
        l1_waveform(jnp.zeros([2, 5]), jnp.zeros([5]))
    for name in set(NAMES) - {'l1'}:
        with pytest.raises(ValueError, match=r'estimate \[2, 5\] and target \[1, 5\] differ in shape'):
            mean_loss(name, RATE)(np.zeros([2, 5]), np.zeros([1, 5]), np.zeros([1, 5]))
        with pytest.raises(ValueError, match=r'mixture \[1, 5\] and target \[2, 5\] differ in shape'):
            mean_loss(name, RATE)(np.zeros([2, 5]), np.zeros([2, 5]), np.zeros([1, 5]))


# ---- Every loss ----


def by_formula(name, estimates, targets, mixtures):
    """float64 [B]: the loss of each clip, none of whose targets is silent."""
    estimates, targets, mixtures = (np.asarray(x, np.float64) for x in (estimates, targets, mixtures))
    if name == 'snr':
        return 10 * np.log10((power(estimates - targets) + 0.001 * power(targets)) / power(targets))
    if name == 'si-sdr':
        scale = np.sum(estimates * targets, -1) / np.sum(targets**2, -1)
        kept, rest = power(scale[:, None] * targets), power(estimates - scale[:, None] * targets)
        return 10 * np.log10((rest + 0.001 * kept) / (kept + 0.001 * rest))
    if name == 'log-wmse':
        errors, levels = weighted(estimates - targets), np.sqrt(power(weighted(mixtures)))
        errors = errors / levels[:, None]
        errors[np.abs(errors) < 10 ** (-68 / 20)] = 0
        return 4 * np.log(power(errors) + 1e-8)
    losses = np.mean(np.abs(estimates - targets), axis=-1)
    if name == 'l1-mrstft':
        for size in (512, 1024, 2048):
            window = signal.get_window('hann', size)
            bins = [np.abs(spectrum(x, window)) / np.sqrt(np.sum(window**2)) for x in (estimates, targets)]
            losses = losses + np.mean(np.abs(bins[0] - bins[1]), axis=(-2, -1)) / 3
    return losses


def spectrum(waveforms, window):
    size = len(window)
    padded = np.pad(waveforms, [(0, 0), (size // 2, size // 2)], mode='reflect')
    frames = np.lib.stride_tricks.sliding_window_view(padded, size, axis=-1)[:, :: size // 4]
    return np.fft.rfft(frames * window, axis=-1)


def digital_filters(frequencies, rate=44100):
    """The weighting of logWMSE by digital filters: two from the audio EQ cookbook, and Butterworth's from SciPy."""

    def angles(corner, q):
        return np.cos(2 * np.pi * corner / rate), np.sin(2 * np.pi * corner / rate) / 2 / q

    cos, alpha = angles(1500, np.sqrt(0.5))
    a = 10 ** (5 / 40)
    root = 2 * np.sqrt(a) * alpha
    high_shelf = (
        [a * (a + 1 + (a - 1) * cos + root), -2 * a * (a - 1 + (a + 1) * cos), a * (a + 1 + (a - 1) * cos - root)],
        [a + 1 - (a - 1) * cos + root, 2 * (a - 1 - (a + 1) * cos), a + 1 - (a - 1) * cos - root],
    )
    cos, alpha = angles(500, 1.5 * np.sqrt(0.5))
    a = 10 ** (2.5 / 40)
    peak = [1 + alpha * a, -2 * cos, 1 - alpha * a], [1 + alpha / a, -2 * cos, 1 - alpha / a]
    high_pass, low_pass = signal.butter(2, 120, 'high', fs=rate), signal.butter(1, 10000, fs=rate)
    filters = high_shelf, peak, high_pass, low_pass, low_pass
    return np.prod([np.abs(signal.freqz(*f, worN=frequencies, fs=rate)[1]) for f in filters], axis=0)


def weighted(waveforms):
    """Filters in double precision, with so many zeros behind that nothing comes round."""
    size = 2**15
    weights = digital_filters(np.fft.rfftfreq(size, 1 / RATE))
    return np.fft.irfft(np.fft.rfft(waveforms, size) * weights, size)[:, : waveforms.shape[1]]


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_each_loss_is_its_formula(name, jit):
    given = sounds()
    loss = mean_loss(name, RATE)
    np.testing.assert_allclose((jax.jit(loss) if jit else loss)(*given), np.mean(by_formula(name, *given)), rtol=2e-4)
    for clip in range(5):
        one = [x[clip : clip + 1] for x in given]
        np.testing.assert_allclose(loss(*one), by_formula(name, *one)[0], rtol=2e-4)


def test_l1_is_to_the_bit_what_it_was():
    estimates, targets, mixtures = map(jnp.asarray, sounds())
    difference = estimates - targets
    assert mean_loss('l1', RATE)(estimates, targets, mixtures) == jnp.mean(difference * jnp.sign(difference))


@pytest.mark.parametrize('name', NAMES)
def test_the_mean_of_equal_parts_is_that_of_the_whole(name):
    given = sounds(clips=8)
    loss = mean_loss(name, RATE)
    parts = [loss(*(x[i::2] for x in given)) for i in range(2)]
    np.testing.assert_allclose(np.mean(parts), loss(*given), rtol=1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_clips_on_two_devices_give_the_same_and_none_moves(name):
    given, mesh = sounds(clips=4), make_mesh(MeshConfig(), jax.devices()[:2])
    split = jax.jit(jax.value_and_grad(mean_loss(name, RATE, by_clip(mesh))), in_shardings=batch_sharded(mesh))
    assert not re.search(r'all-gather|all-to-all|collective-permute', split.lower(*given).compile().as_text())
    for found, expected in zip(split(*given), value_and_gradient(name)(*given), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('silent', [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_silence_gives_finite_losses_and_gradients(name, silent):
    given = [np.zeros_like(x) if i in silent else x for i, x in enumerate(sounds(clips=2))]
    value, gradient = value_and_gradient(name)(*given)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert np.max(np.abs(gradient)) < 1e4
    _, of_quiet = value_and_gradient(name)(*(np.float32(1e-4) * x for x in given))
    assert np.all(np.isfinite(of_quiet))
    if {0, 1} <= set(silent):
        assert not np.any(gradient), 'nothing pulls at a silent estimate of a silent target'


@pytest.mark.parametrize('name', NAMES)
def test_a_target_that_is_met_gives_no_gradient(name):
    _, targets, mixtures = sounds(clips=2)
    _, gradient = value_and_gradient(name)(targets, targets, mixtures)
    assert np.max(np.abs(gradient)) < 1e-3


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_and_non_finite_estimates(name):
    estimates, targets, mixtures = sounds()
    rounded = jnp.asarray(estimates, jnp.bfloat16)
    loss = mean_loss(name, RATE)(rounded, targets, mixtures)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, mean_loss(name, RATE)(rounded.astype(jnp.float32), targets, mixtures), rtol=1e-6)
    estimates[0, 0] = np.nan
    assert not np.isfinite(mean_loss(name, RATE)(estimates, targets, mixtures))


@pytest.mark.parametrize('name', ['snr', 'si-sdr', 'log-wmse'])
def test_ratios_do_not_depend_on_the_level(name):
    given = sounds()
    loss = mean_loss(name, RATE)
    np.testing.assert_allclose(loss(*(0.1 * x for x in given)), loss(*given), rtol=1e-5)


# ---- Thresholds ----


@pytest.mark.parametrize('name', ['snr', 'si-sdr'])
def test_a_perfect_estimate_has_30_decibels_and_half_the_mixture_is_better_than_the_mixture(name):
    _, targets, mixtures = sounds()
    loss = mean_loss(name, RATE)
    np.testing.assert_allclose(loss(targets, targets, mixtures), -30, atol=1e-4)
    assert loss(0.5 * mixtures, targets, mixtures) <= loss(mixtures, targets, mixtures) + 1e-5


@pytest.mark.parametrize('name', ['snr', 'si-sdr'])
def test_a_silent_target_is_compared_with_the_mixture(name):
    estimates, targets, mixtures = sounds()
    for silence in (np.zeros_like(targets), 1e-4 * targets):
        for estimate, expected in ((estimates, power(estimates) / power(mixtures)), (silence, np.zeros(5))):
            found = mean_loss(name, RATE)(estimate, silence, mixtures)
            np.testing.assert_allclose(found, np.mean(10 * np.log10(expected + 0.01)), rtol=1e-3)


def test_si_sdr_is_bounded_and_blind_to_the_level_of_the_estimate():
    estimates, targets, mixtures = sounds()
    loss = mean_loss('si-sdr', RATE)
    for scale in (0.01, -1, 100):
        np.testing.assert_allclose(loss(scale * estimates, targets, mixtures), loss(estimates, targets, mixtures), 1e-3)
    time = np.arange(3000)[None] / 3000
    sine, cosine = (0.1 * f(2 * np.pi * 10 * time).astype(np.float32) for f in (np.sin, np.cos))
    value, gradient = jax.value_and_grad(loss)(cosine, sine, sine + cosine)
    np.testing.assert_allclose(value, 30, atol=1e-3)
    assert np.max(np.abs(gradient)) < 1


# ---- logWMSE ----


def test_the_weighting_is_that_of_the_digital_filters_and_of_the_publication():
    frequencies = np.linspace(20, 20000, 2000)
    np.testing.assert_allclose(hearing_weights(frequencies), digital_filters(frequencies), rtol=1e-6)
    # From tests/test_metric.py of github.com/nomonosound/log-wmse-audio-quality.
    decibels = 20 * np.log10(hearing_weights(np.array([50.0, 1000, 3000, 16000])))
    np.testing.assert_allclose(decibels, [-16, 1.3, 4.2, -11.8], atol=1)
    np.testing.assert_allclose(hearing_weights(np.array([0.0, 22050, 24000])), 0, atol=1e-12)


def test_log_wmse_has_the_published_values():
    """The same publication's tests, of a metric whose sign is the opposite of the loss."""
    rng, rate = np.random.default_rng(42), 44100
    loss = mean_loss('log-wmse', rate)
    mixture = rng.uniform(-1, 1, (1, rate)).astype(np.float32)
    silence = np.zeros_like(mixture)
    np.testing.assert_allclose(loss(0.1 * mixture, silence, mixture), -18.42, atol=0.01)
    np.testing.assert_allclose(loss(silence, silence, silence), -73.68, atol=0.01)
    np.testing.assert_allclose(loss(mixture, mixture, mixture), -73.68, atol=0.01)
    target = rng.uniform(-0.03, 0.3, (1, rate)).astype(np.float32)
    low, high = (0.3 * np.sin(2 * np.pi * hz * np.arange(rate) / rate).astype(np.float32) for hz in (50, 3000))
    mixture = target + low + high
    without_low = loss(target + 0.05 * low + high, target, mixture)
    without_high = loss(target + low + 0.05 * high, target, mixture)
    np.testing.assert_allclose(without_low - without_high, 17.2, atol=0.5)
    target, noise, hiss = (rng.uniform(-peak, peak, (1, rate)).astype(np.float32) for peak in (0.1, 1, 1e-4))
    mixture = target + noise
    np.testing.assert_allclose(loss(target + hiss, target, mixture), -73.68, atol=0.01)
