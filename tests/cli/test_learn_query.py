"""The command `audiosep-jax learn-query`, and `separate --vector` with what it writes."""

import dataclasses

import numpy as np
import pytest
from support.quarter_separator import files, one_error
from support.two_band_separator import CONFIG, band, two_band_separator

from audiosep_jax import metrics
from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.cli import terminal
from audiosep_jax.cli.main import main
from audiosep_jax.query_learning import learning
from audiosep_jax.separation.query_files import LearntQuery

RATE = CONFIG.sample_rate


@pytest.fixture(scope='module')
def separator():
    return two_band_separator()


@pytest.fixture
def workplace(folder, separator, monkeypatch):
    """Low sounds in `barks`, high ones in `street`, and a mixture."""
    monkeypatch.setattr(terminal, 'load', lambda path, **options: separator)
    for name, low in (('barks', True), ('street', False)):
        (folder / name).mkdir()
        for i in range(3):
            write_audio(folder / name / f'{i}.wav', band(low, 0.5, 10 * low + i)[None], RATE)
    mixture = band(True, 1, 30) + band(False, 1, 31)
    write_audio(folder / 'mixture.wav', mixture[None], RATE, subtype='FLOAT')
    return folder


@pytest.fixture
def small(monkeypatch):
    """Few and short mixtures."""

    def make(**options):
        return dataclasses.replace(config(**options), batch_size=2, seconds=0.25)

    config = learning.LearningConfig
    monkeypatch.setattr(learning, 'LearningConfig', make)
    monkeypatch.setattr(learning, '_SCORED', 16)


def learn(*arguments):
    return main(['learn-query', *arguments, '--checkpoint', 'c'])


def test_learn_and_separate(workplace, small, capsys):
    flags = ['--query', 'high', '--background', 'street', '--steps', '60', '-o', 'bark.query']
    assert learn('barks/*.wav', *flags) == 0
    learnt = LearntQuery.load('bark.query')
    assert learnt.after.sdri > learnt.before.sdri + 10
    before, after = (f'{scores.sdri:.1f}' for scores in (learnt.before, learnt.after))
    line = capsys.readouterr().out
    assert line.startswith(f'bark.query: SDRi {before} -> {after} dB, SI-SDR ')
    assert line.endswith(f"on 16 held-out mixtures, learnt in {learnt.steps} steps from the query 'high'\n")
    assert sorted(learnt.examples) == ['0.wav', '1.wav', '2.wav']

    flags = ['--checkpoint', 'c', '-o', 'bark.wav', '--subtype', 'FLOAT']
    assert main(['separate', 'mixture.wav', '--vector', 'bark.query', *flags]) == 0
    assert 'note' not in capsys.readouterr().err
    mixture, target = band(True, 1, 30) + band(False, 1, 31), read_audio('bark.wav')[0][0]
    assert metrics.sdri(band(True, 1, 30), target, mixture) > 10


def test_a_start_that_is_best_is_kept(workplace, small, capsys, monkeypatch):
    monkeypatch.setattr(learning, '_descend', lambda separator, start, *_: (start, 0))
    assert learn('barks', '--query', 'low', '--background', 'street', '-o', 'bark.query') == 0
    line = capsys.readouterr().out
    assert line.startswith("bark.query: holds the start, the query 'low': nothing better was found (SDRi ")
    np.testing.assert_array_equal(LearntQuery.load('bark.query').embedding, [1, -1])


def test_a_folder_of_queries_gives_a_sound_each(workplace, capsys):
    stored = LearntQuery.load(store(workplace / 'queries' / 'bark.query'))
    dataclasses.replace(stored, network='another').save('queries/hum.query')
    (workplace / 'queries' / 'notes.txt').write_text('')
    assert main(['separate', 'mixture.wav', '--vector', 'queries', '-o', 'out', '--checkpoint', 'c']) == 0
    assert [name for name in files(workplace) if name.startswith('out')] == [
        'out/mixture__bark.wav',
        'out/mixture__hum.wav',
    ]
    assert capsys.readouterr().err.splitlines() == [
        'audiosep-jax: note: --vector: hum.query: learnt with another checkpoint, so it may do worse: learn it with '
        'this one'
    ]


def store(path):
    """Writes a query for the separator of these tests."""
    separator = two_band_separator()
    scores = {'before': (0.0, 0.0, 0.0), 'after': (1.0, 1.0, -1.0)}
    LearntQuery(
        embedding=np.array([1, -1], np.float32),
        encoder=separator.encoder.identity(),
        network=separator.network.identity,
        checkpoint='c',
        step=None,
        start="the query 'low'",
        learnt=True,
        steps=1,
        examples=('a.wav',),
        backgrounds=(),
        held_out_mixtures=64,
        **{name: learning.QueryScores(*values) for name, values in scores.items()},
    ).save(path)
    return path


@pytest.mark.parametrize(
    ('arguments', 'code', 'says'),
    [
        ([], 2, 'no examples'),
        (['barks', '-o', 'bark.npy'], 2, 'ends in .query'),
        (['barks', '-o', 'missing/bark.query'], 1, 'does not exist'),
        (['barks', '-o', 'old.query'], 2, '--force'),
        (['none/*.wav'], 1, 'nothing matches'),
        (['missing.wav', '--query', 'low'], 1, 'no such file'),
        (['empty'], 1, 'no sound files'),
        (['barks', '--background', 'barks/1.wav'], 2, 'as an example and as a background'),
        (['barks'], 2, 'give --query'),
        (['barks', '--query', 'low', '--start', 'both'], 2, 'does not hear sounds'),
        (['barks', '--query', 'low', '--steps', '0'], 2, 'steps must be at least 1'),
        (['barks', '--query', ' '], 2, 'empty'),
        (['silent.wav', '--query', 'low'], 1, 'silent.wav: silent'),
    ],
)
def test_what_cannot_be_learnt_is_one_line(workplace, small, capsys, arguments, code, says):
    (workplace / 'empty').mkdir()
    (workplace / 'old.query').write_text('kept')
    write_audio('silent.wav', np.zeros((1, 800), np.float32), RATE)
    before = files(workplace)
    assert learn(*arguments) == code
    assert says in one_error(capsys)
    assert files(workplace) == before
    assert (workplace / 'old.query').read_text() == 'kept'


def test_a_folder_without_queries_is_one_line(workplace, capsys):
    assert main(['separate', 'mixture.wav', '--vector', 'street', '-o', 'out', '--checkpoint', 'c']) == 2
    assert 'street: no .query files in this folder' in one_error(capsys)
