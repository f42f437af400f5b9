"""Scores of speech against Loizou's own example, and against an independent implementation.

The numbers of `signals()` are of pysepm (github.com/schmiph2/pysepm), whose results are those of Loizou's MATLAB files;
STOI's of pystoi itself.
"""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from audiosep_jax import speech_metrics
from audiosep_jax.errors import ConfigError
from audiosep_jax.evaluation.speech import (
    SpeechScorer,
    check_installed,
    composite,
    log_likelihood_ratio,
    segmental_snr,
    speech_scores,
    weighted_slope,
)


def signals():
    """Noise with a formant under three syllables, and the same with noise of another colour; 1.5 s at 16 kHz."""
    rng = np.random.default_rng(7)
    time = np.arange(24000) / 16000
    envelope = np.maximum(np.sin(2 * np.pi * 1.5 * time), 0.01)
    clean = 0.05 * envelope * lfilter([1], [1, -1.6, 0.81], rng.standard_normal(24000))
    return clean, clean + 0.01 * lfilter([1], [1, -0.9], rng.standard_normal(24000))


def test_composite_of_the_example_that_comes_with_the_measure():
    """readme.txt of Loizou's composite.m: sp09.wav and enhanced_logmmse.wav."""
    opinions = composite(pesq=2.255732, llr=0.681368, wss=49.671978, ssnr=3.991727)
    assert opinions.csig == pytest.approx(3.3050, abs=1e-4)
    assert opinions.cbak == pytest.approx(2.6160, abs=1e-4)
    assert opinions.covl == pytest.approx(2.7133, abs=1e-4)


@given(st.floats(-0.5, 4.64), st.floats(0, 10), st.floats(0, 200), st.floats(-10, 35))
def test_opinions_are_limited(pesq, llr, wss, ssnr):
    opinions = composite(pesq, llr, wss, ssnr)
    assert all(1 <= value <= 5 for value in (opinions.csig, opinions.cbak, opinions.covl))


def test_parts_agree_with_another_implementation():
    clean, noisy = signals()
    assert segmental_snr(clean, noisy) == pytest.approx(2.346214841036745, rel=1e-9)
    assert log_likelihood_ratio(clean, noisy) == pytest.approx(0.4747427368999817, rel=1e-6)
    assert weighted_slope(clean, noisy) == pytest.approx(21.869878782589517, rel=1e-9)


def test_all_scores_agree_with_another_implementation():
    scores = speech_scores(*signals())
    expected = {'PESQ': 2.434709, 'STOI': 0.966731, 'CSIG': 3.875791, 'CBAK': 2.792513, 'COVL': 3.157784}
    expected['SSNR'] = 2.346215
    assert scores == pytest.approx(expected, abs=1e-5)


def test_a_perfect_estimate():
    clean, _ = signals()
    scores = speech_scores(clean, clean)
    assert scores['PESQ'] == pytest.approx(4.644, abs=1e-3)  # the top of P.862.2's scale
    assert scores['STOI'] == pytest.approx(1, abs=1e-6)
    assert scores['CSIG'] == scores['CBAK'] == scores['COVL'] == 5
    assert scores['SSNR'] == pytest.approx(35)
    assert weighted_slope(clean, clean) == 0
    assert log_likelihood_ratio(clean, clean) == pytest.approx(0, abs=1e-9)


@settings(max_examples=10)
@given(st.floats(-20, 20))
def test_shape_measures_do_not_see_the_level(gain_db):
    clean, noisy = signals()
    louder = noisy * 10 ** (gain_db / 20)
    assert log_likelihood_ratio(clean, louder) == pytest.approx(log_likelihood_ratio(clean, noisy), rel=1e-3)
    assert weighted_slope(clean, louder) == pytest.approx(weighted_slope(clean, noisy), rel=0.02)


def test_what_cannot_be_scored_is_left_out():
    clean, noisy = signals()
    silence = np.zeros_like(clean)
    for reference, estimate, absent in (
        (clean, silence, {'PESQ', 'CSIG', 'CBAK', 'COVL'}),
        (silence, noisy, {'PESQ', 'STOI', 'CSIG', 'CBAK', 'COVL'}),
        (clean[:300], noisy[:300], {'PESQ', 'STOI', 'CSIG', 'CBAK', 'COVL', 'SSNR'}),
    ):
        scores = speech_scores(reference, estimate)
        assert absent.isdisjoint(scores)
        assert np.isfinite([*scores.values()]).all()
    with pytest.raises(ValueError, match='one length'):
        speech_scores(clean, noisy[1:])


def test_absent_packages_are_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(speech_metrics.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=r'need pesq and pystoi.*audiosep_jax\[speech\]'):
        check_installed()


def test_workers_score_at_16_khz_and_end():
    clean, noisy = (np.repeat(signal, 2).astype(np.float32) for signal in signals())
    scorer = SpeechScorer(32000)
    found = {(i, row): scores for i, row, scores in scorer.scores({5: (clean, {'a': noisy, 'b': clean})})}
    scorer.close()
    assert found[5, 'a'].keys() == found[5, 'b'].keys() == {'PESQ', 'STOI', 'CSIG', 'CBAK', 'COVL', 'SSNR'}
    assert found[5, 'a']['PESQ'] < found[5, 'b']['PESQ'] == pytest.approx(4.644, abs=1e-3)


def test_importing_needs_neither_package():
    assert 'audiosep_jax.evaluation.speech' in sys.modules
    assert not any(name in vars(speech_metrics) for name in ('pesq', 'pystoi', 'stoi'))
