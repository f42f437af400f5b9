"""Golden values: the original's calculate_sdr and calculate_sisdr (tests/reference/metrics_reference.npz)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.original_metrics import calculate_sdr, calculate_sisdr
from support.paths import REFERENCE

from audiosep_jax import metrics

GOLDEN = REFERENCE / 'metrics_reference.npz'
few = settings(max_examples=15)


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def signals(seed, count=2, num_samples=400):
    return 0.1 * np.random.default_rng(seed).standard_normal((count, num_samples), np.float32)


@pytest.mark.parametrize('name', ['sdr', 'si_sdr'])
def test_agree_with_the_original_silence_included(golden, name):
    assert not golden['est'][6].any()
    assert not golden['ref'][7].any()
    values = getattr(metrics, name)(golden['ref'], golden['est'])
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, golden[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', ['sdr', 'si_sdr'])
def test_jit_vmap_and_leading_axes_change_nothing(golden, name):
    metric = getattr(metrics, name)
    ref, est = golden['ref'], golden['est']
    np.testing.assert_allclose(jax.jit(jax.vmap(metric))(ref, est), golden[name], rtol=0, atol=1e-4)
    stacked = metric(ref.reshape(2, 4, -1), est.reshape(2, 4, -1))
    np.testing.assert_allclose(stacked, golden[name].reshape(2, 4), rtol=0, atol=1e-4)
    np.testing.assert_allclose(metric(ref[0], est[0]), golden[name][0], rtol=0, atol=1e-4)


def test_sdri_is_the_difference_of_two_sdrs(golden):
    ref, est = golden['ref'], golden['est']
    mixture = ref + signals(0, *ref.shape)
    expected = golden['sdr'] - [original_sdr(r, m) for r, m in zip(ref, mixture, strict=True)]
    np.testing.assert_allclose(metrics.sdri(ref, est, mixture), expected, rtol=0, atol=1e-4)


def original_sdr(ref, est):
    return 10 * np.log10(max(np.mean(ref**2.0), 1e-10) / max(np.mean((est - ref) ** 2.0), 1e-10))


def test_thirty_seconds_at_32_khz_keep_the_precision():
    ref, noise = signals(1, num_samples=960_000).astype(np.float64)
    est = ref + 0.3 * noise
    np.testing.assert_allclose(metrics.sdr(ref, est), original_sdr(ref, est), rtol=0, atol=1e-4)
    projection = (ref @ est) / (ref @ ref) * ref
    expected = 10 * np.log10((projection @ projection) / ((est - projection) @ (est - projection)))
    np.testing.assert_allclose(metrics.si_sdr(ref, est), expected, rtol=0, atol=1e-4)


def test_all_silent_is_zero_decibels():
    silence = np.zeros(100, np.float32)
    assert metrics.sdr(silence, silence) == 0
    assert metrics.si_sdr(silence, silence) == 0
    assert metrics.sdri(silence, silence, silence) == 0


def test_a_perfect_estimate_meets_the_floor():
    ref = np.ones(100, np.float32)
    np.testing.assert_allclose(metrics.sdr(ref, ref), 100, atol=1e-4)


def test_a_loud_estimate_of_silence_stays_finite():
    assert np.isfinite(metrics.si_sdr(np.zeros(100, np.float32), np.full(100, 1e15, np.float32)))


def test_nan_is_not_hidden_by_the_floor():
    ref, est = signals(2)
    est[3] = np.nan
    assert np.isnan(metrics.sdr(ref, est))
    assert np.isnan(metrics.si_sdr(ref, est))


def test_integer_samples_are_computed_as_floats():
    ref, est = np.array([[3, -4, 5], [2, -4, 5]], np.int16) * 5000
    np.testing.assert_allclose(metrics.sdr(ref, est), 10 * np.log10(50), atol=1e-4)


@pytest.mark.parametrize('level', [1e-5, 3e-4, 1e-3])
def test_si_sdr_of_near_silence_has_the_originals_epsilon(level):
    # Orthogonal signals with energies of level ** 2, near the epsilon, so that all four places that add it matter.
    ref, est = level * np.eye(2, dtype=np.float64)
    eps = np.finfo(np.float32).eps
    projection = (eps + ref @ est) / (ref @ ref + eps) * ref
    residual = est - projection
    expected = 10 * np.log10((eps + projection @ projection) / (eps + residual @ residual))
    np.testing.assert_allclose(metrics.si_sdr(ref, est), expected, rtol=0, atol=1e-4)


@few
@given(seed=st.integers(0, 2**32), scale=st.floats(0.05, 50), sign=st.sampled_from([-1, 1]))
def test_si_sdr_does_not_see_the_scale_of_either_signal(seed, scale, sign):
    ref, noise = signals(seed)
    est = ref + noise
    expected = metrics.si_sdr(ref, est)
    np.testing.assert_allclose(metrics.si_sdr(ref, sign * scale * est), expected, rtol=0, atol=2e-3)
    np.testing.assert_allclose(metrics.si_sdr(sign * scale * ref, est), expected, rtol=0, atol=2e-3)


@few
@given(seed=st.integers(0, 2**32))
def test_sdri_of_the_mixture_itself_is_zero(seed):
    ref, mixture = signals(seed)
    assert metrics.sdri(ref, mixture, mixture) == 0


@few
@given(seed=st.integers(0, 2**32), gain_db=st.floats(-40, 40))
def test_sdr_falls_by_the_gain_of_the_error(seed, gain_db):
    ref, noise = signals(seed)
    fallen = metrics.sdr(ref, ref + noise) - metrics.sdr(ref, ref + noise * 10 ** (gain_db / 20))
    np.testing.assert_allclose(fallen, gain_db, rtol=0, atol=1e-2)


@few
@given(seed=st.integers(0, 2**32), noise_db=st.floats(-30, 30))
def test_si_sdr_is_the_sdr_against_the_projection(seed, noise_db):
    ref, noise = signals(seed)
    est = ref + noise * 10 ** (noise_db / 20)
    projection = (ref @ est) / (ref @ ref) * ref
    np.testing.assert_allclose(metrics.si_sdr(ref, est), metrics.sdr(projection, est), rtol=0, atol=2e-3)


@pytest.mark.parametrize('metric', [metrics.sdr, metrics.si_sdr])
def test_shapes_that_differ_are_refused(metric):
    with pytest.raises(ValueError, match=r'^reference \[2, 10\] and estimate \[10\] differ in shape$'):
        metric(np.zeros((2, 10)), np.zeros(10))
    with pytest.raises(ValueError, match='hold no samples'):
        metric(np.zeros((2, 0)), np.zeros((2, 0)))
    with pytest.raises(ValueError, match='hold no samples'):
        metric(1.0, 1.0)


def test_sdri_names_the_signal_that_does_not_fit():
    with pytest.raises(ValueError, match=r'reference \[10\] and mixture \[9\] differ'):
        metrics.sdri(np.zeros(10), np.zeros(10), np.zeros(9))
    with pytest.raises(ValueError, match=r'reference \[10\] and estimate \[9\] differ'):
        metrics.sdri(np.zeros(10), np.zeros(9), np.zeros(10))


def test_zeros_behind_the_signals_change_nothing():
    ref, noise = signals(3)
    est, mixture = ref + noise, ref + 2 * noise
    lengths = np.array([len(ref), 100])
    rows = [np.stack([x, np.where(np.arange(len(x)) < 100, x, 0)]) for x in (ref, est, mixture)]
    padded = [np.pad(x, ((0, 0), (0, 77))) for x in rows]
    for got, metric in (
        (metrics.sdr(*padded[:2], num_samples=lengths), metrics.sdr),
        (metrics.si_sdr(*padded[:2]), metrics.si_sdr),
    ):
        expected = [metric(ref[:n], est[:n]) for n in lengths]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    expected = [metrics.sdri(ref[:n], est[:n], mixture[:n]) for n in lengths]
    np.testing.assert_allclose(metrics.sdri(*padded, num_samples=lengths), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('level', [1e-3, 1.0])
def test_ten_seconds_agree_with_the_originals_float32(level):
    """Sums of 320,000 squares in float32: the order of additions must not cost 1e-4 dB."""
    ref, noise = signals(5, num_samples=320000)
    est = ref + level * noise
    np.testing.assert_allclose(metrics.sdr(ref, est), calculate_sdr(ref, est), rtol=0, atol=1e-4)
    np.testing.assert_allclose(metrics.si_sdr(ref, est), calculate_sisdr(ref, est), rtol=0, atol=1e-4)
