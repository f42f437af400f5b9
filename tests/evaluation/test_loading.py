"""Compares waveforms with those of librosa and of the DCASE evaluator."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import LeftOutError
from audiosep_jax.evaluation.benchmark import Item
from audiosep_jax.evaluation.loading import load_item, load_mono

NOISE = np.random.default_rng(0)


def write(path, samples, rate=16000, channels=1, level=0.1):
    audio = NOISE.uniform(-level, level, (channels, samples)).astype(np.float32)
    write_audio(path, audio, rate, subtype='FLOAT')
    return audio


def test_channels_are_averaged_and_the_rate_is_kept(tmp_path):
    audio = write(tmp_path / 'a.wav', 500, channels=3)
    np.testing.assert_allclose(load_mono(tmp_path / 'a.wav', 16000), audio.mean(0), atol=1e-7)


@settings(max_examples=20)
@given(st.integers(2, 3000), st.sampled_from([8000, 22050, 44100, 48000]))
def test_resampled_lengths_are_rounded_up_as_in_librosa(tmp_path_factory, samples, rate):
    """`librosa.resample` with `fix=True`: ceil(n * float(target) / origin)."""
    path = tmp_path_factory.getbasetemp() / 'length.wav'
    write(path, samples, rate)
    assert len(load_mono(path, 32000)) == int(np.ceil(samples * (32000.0 / rate)))


def test_mixing_as_the_dcase_evaluator(tmp_path):
    for snr, level in ((5, 0.1), (-15, 0.9)):
        source, noise = (write(tmp_path / f'{name}.wav', 4000, level=level)[0] for name in ('s', 'n'))
        item = Item('x', {}, None, tmp_path / 's.wav', noise=tmp_path / 'n.wav', snr_db=snr)
        sound = load_item(item, 16000)
        # The formulas of dcase_evaluator.py.
        factor = np.sqrt(np.mean(source**2) / 10 ** (snr / 10) / np.mean(noise**2))
        mixture = source + factor * noise
        peak = np.abs(mixture).max()
        gain = 0.9 / peak if peak > 1 else 1.0
        assert (peak > 1) == (snr == -15)
        np.testing.assert_allclose(sound.mixture, gain * mixture, atol=1e-6)
        np.testing.assert_allclose(sound.target, gain * source, atol=1e-6)
        assert sound.mixture.dtype == sound.target.dtype == np.float32


@pytest.mark.parametrize(
    ('spoil', 'reason', 'says'),
    [
        (lambda folder: (folder / 'n.wav').unlink(), 'missing', 'n.wav: no such file'),
        (lambda folder: (folder / 'n.wav').write_bytes(b'RIFF'), 'unreadable', 'n.wav: damaged'),
        (lambda folder: write(folder / 'n.wav', 100, level=1e30), 'unreadable', 'where full scale is 1'),
        (lambda folder: write(folder / 'n.wav', 10), 'length', 'the noise has 10 samples at 16000 Hz, but its target'),
        (lambda folder: write(folder / 'n.wav', 100, level=0), 'silent noise', 'silent, so it cannot be mixed at 5 dB'),
    ],
)
def test_items_that_cannot_be_loaded_have_a_reason(tmp_path, spoil, reason, says):
    write(tmp_path / 's.wav', 100)
    write(tmp_path / 'n.wav', 100)
    spoil(tmp_path)
    with pytest.raises(LeftOutError, match=says) as caught:
        load_item(Item('x', {}, None, tmp_path / 's.wav', noise=tmp_path / 'n.wav', snr_db=5.0), 16000)
    assert caught.value.reason == reason


def test_silence(tmp_path):
    write(tmp_path / 'm.wav', 100)
    for level, silent in ((0, True), (1.6e-5, True), (2e-5, False)):  # uniform: a third of the square of the level
        write(tmp_path / 's.wav', 100, level=level)
        assert load_item(Item('x', {}, tmp_path / 'm.wav', tmp_path / 's.wav'), 16000).is_silent == silent
    assert not load_item(Item('x', {}, tmp_path / 'm.wav', None), 16000).is_silent
