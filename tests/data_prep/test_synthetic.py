import itertools

import numpy as np
import pytest

from audiosep_jax.errors import ConfigError
from data_prep import synthetic
from data_prep.synthetic import signals

RATE = 8000


def _sound(name, seed=0, rate=RATE, seconds=1.0):
    return synthetic.render(name, np.random.default_rng(seed), sample_rate=rate, seconds=seconds)


def test_there_are_at_least_sixteen_classes():
    assert len(set(synthetic.CLASSES)) >= 16


@pytest.mark.parametrize('name', synthetic.CLASSES)
@pytest.mark.parametrize(('rate', 'seconds'), [(8000, 1.0), (8000, 0.25), (11025, 0.777), (32000, 1.5)])
def test_a_sound_is_finite_loud_enough_and_of_the_length_asked_for(name, rate, seconds):
    for seed in range(6):
        audio = _sound(name, seed, rate, seconds)
        assert audio.shape == (round(rate * seconds),)
        assert audio.dtype == np.float32
        assert np.isfinite(audio).all()
        assert 0.06 <= np.abs(audio).max() <= 0.901
        assert 0.015 <= np.sqrt(np.mean(audio**2)) <= 0.121


@pytest.mark.parametrize('name', synthetic.CLASSES)
def test_the_shortest_clips_are_never_silent(name):
    for seed in range(100):
        audio = _sound(name, seed, seconds=synthetic.MIN_SECONDS)
        assert np.sqrt(np.mean(audio**2)) > 0.015, seed


@pytest.mark.parametrize('name', synthetic.CLASSES)
def test_a_sound_is_a_function_of_the_generator(name):
    np.testing.assert_array_equal(_sound(name, 3), _sound(name, 3))
    assert np.abs(_sound(name, 3) - _sound(name, 4)).max() > 0.05


def test_classes_differ_in_time_structure():
    def crest(name):  # peak over RMS, averaged over clips
        sounds = [_sound(name, seed, seconds=2.0) for seed in range(8)]
        return np.mean([np.abs(x).max() / np.sqrt(np.mean(x**2)) for x in sounds])

    assert crest('clock') > 1.5 * crest('rain') > 1.5 * crest('siren')
    assert crest('knocking') > 3 * crest('violin')


def test_a_siren_moves_in_pitch_and_an_alarm_does_not():
    def spread(name, seed):
        """Octaves between the lowest and highest strongest bin over time."""
        frames = np.lib.stride_tricks.sliding_window_view(_sound(name, seed, seconds=3.0), 512)[::256]
        spectrum = np.abs(np.fft.rfft(frames * np.hanning(512), axis=-1))
        sounding = spectrum.max(-1) > 0.3 * spectrum.max()
        peaks = np.argmax(spectrum[sounding], axis=-1)
        return np.log2(peaks.max() / peaks.min())

    assert min(spread('siren', seed) for seed in range(8)) > 0.3
    assert max(spread('alarm', seed) for seed in range(8)) < 0.1


def test_clip_n_depends_on_the_seed_and_n_alone():
    many = list(synthetic.clips(60, 5, sample_rate=RATE, seconds=0.3))
    few = list(synthetic.clips(31, 5, sample_rate=RATE, seconds=0.3))
    alone = synthetic.clip(30, 5, sample_rate=RATE, seconds=0.3)
    for other in (few[30], alone):
        np.testing.assert_array_equal(many[30].audio, other.audio)
        assert (many[30].id, many[30].captions, many[30].labels) == (other.id, other.captions, other.labels)
    elsewhere = synthetic.clip(30, 6, sample_rate=RATE, seconds=0.3)
    assert elsewhere.labels == alone.labels
    assert np.abs(elsewhere.audio - alone.audio).max() > 0.01
    assert len({c.id for c in many}) == 60


def test_the_classes_take_turns():
    chosen = ('rain', 'dog', 'bell')
    labels = [c.labels[0] for c in synthetic.clips(7, 0, sample_rate=RATE, seconds=0.25, classes=chosen)]
    assert labels == ['rain', 'dog', 'bell', 'rain', 'dog', 'bell', 'rain']


def test_captions_vary_and_belong_to_one_class():
    rng = np.random.default_rng(0)
    said = {name: {synthetic.caption(name, rng) for _ in range(60)} for name in synthetic.CLASSES}
    for name, phrases in said.items():
        assert len(phrases) >= 6, name
    for one, other in itertools.combinations(said, 2):
        assert not said[one] & said[other]


def test_a_clip_has_different_captions_of_its_own_class():
    clip = synthetic.clip(0, 1, sample_rate=RATE, seconds=0.25, classes=('violin',))
    assert len(set(clip.captions)) == len(clip.captions) >= 1
    assert all('violin' in c for c in clip.captions)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'classes': ('sirene',)}, "did you mean 'siren'"),
        ({'classes': ()}, 'at least one class'),
        ({'sample_rate': 4000}, 'at least 8000 Hz'),
        ({'seconds': 0.1}, 'at least 0.25 s'),
        ({'seconds': float('nan')}, 'at least 0.25 s'),
        ({'seconds': float('inf')}, 'at most 3600'),
        ({'seed': -1}, 'negative'),
    ],
)
def test_settings_that_cannot_work_are_refused(change, message):
    settings = {'n': 0, 'seed': 0, 'sample_rate': RATE, 'seconds': 0.5} | change
    with pytest.raises(ConfigError, match=message):
        synthetic.clip(**settings)


def test_a_harmonic_tone_drops_what_would_alias():
    tone = signals.harmonic_tone(np.full(8000, 1500.0), [1, 1, 1, 1], RATE)
    spectrum = np.abs(np.fft.rfft(tone)) / 4000  # 1 Hz per bin
    np.testing.assert_allclose(spectrum[[1500, 3000]], 1, atol=1e-3)
    assert spectrum[[2000, 3500]].max() < 1e-3  # where 6000 and 4500 Hz would fold to
    np.testing.assert_allclose(np.delete(spectrum, [1500, 3000]).max(), 0, atol=2e-3)


def test_shaped_noise_has_the_spectrum_asked_for():
    x = signals.noise(np.random.default_rng(0), 40000, signals.band(500, 1000), RATE)
    power = np.abs(np.fft.rfft(x)) ** 2
    hertz = np.fft.rfftfreq(40000, 1 / RATE)
    inside = power[(hertz > 500) & (hertz < 1000)].mean()
    assert power[hertz < 100].mean() < 0.01 * inside
    assert power[hertz > 3000].mean() < 0.05 * inside
    np.testing.assert_allclose(np.mean(x**2), 1, rtol=1e-6)


def test_place_cuts_what_passes_the_end():
    signal = np.zeros(10)
    signals.place(signal, np.ones(5), 0.8, rate=10)
    signals.place(signal, np.ones(5), 2.0, rate=10)
    np.testing.assert_array_equal(signal, [0] * 8 + [1, 1])
