"""Compares the composite measures with Loizou's own example and with an independent implementation.

The expected numbers for `speech_signals()` are from pysepm (github.com/schmiph2/pysepm), whose results are those of
Loizou's MATLAB files.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.speech_signals import speech_signals

from audiosep_jax.evaluation.composite import composite, log_likelihood_ratio, segmental_snr, weighted_slope


def test_opinions_of_the_example_that_comes_with_the_measure():
    """The readme.txt of Loizou's composite.m gives these numbers for sp09.wav and enhanced_logmmse.wav."""
    opinions = composite(pesq=2.255732, llr=0.681368, wss=49.671978, ssnr=3.991727)
    assert opinions.csig == pytest.approx(3.3050, abs=1e-4)
    assert opinions.cbak == pytest.approx(2.6160, abs=1e-4)
    assert opinions.covl == pytest.approx(2.7133, abs=1e-4)


@given(st.floats(-0.5, 4.64), st.floats(0, 10), st.floats(0, 200), st.floats(-10, 35))
def test_opinions_are_limited(pesq, llr, wss, ssnr):
    opinions = composite(pesq, llr, wss, ssnr)
    assert all(1 <= value <= 5 for value in (opinions.csig, opinions.cbak, opinions.covl))


def test_parts_agree_with_another_implementation():
    clean, noisy = speech_signals()
    assert segmental_snr(clean, noisy) == pytest.approx(2.346214841036745, rel=1e-9)
    assert log_likelihood_ratio(clean, noisy) == pytest.approx(0.4747427368999817, rel=1e-6)
    assert weighted_slope(clean, noisy) == pytest.approx(21.869878782589517, rel=1e-9)


@settings(max_examples=10)
@given(st.floats(-20, 20))
def test_spectral_measures_ignore_the_level(gain_db):
    clean, noisy = speech_signals()
    louder = noisy * 10 ** (gain_db / 20)
    assert log_likelihood_ratio(clean, louder) == pytest.approx(log_likelihood_ratio(clean, noisy), rel=1e-3)
    assert weighted_slope(clean, louder) == pytest.approx(weighted_slope(clean, noisy), rel=0.02)
