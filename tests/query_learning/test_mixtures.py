"""Crops, splits and mixtures for learning a query."""

import numpy as np
import pytest

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import AudioFileError
from audiosep_jax.query_learning.mixtures import Mixer, crop, crops_of, read_sounds, split

LENGTH = 400


def noise(length, seed=0):
    return np.random.default_rng(seed).uniform(-0.1, 0.1, length).astype(np.float32)


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(('count', 'held_out'), [(2, 1), (3, 1), (10, 3)])
def test_files_are_learnt_from_or_held_out(count, held_out):
    waveforms = [noise(10, seed) for seed in range(count)]
    parts = split(waveforms)
    assert [len(part) for part in parts] == [count - held_out, held_out]
    assert {id(waveform) for part in parts for waveform in part} == {id(waveform) for waveform in waveforms}


@pytest.mark.parametrize('length', [2, 100])
def test_a_single_file_is_split_by_time(length):
    waveform = noise(length)
    (first,), (second,) = split([waveform])
    np.testing.assert_array_equal(np.concatenate([first, second]), waveform)
    assert len(second) == max(1, round(0.3 * length))


def test_crops_have_sound_in_them():
    waveform = np.zeros(40 * LENGTH, np.float32)
    waveform[5 * LENGTH : 15 * LENGTH] = noise(10 * LENGTH)
    draws, places = rng(), set()
    for _ in range(30):
        samples = crop(draws, waveform, LENGTH)
        assert samples.shape == (LENGTH,)
        places.add(samples.tobytes())
    silent = np.zeros(LENGTH, np.float32).tobytes()
    assert silent not in places
    assert len(places) > 20


def test_a_short_sound_lies_anywhere_in_zeros():
    waveform, draws = noise(100), rng()
    starts = {int(np.flatnonzero(crop(draws, waveform, LENGTH))[0]) for _ in range(50)}
    assert len(starts) > 30
    np.testing.assert_array_equal(crop(draws, waveform, 100), waveform)


def test_levels_are_within_their_range():
    mixer = Mixer(crops_of([noise(999)], LENGTH), crops_of([3 * noise(999, 1)], LENGTH), (-10.0, 10.0), 0.0)
    mixtures, targets = mixer.draw(rng(), 200)
    snr = 10 * np.log10((targets**2).mean(-1) / ((mixtures - targets) ** 2).mean(-1))
    assert -10.01 < snr.min() < -8
    assert 8 < snr.max() < 10.01
    assert np.abs(mixtures).max() <= 1


def test_loud_mixtures_are_attenuated_with_their_targets():
    mixer = Mixer(lambda rng: np.ones(LENGTH, np.float32), lambda rng: np.ones(LENGTH, np.float32), (0.0, 0.0), 0.0)
    mixtures, targets = mixer.draw(rng(), 1)
    np.testing.assert_allclose(mixtures, 0.9)
    np.testing.assert_allclose(targets, 0.45)


def test_the_sound_is_absent_from_a_share():
    mixer = Mixer(crops_of([noise(999)], LENGTH), crops_of([noise(999, 1)], LENGTH), (-10.0, 10.0), 0.25)
    mixtures, targets = mixer.draw(rng(), 200)
    absent = ~targets.any(-1)
    assert 0.15 < absent.mean() < 0.35
    assert mixtures.any(-1).all()


def test_files_are_read_as_mono_at_the_rate_of_the_model(tmp_path):
    write_audio(tmp_path / 'a.wav', np.stack([noise(1000), noise(1000)]), 16000)
    files = read_sounds([tmp_path / 'a.wav', str(tmp_path / 'a.wav')], 8000, None, rng())
    assert [abs(len(waveform) - 500) < 5 for waveform in files] == [True, True]


def test_silence_at_the_ends_is_cut_off():
    """So that what is held out of a single recording is not silent."""
    sound = noise(800)
    sound[[0, -1]] = 0.1
    (found,) = read_sounds([np.pad(sound, (500, 8000))], 8000, 8000, rng())
    np.testing.assert_array_equal(found, sound)


def test_an_hour_is_enough(monkeypatch, tmp_path):
    monkeypatch.setattr('audiosep_jax.query_learning.mixtures._MAX_SECONDS', 2.0)
    monkeypatch.setattr('audiosep_jax.query_learning.mixtures._MIN_SECONDS_OF_A_FILE', 0.5)
    write_audio(tmp_path / 'a.wav', noise(8000)[None], 8000)
    found = read_sounds([tmp_path / 'a.wav'] * 10, 8000, None, rng())
    assert [abs(len(waveform) - 4000) < 5 for waveform in found] == [True] * 4


def test_silence_is_refused(tmp_path):
    write_audio(tmp_path / 'a.wav', np.zeros((1, 100), np.float32), 8000)
    with pytest.raises(AudioFileError, match=r'a\.wav: silent'):
        read_sounds([tmp_path / 'a.wav'], 8000, None, rng())
