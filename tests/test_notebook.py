"""The notebook in docs/: clean as it is committed, and every cell runs."""

import os
import re
import shutil

import pytest
from support.documents import Block, dry_run
from support.paths import ROOT

nbformat = pytest.importorskip('nbformat', reason='the extra test is not installed')
PATH = ROOT / 'docs' / 'quickstart.ipynb'
STEPS = 4  # of training, instead of 1400


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture
def checkout(tmp_path):
    """A copy, because an installation from a folder leaves its build there."""
    for name in ('audiosep_jax', 'data_prep', 'experiments'):
        shutil.copytree(ROOT / name, tmp_path / 'checkout' / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, tmp_path / 'checkout')
    return tmp_path / 'checkout'


def test_it_is_valid_and_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.metadata == {}
        assert cell.cell_type == 'markdown' or (cell.outputs, cell.execution_count) == ([], None)


def test_its_links_lead_somewhere(notebook):
    text = '\n'.join(cell.source for cell in notebook.cells if cell.cell_type == 'markdown')
    links = re.findall(r'\]\(([^)#]+)', text)
    assert links
    assert all((PATH.parent / link).is_file() for link in links)


def test_its_commands_are_understood(notebook):
    lines = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith('!audiosep-jax')]
    assert lines
    for line in lines:
        dry_run(Block(PATH.name, 1, 'bash', 'needs: the cells before', line.removeprefix('!')))


@pytest.mark.slow
@pytest.mark.nightly
def test_every_cell_runs(notebook, checkout, tmp_path, monkeypatch):
    """The checkout is installed into a folder of the test, without its dependencies, which are here."""
    nbclient = pytest.importorskip('nbclient', reason='the extra test is not installed')
    pytest.importorskip('ipykernel', reason='the extra test is not installed')
    packages, work = tmp_path / 'packages', tmp_path / 'work'
    work.mkdir()
    settings = {'no-deps': 'true', 'no-build-isolation': 'false', 'no-index': 'true', 'target': str(packages)}
    (tmp_path / 'pip.conf').write_text(
        '\n'.join(['[install]', *(f'{key} = {value}' for key, value in settings.items())])
    )
    for name, value in {
        'AUDIOSEP_JAX_SOURCE': str(checkout),
        'QUICKSTART_STEPS': str(STEPS),
        'PIP_CONFIG_FILE': str(tmp_path / 'pip.conf'),
        'PYTHONPATH': str(packages),
        'PATH': os.pathsep.join([str(packages / 'bin'), os.environ['PATH']]),
        'IPYTHONDIR': str(tmp_path / 'ipython'),
    }.items():
        monkeypatch.setenv(name, value)
    nbclient.NotebookClient(notebook, timeout=1800, resources={'metadata': {'path': str(work)}}).execute()

    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == 'code'}
    texts = {name: ''.join(output.get('text', '') for output in cell) for name, cell in outputs.items()}
    assert (packages / 'audiosep_jax' / '__init__.py').is_file()
    assert re.search(r'SDRi -?\d+\.\d\d dB', texts['train']), texts['train']
    assert 'mixture__a_siren.wav' in texts['separate']
    assert texts['python'].splitlines() == ['the siren', 'the residual']
    for name, players, pictures in (('listen', 3, 1), ('python', 2, 0)):
        shown = [output.data for output in outputs[name] if output.output_type == 'display_data']
        assert len([data for data in shown if '<audio' in data.get('text/html', '')]) == players
        assert len([data for data in shown if 'image/png' in data]) == pictures
