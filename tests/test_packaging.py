"""The wheel and the source archive hold what their users need, and nothing else."""

import configparser
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

import audiosep_jax

pytest.importorskip('build')
pytest.importorskip('setuptools')

PACKAGES = ('audiosep_jax', 'data_prep')


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
    """The folder of both. The wheel is built from the source archive, which proves that the archive is complete.

    They are built from a copy, because a build writes into the tree, and without isolation, which would need a network.
    """
    tree = tmp_path_factory.mktemp('tree')
    for name in (*PACKAGES, 'docs', 'launch'):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    (tree / 'tests').mkdir()
    (tree / 'tests' / 'test_nothing.py').touch()
    out = tmp_path_factory.mktemp('distributions')
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope='module')
def wheel(distributions):
    """The names in the wheel, and the texts of its metadata by their file's name."""
    (path,) = distributions.glob('*.whl')
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        metadata = {Path(n).name: archive.read(n).decode() for n in names if '.dist-info/' in n}
    return names, metadata


def source_files():
    """Every file of the packages, as the wheel should name them."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob('*')]
    return {p.relative_to(ROOT).as_posix() for p in paths if p.is_file() and '__pycache__' not in p.parts}


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    names, _ = wheel
    assert {name for name in names if '.dist-info/' not in name} == source_files()
    assert {f'{package}/py.typed' for package in PACKAGES} < names


def test_a_version_is_known_for_whatever_is_installed():
    """`pip install -c constraints.txt` takes the newest version of what the file does not name."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    versions = {canonicalize_name(name): version for name, _, version in (line.partition('==') for line in lines[1:])}
    settings = configparser.RawConfigParser()
    settings.read(ROOT / 'setup.cfg')
    extras = (settings['options.extras_require'][name] for name in ('demo', 'mcp', 'speech', 'export', 'test'))
    for text in '\n'.join([settings['options']['install_requires'], *extras]).splitlines():
        if text and not text.startswith(('#', '%')):
            wanted = Requirement(text)
            assert versions.get(canonicalize_name(wanted.name), 'none') in wanted.specifier, text


def test_the_wheel_s_metadata(wheel):
    _, metadata = wheel
    assert f'\nVersion: {audiosep_jax.__version__}\n' in metadata['METADATA']
    assert '\nLicense: MIT\n' in metadata['METADATA']
    assert metadata['LICENSE'] == (ROOT / 'LICENSE').read_text('utf-8')
    assert '\naudiosep-jax = audiosep_jax.cli' in metadata['entry_points.txt']


def test_the_source_archive_holds_the_manual_the_launch_files_and_the_tests(distributions):
    (path,) = distributions.glob('*.tar.gz')
    with tarfile.open(path) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    others = [path for folder in ('docs', 'launch') for path in (ROOT / folder).iterdir() if path.is_file()]
    assert source_files() | {path.relative_to(ROOT).as_posix() for path in others} < names
    assert {'LICENSE', 'CHANGELOG.md', 'constraints.txt', 'tests/test_nothing.py'} < names
