"""The command line `python -m data_prep`."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from support.small_dataset import SAMPLE_RATE, build_small, overwrite, shard_files

from audiosep_jax.data.shards import Shards
from data_prep.__main__ import main


@pytest.fixture
def corpus(tmp_path):
    """A folder with three good files, one that is not there and one that is no sound; the path of its manifest."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'corpus'
    folder.mkdir()
    for name in ('a.wav', 'b.flac', 'c.ogg'):
        soundfile.write(folder / name, rng.uniform(-0.5, 0.5, SAMPLE_RATE), SAMPLE_RATE)
    (folder / 'text.wav').write_text('not a sound')
    names = ['a.wav', 'b.flac', 'missing.wav', 'c.ogg', 'text.wav']
    manifest = folder / 'train.json'
    manifest.write_text(json.dumps({'data': [{'wav': name, 'caption': f'sound of {name[0]}'} for name in names]}))
    return manifest


def run(*arguments) -> int:
    """The exit code, also where the flags' parser ends the program."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


def one_error(capsys) -> str:
    """The error on stderr: one line, no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith('data_prep: error: ')
    return lines[0]


def build_manifest(corpus, *flags) -> int:
    flags = ('--sample-rate', SAMPLE_RATE, '--clips-per-shard', 2, '--jobs', 1, *flags)
    return run('build', 'manifest', '--source', corpus, '--out', corpus.parent.parent / 'out', *flags)


def test_from_files_to_a_verified_dataset(corpus, tmp_path, capsys):
    assert build_manifest(corpus) == 0
    output = capsys.readouterr()
    assert "split 'train' has 3 clips" in output.out
    assert f'next: python -m data_prep embed {tmp_path}/out' in output.out
    assert '2 of 5 clips were left out' in output.err
    assert 'missing.wav: no such file' in output.err
    assert run('embed', tmp_path / 'out', '--encoder', 'words') == 0
    assert "3 captions embedded now with 'words' (E = 512)" in capsys.readouterr().out
    assert run('verify', tmp_path / 'out', '--jobs', 1) == 0
    assert capsys.readouterr().out.endswith('embeddings: words\nno problems\n')
    assert [Shards(tmp_path / 'out').read(n).id for n in range(3)] == ['a.wav', 'b.flac', 'c.ogg']


def test_strict_builds_everything_and_fails(corpus, tmp_path):
    assert build_manifest(corpus, '--strict') == 1
    assert len(Shards(tmp_path / 'out')) == 3


def test_mended_files_can_be_taken_in(corpus, tmp_path, capsys):
    build_manifest(corpus)
    soundfile.write(corpus.parent / 'missing.wav', np.ones(100) / 2, SAMPLE_RATE)
    assert build_manifest(corpus, '--retry-skipped') == 0
    assert '1 of 5 clips were left out' in capsys.readouterr().err
    assert len(Shards(tmp_path / 'out')) == 4


def test_synthetic_build(tmp_path, capsys):
    flags = ('--clips', 5, '--seed', 3, '--seconds', 0.5, '--sample-rate', SAMPLE_RATE, '--codec', 'pcm16')
    assert run('build', 'synthetic', '--out', tmp_path / 'toy', *flags, '--split', 'test') == 0
    assert "split 'test' has 5 clips" in capsys.readouterr().out
    record = Shards(tmp_path / 'toy', 'test').read(4)
    assert (record.codec, record.num_samples) == ('pcm16', SAMPLE_RATE // 2)


@pytest.mark.parametrize(
    'arguments',
    [
        (),
        ('biuld',),
        ('build',),
        ('build', 'manifest', '--out', 'x'),
        ('build', 'manifest', '--source', 'x', '--out', 'x', '--codec', 'mp3'),
        ('build', 'synthetic', '--out', 'x', '--clips', 'many'),
        ('embed',),
        ('verify', 'x', '--loudly'),
    ],
)
def test_wrong_flags_exit_with_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert 'Traceback' not in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (('build', 'manifest', '--source', 'nope.json', '--out', 'x'), 1, 'nope.json: no such manifest'),
        (('build', 'synthetic', '--out', 'x', '--clips', '0'), 2, 'at least one clip'),
        (('build', 'synthetic', '--out', 'x', '--clips', '3', '--seconds', '0.1'), 2, 'at least 0.25 s'),
        (('build', 'synthetic', '--out', 'x', '--clips', '3', '--clips-per-shard', '0'), 2, '--clips-per-shard 0'),
        (('build', 'synthetic', '--out', 'x', '--clips', '3', '--name', 'Ä'), 2, '--name'),
        (('embed', 'nope'), 1, 'nope: no dataset'),
        (('embed', 'nope', '--encoder', 'wrods'), 2, "did you mean 'words'"),
        (('verify', 'nope'), 1, 'nope: no dataset here'),
        (('verify', 'nope', '--jobs', '0'), 2, '--jobs 0: must be at least 1'),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == code
    assert message in one_error(capsys)
    assert not os.listdir(tmp_path)


def test_nothing_readable_is_one_line(corpus, capsys):
    for path in corpus.parent.glob('[abc].*'):
        path.write_bytes(b'')
    assert build_manifest(corpus) == 1
    assert 'none of the 5 clips could be used' in one_error(capsys)
    assert not (corpus.parent.parent / 'out').exists()


def test_other_inputs_in_the_same_place_are_one_line(corpus, capsys):
    assert build_manifest(corpus) == 0
    capsys.readouterr()
    assert build_manifest(corpus, '--codec', 'pcm16') == 1
    assert 'codec flac there, pcm16 now' in one_error(capsys)


def test_verify_lists_problems_and_fails(tmp_path, capsys):
    build_small(tmp_path, 100, clips_per_shard=2, codec='pcm16')
    for path in shard_files(tmp_path)[:30]:
        overwrite(path, path.stat().st_size // 2, b'\0' * 9)
        os.truncate(path, 3000)
    assert run('verify', tmp_path) == 1
    output = capsys.readouterr()
    assert output.err.count('problem: ') == 20
    assert '… and 10 problems more' in output.err
    assert output.out.endswith('30 problems\n')


def test_as_a_module(tmp_path):
    command = [sys.executable, '-W', 'error', '-m', 'data_prep', 'verify', tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.startswith('data_prep: error: ')


@pytest.mark.parametrize(
    'command', [(), ('build',), ('build', 'manifest'), ('build', 'synthetic'), ('embed',), ('verify',)]
)
def test_every_command_has_help(command, capsys):
    assert run(*command, '--help') == 0
    assert 'usage: python -m data_prep' in capsys.readouterr().out
