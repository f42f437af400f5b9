"""Loudness as ITU-R BS.1770 and the test signals of EBU Tech 3341 say."""

import numpy as np
import pytest

from audiosep_jax.audio.loudness import LoudnessMeter


def tone(seconds, rate, decibels, hz=1000.0):
    return 10 ** (decibels / 20) * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def measured(x, rate, block=5000):
    x = np.atleast_2d(x)
    meter = LoudnessMeter(rate, len(x))
    for start in range(0, x.shape[-1], block):
        meter.push(x[:, start : start + block])
    return meter.integrated()


@pytest.mark.parametrize('rate', [16000, 44100, 48000, 192000])
def test_full_scale_at_997_hz_is_minus_three(rate):
    """BS.1770-4, annex 1: a 0 dBFS sine of 997 Hz in one channel gives −3.01 LKFS."""
    assert measured(tone(5, rate, 0.0, 997.0), rate) == pytest.approx(-3.01, abs=0.05)


def test_stereo_tone():
    """EBU Tech 3341, case 1: 1000 Hz at −23 dBFS in both channels gives −23.0 LUFS."""
    assert measured(np.stack([tone(20, 48000, -23.0)] * 2), 48000) == pytest.approx(-23.0, abs=0.1)


def test_the_quiet_parts_do_not_count():
    """EBU Tech 3341, case 3: −36, −23 and −36 dBFS for 10, 60 and 10 s give −23.0 LUFS."""
    x = np.concatenate([tone(s, 48000, level) for s, level in ((10, -36.0), (60, -23.0), (10, -36.0))])
    assert measured(np.stack([x, x]), 48000) == pytest.approx(-23.0, abs=0.1)


def test_blocks_make_no_difference():
    x = np.random.default_rng(0).standard_normal((2, 20_000)) * 0.1
    assert measured(x, 8000, 77) == pytest.approx(measured(x, 8000, 20_000), abs=1e-9)


def test_silence_and_short_sounds():
    assert measured(np.zeros(8000), 8000) == -np.inf
    assert LoudnessMeter(8000, 1).integrated() == -np.inf
    assert measured(tone(0.05, 48000, 0.0), 48000) == pytest.approx(-3.0, abs=1.0)
