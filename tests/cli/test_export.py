"""`audiosep-jax export`: the files it names, and its errors, one line each."""

import os

import pytest
from support.quarter_separator import one_error
from support.small_separator import save_small

from audiosep_jax.cli.main import main


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp('run'))


@pytest.fixture
def folder(tmp_path, monkeypatch, checkpoint):
    (tmp_path / 'RUN').symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_names_the_files_and_what_was_left_out(folder, capsys):
    assert main(['export', 'RUN', 'out', '--format', 'onnx', '--query', 'a siren']) == 0
    printed, notes = capsys.readouterr()
    assert printed.split()[::3] == [f'out/{name}' for name in sorted(os.listdir('out'))]
    assert len(notes.splitlines()) == 1
    assert 'text.onnx was left out: the query encoder words has no weights' in notes


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['nothing', 'out'], 1, 'no such checkpoint'),
        (['file.txt', 'out'], 1, 'is not a checkpoint'),
        (['RUN', 'taken'], 1, 'taken already exists'),
        (['RUN', 'file.txt'], 1, 'file.txt already exists'),
        (['RUN', 'nowhere/out'], 1, 'does not exist; make it first'),
        (['RUN', 'locked/out'], 1, 'no permission to write'),
        (['RUN', 'out', '--format', 'stablehlo', '--dtype', 'float16'], 2, '--dtype is for ONNX only'),
        (['RUN', 'out', '--query', ''], 2, 'the query is empty'),
    ],
)
def test_errors_are_one_line(folder, capsys, arguments, code, message, monkeypatch):
    for name in ('taken', 'locked'):
        (folder / name).mkdir()
    (folder / 'taken' / 'x').touch()
    (folder / 'file.txt').write_text('text')
    access = os.access  # root may write anywhere
    monkeypatch.setattr(os, 'access', lambda path, mode: 'locked' not in str(path) and access(path, mode))
    assert main(['export', *arguments]) == code
    assert message in one_error(capsys)
    assert not (folder / 'out').exists()


@pytest.mark.parametrize(('flag', 'value'), [('--format', 'tflite'), ('--dtype', 'int8')])
def test_unknown_choices_are_refused(folder, capsys, flag, value):
    assert main(['export', 'RUN', 'out', flag, value]) == 2
    assert value in capsys.readouterr().err
