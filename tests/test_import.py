"""`import audiosep_jax` is fast: it does not import heavy packages, even where they are installed."""

import subprocess
import sys

import pytest

import audiosep_jax as asj

FORBIDDEN = ('torch', 'tensorflow', 'matplotlib', 'gradio')


@pytest.fixture
def booby_trapped(tmp_path):
    """A folder for `sys.path` with a stand-in for each forbidden package, which ends the process that imports it."""
    for name in FORBIDDEN:
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text(f'raise SystemExit("{name} was imported")')
    return tmp_path


@pytest.mark.parametrize(
    'code',
    [
        'import audiosep_jax',
        'import audiosep_jax as asj; [getattr(asj, name) for name in asj.__all__]',
        'import audiosep_jax.training.train, audiosep_jax.plots',
        'import audiosep_jax.cli.main, audiosep_jax.checkpoints.convert',
        'import audiosep_jax.evaluation.run, audiosep_jax.evaluation.report, audiosep_jax.evaluation.speech',
        'import audiosep_jax.web.page, audiosep_jax.web.server, audiosep_jax.checkpoints.publish',
        'import data_prep.__main__',
    ],
)
def test_no_import_reaches_for_another_framework(booby_trapped, code):
    program = f'import sys; sys.path.insert(0, {str(booby_trapped)!r}); {code}'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')


def test_the_trap_works(booby_trapped):
    program = f'import sys; sys.path.insert(0, {str(booby_trapped)!r}); import torch'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
    assert 'torch was imported' in done.stderr


def test_public_names():
    for name in asj.__all__:
        assert getattr(asj, name).__name__.endswith(name)
        assert name in dir(asj)
    with pytest.raises(AttributeError, match='nonsense'):
        _ = asj.nonsense


@pytest.mark.parametrize('first', ['asj.stft', 'asj.load', 'importlib.import_module("audiosep_jax.audio.stft")'])
def test_stft_is_the_function_whatever_was_imported_before(first):
    """Importing the submodule `stft` would bind it to the package under the same name."""
    program = f'import importlib, audiosep_jax as asj; {first}; asj.stft.__call__; print(asj.stft.__module__)'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ('audiosep_jax.audio.stft\n', '')
