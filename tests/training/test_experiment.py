"""The program of the experiments: a mistake in flags or data is one line and an exit code, and nothing is started."""

import importlib.util
import os
import runpy
import shutil

import pytest
from support.paths import ROOT
from support.small_dataset import build_small, shard_files

from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.training import experiment
from data_prep.embed import embed_captions

SCRIPT = ROOT / 'experiments' / 'audiosep_clap.py'


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Returns a function that runs the program with some flags and returns its exit code, without training."""
    spec = importlib.util.spec_from_file_location('audiosep_clap', SCRIPT)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(experiment, 'enable_compilation_cache', lambda: None)

    def run(*flags) -> int:
        flags = ['--workdir', tmp_path / 'run', '--batch-size', 32, *flags]
        monkeypatch.setattr('sys.argv', ['audiosep_clap.py', *map(str, flags)])
        with pytest.raises(SystemExit) as stopped:
            program.main()
        return stopped.value.code

    return run


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp('dataset')
    build_small(directory, 6)
    return directory


def one_error(capsys) -> str:
    captured = capsys.readouterr().err.splitlines()
    assert len(captured) == 1, captured
    assert captured[0].startswith('audiosep_clap: error: ')
    return captured[0]


@pytest.mark.parametrize('script', ['audiosep_clap', 'audiosep_clip', 'audiosep_hybrid', 'dcase2024_16k', 'finetune'])
def test_help_has_the_lines_of_the_docstring(script, capsys, monkeypatch):
    """The parser of flags joins lines that start with a letter, and adds blank lines before those that do not."""
    program = runpy.run_path(str(SCRIPT.with_name(f'{script}.py')))
    monkeypatch.setattr('sys.argv', [script, '--help'])
    with pytest.raises(SystemExit) as stopped:
        program['main']()
    assert stopped.value.code == 0
    assert f'\n\n{program["__doc__"]}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--model.hop-sise', '160'), '--model.hop-size'),
        (('--steps', 'many'), 'many'),
        (('--optimizer.schedule', 'linear'), 'staircase'),
    ],
)
def test_flags_that_do_not_exist_are_explained(run, capsys, tmp_path, flags, says):
    assert run(*flags) == 2
    captured = capsys.readouterr().err
    assert says in captured
    assert 'Traceback' not in captured
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('flags', 'says'),
    [
        (('--model.window-size', '1000'), 'window_size: 1000'),
        (('--steps', '0'), 'steps must be at least 1, got 0 (--steps)'),
        (('--batch-size', '20'), '(--batch-size) 20 does not divide'),
        (('--batch-size', '20'), 'use 32'),
        (('--optimizer.warmup-steps', '-1'), '(--optimizer.warmup-steps)'),
        ((), 'no data: give --data DIR'),
    ],
)
def test_settings_that_cannot_work_are_one_line(run, capsys, tmp_path, flags, says):
    assert run(*flags) == 2
    assert says in one_error(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('damage', 'code', 'says'),
    [
        ('nowhere', 1, 'no such dataset directory'),
        ('no cache', 1, 'run `python -m data_prep embed'),
        ('shard cut short', 1, 'damaged or cut short'),
        ('shard missing', 1, 'shard is missing'),
        ('cache cut short', 1, 'missing or damaged'),
        ('other encoder', 1, "made by encoder 'clap'"),
        ('other size', 2, '--model.condition-size 64'),
    ],
)
def test_data_that_cannot_be_trained_on_is_one_line(run, capsys, tmp_path, dataset, damage, code, says):
    copy = tmp_path / 'copy'
    shutil.copytree(dataset, copy)
    words = copy / 'embeddings' / 'words'
    if damage == 'nowhere':
        shutil.rmtree(copy)
    elif damage in ('no cache', 'other size'):
        shutil.rmtree(words)
        if damage == 'other size':
            embed_captions(copy, WordsEncoder(embedding_size=64))
    elif damage == 'shard cut short':
        os.truncate(shard_files(copy)[1], 1000)
    elif damage == 'shard missing':
        shard_files(copy)[1].unlink()
    elif damage == 'cache cut short':
        os.truncate(next(words.glob('*.npy')), 100)
    elif damage == 'other encoder':
        (words / 'encoder.json').write_text((words / 'encoder.json').read_text().replace('words', 'clap'))
    assert run('--data', copy) == code
    assert says in one_error(capsys)
    assert not (tmp_path / 'run').exists()
