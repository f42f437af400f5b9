"""Queries learnt from examples, with a network made by hand whose best embedding is known."""

import numpy as np
import pytest
from support.two_band_separator import CONFIG, EMBEDDINGS, HearingWords, TwoWords, band, two_band_separator

import audiosep_jax as asj
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import AudioFileError, ConfigError, QueryError
from audiosep_jax.query_learning import learning
from audiosep_jax.query_learning.learning import LearningConfig, learn_query
from audiosep_jax.separation.queries import Query

FAST = LearningConfig(steps=60, batch_size=2, seconds=0.25)
RATE = CONFIG.sample_rate


@pytest.fixture(scope='module')
def separator():
    return two_band_separator()


@pytest.fixture(scope='module')
def hearing_separator():
    return two_band_separator(HearingWords())


@pytest.fixture(autouse=True)
def few_scored(monkeypatch):
    monkeypatch.setattr(learning, '_SCORED', 16)


@pytest.fixture(scope='module')
def sounds():
    return [band(True, 0.5, seed) for seed in range(4)], [band(False, 0.5, seed) for seed in range(4, 7)]


def learnt_from(separator, sounds, *, config=FAST, **options):
    return learn_query(separator, sounds[0], backgrounds=sounds[1], sample_rate=RATE, config=config, **options)


def test_learning_finds_the_sound_from_a_wrong_start(separator, sounds, tmp_path):
    shown = []
    learnt = learnt_from(separator, sounds, query='high', progress=lambda *numbers: shown.append(numbers))
    assert learnt.learnt
    assert learnt.steps > 10
    assert learnt.before.sdri < -2
    assert learnt.after.sdri > 10  # the best one of this length has about 18 dB
    assert learnt.after.si_sdr > learnt.before.si_sdr + 20
    assert learnt.after.background < -15 < learnt.before.background
    assert learnt.embedding[0] > learnt.embedding[1]
    assert (learnt.start, learnt.checkpoint, learnt.step) == ("the query 'high'", 'by hand', 3)
    assert shown[:2] == [(0, 60), (10, 60)]
    assert shown[-1] == (60, 60)

    # The file extracts the sound, by the same numbers.
    learnt.save(tmp_path / 'low.query')
    low, high = band(True, 1, 10), band(False, 1, 11)
    target = separator.separate(low + high, Query.vector_file(tmp_path / 'low.query'), sample_rate=RATE).targets[0, 0]
    assert asj.metrics.sdri(low, target, low + high) > 10
    (same,) = separator.separate_batch([low + high], learnt.embedding[None])
    np.testing.assert_allclose(target, same, atol=1e-5)


def test_nothing_worse_than_the_start_is_kept(separator, sounds):
    config = LearningConfig(steps=20, batch_size=2, seconds=0.25, learning_rate=1000.0)
    learnt = learnt_from(separator, sounds, query='low', config=config)
    assert not learnt.learnt
    assert learnt.steps == 0
    assert learnt.after == learnt.before
    np.testing.assert_array_equal(learnt.embedding, [1, -1])


def test_the_same_seed_learns_the_same(separator, sounds):
    config = LearningConfig(steps=10, batch_size=2, seconds=0.25)
    once, again = (learnt_from(separator, sounds, query='high', config=config) for _ in range(2))
    np.testing.assert_array_equal(once.embedding, again.embedding)
    assert once.after == again.after


def test_the_embedding_keeps_its_length(separator, sounds):
    """So that it can be blended with other queries."""
    learnt = learnt_from(separator, sounds, query='high')
    assert learnt.learnt
    np.testing.assert_allclose(np.linalg.norm(learnt.embedding), np.linalg.norm(EMBEDDINGS['high']), rtol=1e-5)


@pytest.mark.parametrize(
    ('query', 'start', 'found'),
    [
        (None, 'auto', 'the sounds'),
        ('high', 'text', "the query 'high'"),
        ('high', 'sounds', 'the sounds'),
        ('low', 'both', 'the query and the sounds'),
        ('high', 'auto', 'the sounds'),  # which are low, and so better than that query
    ],
)
def test_where_learning_starts(hearing_separator, sounds, query, start, found):
    config = LearningConfig(steps=1, batch_size=2, seconds=0.25)
    learnt = learnt_from(hearing_separator, sounds, query=query, start=start, config=config)
    assert learnt.start == found


def test_one_recording_and_no_background_are_enough(separator, tmp_path):
    write_audio(tmp_path / 'high.wav', band(False, 1.5, 0)[None], RATE)
    learnt = learn_query(separator, [tmp_path / 'high.wav'], query='low', config=FAST)
    assert learnt.after.sdri > learnt.before.sdri + 3
    assert (learnt.examples, learnt.backgrounds) == (('high.wav',), ())


def test_a_recording_given_twice_counts_once(separator, sounds, tmp_path):
    """It would be learnt from and held out."""
    write_audio(tmp_path / 'low.wav', sounds[0][0][None], RATE)
    config = LearningConfig(steps=1, batch_size=2, seconds=0.25)
    path = tmp_path / 'low.wav'
    learnt = learn_query(separator, [path, str(path)], query='low', config=config)
    assert learnt.examples == ('low.wav',)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({}, QueryError, 'nothing to start from: .* give --query'),
        ({'start': 'text'}, QueryError, "'text' needs a query"),
        ({'query': 'low', 'start': 'sounds'}, QueryError, 'does not hear sounds'),
        ({'query': 'low', 'start': 'nowhere'}, ConfigError, "'nowhere': use 'auto'"),
        ({'query': 'low', 'examples': []}, ConfigError, 'no examples'),
        ({'query': 'low', 'sample_rate': None}, ConfigError, 'need sample_rate'),
        ({'query': 'low', 'examples': [np.zeros(99, np.float32)]}, AudioFileError, 'sound 1: silent'),
        ({'query': 'low', 'examples': [band(True, 0.01, 0)]}, AudioFileError, 'sound 1: shorter than 0.05 s'),
        ({'query': 'low', 'examples': ['missing.wav']}, AudioFileError, 'missing.wav: no such file'),
        ({'query': 'low', 'examples': [np.full(99, np.nan)]}, AudioFileError, 'sound 1: .*NaN'),
        ({'query': Query.text('low').without('high')}, ConfigError, 'exclude'),
    ],
)
def test_what_cannot_be_learnt(separator, options, error, message):
    arguments = {'examples': [band(True, 0.1, 0)], 'sample_rate': RATE} | options
    with pytest.raises(error, match=message):
        learn_query(separator, arguments.pop('examples'), **arguments)


@pytest.mark.parametrize(
    'values',
    [
        {'steps': 0},
        {'batch_size': 0},
        {'seconds': 0.0},
        {'learning_rate': float('nan')},
        {'averaged': 0},
        {'absent': 1.0},
        {'snr_db': (5.0, -5.0)},
        {'patience': 0},
    ],
)
def test_configurations_that_cannot_work(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        LearningConfig(**values)


def test_the_public_name():
    assert asj.learn_query is learn_query
    assert asj.LearntQuery.__name__ == 'LearntQuery'
    assert not hasattr(TwoWords(), 'encode_audio')
