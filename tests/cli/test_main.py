"""The command line: every output and exit code, and that bad input costs one line and nothing else."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from support.paths import TESTS
from support.quarter_separator import RATE, files, one_error, sound, write

from audiosep_jax import __version__
from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.writing import OutputFiles, write_audio
from audiosep_jax.cli import main as cli
from audiosep_jax.cli import terminal
from audiosep_jax.cli.main import main
from audiosep_jax.errors import AudioSepError


def separate(*arguments):
    return main(['separate', *map(str, arguments), '--checkpoint', 'anything'])


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg'])
def test_one_input_and_one_query_make_a_file(folder, quarter, capsys, suffix):
    write('in.wav')
    assert separate('in.wav', '--query', 'a dog', '-o', f'dog{suffix}') == 0
    out, rate = read_audio(f'dog{suffix}')
    assert rate == RATE
    assert out.shape == (2, 800)
    assert np.abs(out - sound() / 4).max() < (0.1 if suffix == '.ogg' else 1e-4)
    assert capsys.readouterr().out == f'dog{suffix}\n'
    assert files(folder) == [f'dog{suffix}', 'in.wav']


def test_a_folder_that_looks_like_a_file_is_said(folder, quarter, capsys):
    write('in.wav')
    assert separate('in.wav', '--query', 'a dog', '-o', 'x.xyz') == 0
    captured = capsys.readouterr()
    assert captured.out == 'x.xyz/in__a_dog.wav\n'
    assert captured.err.splitlines() == [
        'audiosep-jax: note: x.xyz is treated as a folder, because its suffix is not that of a sound format'
    ]


def test_the_residual_of_a_file_lies_beside_it(folder, quarter):
    write('in.wav')
    assert separate('in.wav', '--query', 'a dog', '-o', 'dog.wav', '--residual', '--subtype', 'FLOAT') == 0
    np.testing.assert_allclose(read_audio('dog__residual.wav')[0], 0.75 * sound(), atol=1e-6)


def test_several_inputs_and_queries_make_a_folder(folder, quarter, capsys):
    write('a.wav')
    write('b.flac', channels=3)
    queries = ['--query', 'a dog barking', '--query', 'Rain?']
    assert separate('a.wav', 'b.flac', *queries, '-o', 'stems', '--residual') == 0
    expected = [f'stems/{s}__{q}.wav' for s in 'ab' for q in ('Rain', 'a_dog_barking', 'residual')]
    assert files(folder) == ['a.wav', 'b.flac', *expected]
    assert sorted(capsys.readouterr().out.splitlines()) == expected
    assert read_audio('stems/b__Rain.wav')[0].shape == (3, 800)


@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_32', 'FLOAT'])
def test_samples_are_of_the_kind_asked_for_or_of_the_input_s(folder, quarter, subtype):
    write('in.wav')
    assert separate('in.wav', '--query', 'a dog', '-o', 'x.wav', '--subtype', subtype.lower()) == 0
    assert soundfile.info('x.wav').subtype == subtype
    assert separate('x.wav', '--query', 'a dog', '-o', 'y.wav') == 0
    assert soundfile.info('y.wav').subtype == subtype
    assert separate('x.wav', '--query', 'a dog', '-o', 'y.flac') == 0
    assert soundfile.info('y.flac').subtype == ('PCM_16' if subtype == 'PCM_16' else 'PCM_24')


def test_silence_in_silence_out(folder, quarter):
    write_audio('in.wav', np.zeros((1, 500)), RATE)
    assert separate('in.wav', '--query', 'a dog', '-o', 'x.wav', '--residual') == 0
    for name in ('x.wav', 'x__residual.wav'):
        np.testing.assert_array_equal(read_audio(name)[0], np.zeros((1, 500)))


def test_an_overshoot_attenuates_all_outputs_of_an_input_alike_and_is_said(folder, quarter, capsys):
    quarter.gain = 4.0
    write('in.wav', level=0.9)
    assert separate('in.wav', '--query', 'a dog', '-o', 'x.wav', '--residual', '--subtype', 'PCM_24') == 0
    assert 'in.wav: attenuated by 11.1 dB' in capsys.readouterr().err
    target, residual = read_audio('x.wav')[0], read_audio('x__residual.wav')[0]
    gain = (1 - 2**-15) / np.abs(4 * sound(level=0.9)).max()
    np.testing.assert_allclose(target + residual, gain * sound(level=0.9), atol=1e-6)

    assert separate('in.wav', '--query', 'a dog', '-o', 'y.wav', '--subtype', 'FLOAT') == 0
    assert capsys.readouterr().err == ''
    np.testing.assert_allclose(read_audio('y.wav')[0], 4 * sound(level=0.9), rtol=1e-6)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_long_names_are_cut_and_stay_different(folder, quarter):
    stem = 'é' * 120
    write(f'{stem}.wav')
    queries = ['ö' * 400 + 'x', 'ö' * 400 + 'y']
    assert separate(f'{stem}.wav', '--query', queries[0], '--query', queries[1], '-o', 'out') == 0
    names = os.listdir('out')
    assert len(names) == 2
    assert all(len(name.encode()) <= 240 for name in names)


def test_names_that_are_no_utf8(folder, quarter, capsys):
    name = os.fsdecode(b'caf\xe9.wav')
    try:
        write(name)
    except AudioSepError:
        pytest.skip('this file system wants UTF-8')
    assert separate(name, '--query', 'a dog', '-o', 'out') == 0
    assert os.listdir(b'out') == [b'caf\xe9__a_dog.wav']
    assert capsys.readouterr().out == 'out/caf\\udce9__a_dog.wav\n'


def test_names_and_queries_on_an_ascii_terminal(folder):
    """The message cannot be encoded there; it is escaped."""
    run = subprocess.run(
        [
            sys.executable,
            '-m',
            'audiosep_jax.cli',
            'separate',
            '🐶\n.wav',
            '--query',
            'x',
            '--checkpoint',
            'no',
            '-o',
            '🐱',
        ],
        capture_output=True,
        env={**os.environ, 'PYTHONIOENCODING': 'ascii'},
        timeout=600,
    )
    assert run.returncode == 1
    assert run.stderr.count(b'\n') == 1


# ---- refusals, before anything is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'code', 'says'),
    [
        (['a.wav', '-o', 'x.wav'], 2, 'no query'),
        (['a.wav', '--query', '', '-o', 'x.wav'], 2, 'a query is empty'),
        (['a.wav', '--query', ' \t', '--query', 'dog', '-o', 'x'], 2, 'a query is empty'),
        (['a.wav', '--query', 'dog', '--query', 'dog ', '-o', 'x'], 2, 'given twice'),
        (['a.wav', '--query', os.fsdecode(b'd\xf6g'), '-o', 'x'], 2, 'not valid text'),
        (['--query', 'dog', '-o', 'x'], 2, 'no input'),
        (['a.wav', 'b.wav', '--query', 'dog', '-o', 'x.wav'], 2, '-o is a folder'),
        (['a.wav', '--query', 'dog', '--query', 'rain', '-o', 'x.flac'], 2, '-o is a folder'),
        (['a.wav', '--query', 'dog', '-o', 'x.aac'], 2, 'use .wav, .flac, .ogg'),
        (['a.wav', '--query', 'dog', '-o', 'x.flac', '--subtype', 'float'], 2, 'not FLOAT; use .wav'),
        (['a.wav', '--query', 'dog', '-o', 'x', '--format', 'aac'], 2, '--format aac: unknown; use wav, flac, ogg'),
        (['a.wav', '--query', 'dog', '-o', 'x', '--format', 'flac', '--subtype', 'FLOAT'], 2, '.flac files in x: FLAC'),
        (['a.wav', 'a.wav', '--query', 'dog', '-o', 'x'], 2, 'given twice'),
        (['a.wav', 'sub/a.wav', 'sub-a.wav', '--query', 'dog', '-o', 'x'], 2, 'both be written to x/sub-a__dog.wav'),
        (['a.wav', 'A.WAV', '--query', 'dog', '-o', 'x'], 2, 'separate one of them with another -o'),
        (['a.wav', '--query', 'dog', '-o', 'a.wav', '--force'], 2, 'is an input and would be overwritten'),
        (['a.wav', 'x/a__dog.wav', '--query', 'dog', '-o', 'x', '--force'], 2, 'is an input and would be overwritten'),
        (['a.wav', '--query', 'dog', '-o', 'missing/x.wav'], 1, 'does not exist; make it first'),
        (['a.wav', '--query', 'dog', '-o', 'missing/stems'], 1, 'does not exist; make it first'),
        (['a.wav', '--query', 'dog', '-o', 'b.wav/x'], 1, 'does not exist'),
        (['a.wav', '--query', 'dog', '-o', 'text'], 1, 'is a file, but a folder is needed'),
    ],
)
def test_flags_that_cannot_be_meant(folder, quarter, capsys, arguments, code, says):
    (folder / 'text').write_text('not a folder')
    for name in ('a.wav', 'b.wav'):
        write(name)
    before = files(folder)
    assert separate(*arguments) == code
    assert says in one_error(capsys)
    assert files(folder) == before
    assert not (folder / 'x').exists()


def test_a_folder_without_write_permission(folder, quarter, capsys, monkeypatch):
    """Asked of os.access, which is replaced because root may write anywhere."""
    write('a.wav')
    (folder / 'locked').mkdir()
    monkeypatch.setattr(os, 'access', lambda path, mode: not str(path).endswith('locked'))
    for out in ('locked', 'locked/x.wav', 'locked/stems'):
        assert separate('a.wav', '--query', 'dog', '-o', out) == 1
        assert 'no permission to write' in one_error(capsys)


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['seperate'],
        ['separate', 'a.wav', '--qery', 'x', '-o', 'x'],
        ['inspect'],
    ],
)
def test_unknown_flags_are_explained(capsys, arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert 'Traceback' not in captured.err
    assert captured.err


@pytest.mark.parametrize('command', [[], ['separate'], ['evaluate'], ['inspect']])
def test_help(capsys, command):
    assert main([*command, '--help']) == 0
    assert 'audiosep-jax' in capsys.readouterr().out


def test_version(capsys):
    assert main(['--version']) == 0
    assert capsys.readouterr().out == f'audiosep-jax {__version__}\n'


# ---- bad files -------------------------------------------------------------------------------------------------------


def test_bad_inputs_are_reported_and_the_rest_is_done(folder, quarter, capsys):
    write('good.wav')
    (folder / 'text.wav').write_text('not a sound')
    (folder / 'empty.wav').touch()
    (folder / 'dir.wav').mkdir()
    soundfile.write('zero.wav', np.zeros((0, 1)), RATE)
    soundfile.write('nan.wav', np.full(10, np.nan, np.float32), RATE, subtype='FLOAT')
    write('cut.wav')
    (folder / 'cut.wav').write_bytes((folder / 'cut.wav').read_bytes()[:3000])
    bad = ['missing.wav', 'text.wav', 'empty.wav', 'dir.wav', 'zero.wav', 'nan.wav', 'cut.wav']
    assert separate(*bad, 'good.wav', '--query', 'a dog', '-o', 'out') == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == len(bad) + 1
    for name, line in zip(bad, lines, strict=False):
        assert line.startswith(f'audiosep-jax: error: {name}: ')
    assert lines[-1].endswith('7 of 8 inputs failed')
    assert captured.out == 'out/good__a_dog.wav\n'
    assert os.listdir('out') == ['good__a_dog.wav']


def test_a_bad_input_alone_leaves_nothing(folder, quarter, capsys):
    assert separate('missing.wav', '--query', 'a dog', '-o', 'out') == 1
    assert 'missing.wav: no such file' in one_error(capsys)
    assert list(folder.iterdir()) == []


def test_existing_outputs_are_kept_without_force(folder, quarter, capsys):
    write('a.wav')
    write('b.wav')
    (folder / 'out').mkdir()
    (folder / 'out' / 'a__residual.wav').write_text('precious')
    arguments = ['a.wav', 'b.wav', '--query', 'a dog', '-o', 'out', '--residual']
    assert separate(*arguments) == 1
    assert 'a.wav: out/a__residual.wav exists; use --force' in capsys.readouterr().err
    assert files(folder / 'out') == ['a__residual.wav', 'b__a_dog.wav', 'b__residual.wav']
    assert (folder / 'out' / 'a__residual.wav').read_text() == 'precious'
    assert separate(*arguments, '--force') == 0
    assert read_audio('out/a__residual.wav')[0].shape == (2, 800)


def test_a_missing_input_is_said_before_an_output_that_exists(folder, quarter, capsys):
    write('x.wav')
    assert separate('missing.wav', '--query', 'dog', '-o', 'x.wav') == 1
    assert 'missing.wav: no such file' in one_error(capsys)


def test_too_many_channels_for_flac(folder, quarter, capsys):
    write('in.wav', channels=9)
    assert separate('in.wav', '--query', 'a dog', '-o', 'x.flac') == 1
    assert 'in.wav: x.flac: .flac holds 1 to 8 channels, not 9; use .wav' in one_error(capsys)


@pytest.mark.parametrize('stopped_by', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_interrupted_between_outputs_nothing_is_left(folder, quarter, capsys, monkeypatch, stopped_by):
    write('in.wav')
    calls = []
    encode = OutputFiles._encode

    def second_fails(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise stopped_by
        encode(*arguments)

    monkeypatch.setattr(OutputFiles, '_encode', second_fails)
    code = separate('in.wav', '--query', 'a dog', '--query', 'rain', '-o', 'out')
    assert code == (130 if stopped_by is KeyboardInterrupt else 1)
    one_error(capsys)
    assert [p.name for p in folder.iterdir()] == ['in.wav']


def test_a_full_disk_in_a_real_process(folder):
    """A limit on the size of files is the nearest thing to a full disk that a test may make."""
    code = f"""
import resource, sys, numpy, signal
sys.dont_write_bytecode = True  # what is imported late would be cut off, too
sys.path.insert(0, {str(TESTS)!r})
from support.quarter_separator import QuarterSeparator
from audiosep_jax.cli import main as cli, terminal
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
terminal.load = lambda path, **options: QuarterSeparator()
sys.exit(cli.main(['separate', 'in.wav', '--query', 'dog', '--checkpoint', 'c', '-o', 'out']))
"""
    write('in.wav', samples=200_000)
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=600)
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        'audiosep-jax: error: in.wav: out/in__dog.wav: cannot be written: the disk is full or failing'
    ]
    assert [p.name for p in folder.iterdir()] == ['in.wav']


def test_sigterm_is_an_interruption(folder, quarter, monkeypatch):
    write('in.wav')

    def encode(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(OutputFiles, '_encode', encode)
    before = signal.getsignal(signal.SIGTERM)
    assert separate('in.wav', '--query', 'a dog', '-o', 'x.wav') == 130
    assert files(folder) == ['in.wav']
    assert signal.getsignal(signal.SIGTERM) == before


def test_out_of_device_memory_is_one_line(folder, quarter, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nmany lines')

    monkeypatch.setattr(quarter, 'stream', fail, raising=False)
    write('in.wav')
    assert separate('in.wav', '--query', 'a dog', '-o', 'x.wav') == 1
    assert 'out of memory' in one_error(capsys)


# ---- the process -----------------------------------------------------------------------------------------------------


def test_help_needs_no_framework():
    code = """
import sys
from audiosep_jax.cli.main import main
main(['separate', '--help'])
loaded = {'jax', 'torch', 'tensorflow', 'matplotlib'} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, timeout=600)


def test_a_closed_pipe_ends_quietly(folder, quarter, capsys, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    write('in.wav')
    monkeypatch.setattr(terminal, 'say', closed)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(os.devnull, 'w'))
        monkeypatch.setattr(sys, 'stdout', out)
        assert separate('in.wav', '--query', 'a dog', '-o', 'x.wav') == 1


def test_help_that_nobody_reads_to_its_end(monkeypatch, tmp_path):
    """`audiosep-jax --help | head -1`: no traceback."""
    with (tmp_path / 'out').open('w') as out:
        monkeypatch.setattr(sys, 'stdout', out)

        def broken(*_, **__):
            raise BrokenPipeError

        monkeypatch.setattr(cli.tyro, 'cli', broken)
        assert cli.main(['--help']) == 1
