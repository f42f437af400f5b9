"""Compares the scores of speech with independent implementations.

The expected numbers for `speech_signals()` are from pysepm (github.com/schmiph2/pysepm), and STOI's from pystoi itself.
"""

import sys

import numpy as np
import pytest
from support.speech_signals import speech_signals

from audiosep_jax.errors import ConfigError
from audiosep_jax.evaluation import speech
from audiosep_jax.evaluation.composite import log_likelihood_ratio, weighted_slope
from audiosep_jax.evaluation.speech import SpeechScorer, check_installed, speech_scores


def test_all_scores_agree_with_another_implementation():
    scores = speech_scores(*speech_signals())
    expected = {'PESQ': 2.434709, 'STOI': 0.966731, 'CSIG': 3.875791, 'CBAK': 2.792513, 'COVL': 3.157784}
    expected['SSNR'] = 2.346215
    assert scores == pytest.approx(expected, abs=1e-5)


def test_a_perfect_estimate():
    clean, _ = speech_signals()
    scores = speech_scores(clean, clean)
    assert scores['PESQ'] == pytest.approx(4.644, abs=1e-3)  # the top of P.862.2's scale
    assert scores['STOI'] == pytest.approx(1, abs=1e-6)
    assert scores['CSIG'] == scores['CBAK'] == scores['COVL'] == 5
    assert scores['SSNR'] == pytest.approx(35)
    assert weighted_slope(clean, clean) == 0
    assert log_likelihood_ratio(clean, clean) == pytest.approx(0, abs=1e-9)


def test_scores_that_are_not_defined_are_left_out():
    clean, noisy = speech_signals()
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


def test_missing_packages_are_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(speech.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=r'need pesq and pystoi.*audiosep_jax\[speech\]'):
        check_installed()


def test_workers_score_at_16_khz_and_end():
    clean, noisy = (np.repeat(signal, 2).astype(np.float32) for signal in speech_signals())
    scorer = SpeechScorer(32000)
    found = {(i, row): scores for i, row, scores in scorer.scores({5: (clean, {'a': noisy, 'b': clean})})}
    scorer.close()
    assert found[5, 'a'].keys() == found[5, 'b'].keys() == {'PESQ', 'STOI', 'CSIG', 'CBAK', 'COVL', 'SSNR'}
    assert found[5, 'a']['PESQ'] < found[5, 'b']['PESQ'] == pytest.approx(4.644, abs=1e-3)


def test_importing_needs_neither_package():
    assert 'audiosep_jax.evaluation.speech' in sys.modules
    assert not any(name in vars(speech) for name in ('pesq', 'pystoi', 'stoi'))
