"""The package as a whole: its public names, and what importing it does not import."""

import pkgutil
import subprocess
import sys

import pytest

import audiosep_jax

SUBMODULES = sorted(module.name for module in pkgutil.walk_packages(audiosep_jax.__path__, 'audiosep_jax.'))


def run(code: str, **options) -> str:
    command = [sys.executable, '-W', 'error', '-c', code]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, **options).stdout


@pytest.mark.parametrize('name', audiosep_jax.__all__)
def test_public_names_are_there(name):
    assert name in dir(audiosep_jax)
    assert getattr(audiosep_jax, name).__name__.endswith(name)


@pytest.mark.parametrize('first', ['asj.stft', 'asj.load', 'importlib.import_module("audiosep_jax.stft")'])
def test_stft_is_the_function_whatever_was_imported_before(first):
    """Importing the submodule `stft` binds it to the package under the same name."""
    code = f'import importlib, audiosep_jax as asj; {first}; from audiosep_jax.stft import istft; asj.stft.__call__'
    run(f'{code}; assert asj.istft is istft')


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'spft'"):
        audiosep_jax.spft  # noqa: B018


def test_importing_everything_imports_no_other_framework(tmp_path):
    """Also where they are installed: these stand-ins can be found, and would be, by whoever looks for them."""
    for name in ('torch', 'tensorflow'):
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text('__version__ = "99.0"\n')
    code = (
        f'import importlib, sys; sys.path.insert(0, {str(tmp_path)!r})\n'
        f'for name in {SUBMODULES}: importlib.import_module(name)\n'
        'print([name for name in ("torch", "tensorflow", "matplotlib") if name in sys.modules])'
    )
    assert 'audiosep_jax.train' in SUBMODULES
    assert run(code).strip() == '[]'


def test_importing_the_package_alone_costs_nothing():
    code = 'import sys, audiosep_jax; print([name for name in ("jax", "numpy", "flax", "rich") if name in sys.modules])'
    assert run(code).strip() == '[]'
