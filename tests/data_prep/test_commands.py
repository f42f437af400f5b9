"""The commands for datasets that are built, as the shell runs them; see also test_data_prep.py."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
from support.small_dataset import SAMPLE_RATE, build_small, small_clips

from audiosep_jax.data.shards import Shards
from data_prep.__main__ import main
from data_prep.build import build_shards


@pytest.fixture
def dataset(tmp_path):
    build_small(tmp_path / 'small', 10, captions=2)
    return tmp_path / 'small'


def run(*arguments) -> int:
    """The exit code, also where the flags' parser ends the program."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


def test_stats_as_table_json_and_picture(dataset, tmp_path, capsys):
    assert run('stats', dataset, '--json', tmp_path / 'x.json', '--picture', tmp_path / 'x.png', '--rows', 3) == 0
    out = capsys.readouterr().out
    assert 'clips      10, 15 captions' in out
    assert 'in 7 others' in out
    (split,) = json.loads((tmp_path / 'x.json').read_text())['splits']
    assert (split['split'], split['clips'], len(split['labels'])) == ('train', 10, 10)
    assert (tmp_path / 'x.png').exists()


def test_inspect_prints_and_writes_a_clip(dataset, tmp_path, capsys):
    assert run('inspect', dataset, 1, 3, '-o', tmp_path / 'clip.wav') == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1)
    assert (lines['id'], lines['captions'], lines['seconds']) == ('clip-7', 'sound 7 take 0 | sound 7 take 1', '0.25')
    samples, rate = soundfile.read(tmp_path / 'clip.wav', dtype='float32')
    assert rate == SAMPLE_RATE
    np.testing.assert_array_equal(samples, small_clips(10)[7].audio)


def test_inspect_writes_the_pictures_too(tmp_path):
    clips = [dataclasses.replace(small_clips(1)[0], frames=(b'\xff\xd8 one', b'\xff\xd8 two'))]
    build_shards(clips, tmp_path / 'd', sample_rate=SAMPLE_RATE, split='test')  # the only split: no --split
    assert run('inspect', tmp_path / 'd', 0, 0, '-o', tmp_path / 'clip.flac') == 0
    assert [(tmp_path / f'clip-{n}.jpg').read_bytes() for n in range(2)] == [b'\xff\xd8 one', b'\xff\xd8 two']


def test_merge_and_stage(dataset, tmp_path, capsys):
    build_small(tmp_path / 'other', 2, name='other')
    out = tmp_path / 'out'
    assert run('merge', dataset, tmp_path / 'other', '--out', out, '--prefix-ids', '--jobs', 1) == 0
    said = capsys.readouterr().out
    assert "split 'train' has 12 clips" in said
    assert 'embeddings of words\n' in said
    assert run('stage', dataset, out, '--to', tmp_path / 'stage') == 0
    copies = [line.partition(': ')[0] for line in capsys.readouterr().out.splitlines()]
    assert [len(Shards(copy)) for copy in copies] == [10, 12]


def test_merge_says_which_embeddings_it_left_out(tmp_path, capsys):
    build_small(tmp_path / 'a', 2, name='a')
    build_small(tmp_path / 'b', 2, name='b', embed=False)
    assert run('merge', tmp_path / 'a', tmp_path / 'b', '--out', tmp_path / 'out', '--prefix-ids', '--jobs', 1) == 0
    assert 'embeddings of no encoder; left out: words' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (('stats', 'nope'), 1, 'no dataset'),
        (('stats', 'small', '--picture', 'x.jpg'), 2, '.png'),
        (('stats', 'small', '--rows', '0'), 2, '--rows 0'),
        (('inspect', 'nope', '0', '0'), 1, 'nope: no such dataset directory'),
        (('inspect', 'small', '3', '0'), 1, "no shard 3: split 'train' has 3"),
        (('inspect', 'small', '-1', '0'), 1, 'no shard -1'),
        (('inspect', 'small', '2', '2'), 1, 'no clip 2: there are 2'),
        (('inspect', 'small', '0', '0', '-o', 'x.txt'), 2, 'x.txt'),
        (('merge', 'small', '--out', 'x'), 2, 'at least two'),
        (('merge', '--out', 'x'), 2, 'at least two'),
        (('stage', '--to', 'x'), 2, 'at least one'),
        (('stage', 'nope', '--to', 'x'), 1, 'nope: no dataset'),
        (('stage', 'small', '--to', 'x', '--split', 'test'), 1, "no split 'test'"),
        (('build', 'synthetic', '--clips', '3', '--out', 'x', '--shard-range', '3'), 2, "--shard-range '3'"),
        (('build', 'synthetic', '--clips', '3', '--out', 'ftp://x'), 2, 'unknown kind of address'),
    ],
)
def test_mistakes_are_one_line(dataset, arguments, code, message, capsys, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    assert run(*arguments) == code
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('data_prep: error: ')
    assert message in lines[0]
    assert [path.name for path in dataset.parent.iterdir()] == ['small']


def test_a_job_of_an_array_says_what_is_missing(tmp_path, capsys):
    flags = ['--clips', 5, '--seconds', 0.5, '--sample-rate', 8000, '--clips-per-shard', 2, '--out', tmp_path / 'd']
    assert run('build', 'synthetic', *flags, '--shard-range', '1:3') == 0
    assert '2 shards made now; 1 of 3 are still missing' in capsys.readouterr().out
    assert run('build', 'synthetic', *flags, '--shard-range', '0:1', '--jobs', 1) == 0
    said = capsys.readouterr().out
    assert "split 'train' has 5 clips" in said
    assert ' in 3 shards; ' in said
    assert run('build', 'synthetic', *flags[:6], '--out', tmp_path / 'one', '--jobs', 1) == 0
    assert ' in 1 shard; 1 of 1 shards made now' in capsys.readouterr().out


@pytest.mark.parametrize('command', ['stats', 'merge', 'inspect', 'stage'])
def test_every_command_has_help(command, capsys):
    assert run(command, '--help') == 0
    assert f'usage: python -m data_prep {command}' in capsys.readouterr().out
