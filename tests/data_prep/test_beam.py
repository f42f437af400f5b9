"""Apache Beam needs an environment of its own (protobuf < 7): where it is not installed, these tests are skipped."""

import importlib.util
import os
import subprocess
import sys

import pytest

from data_prep.__main__ import main
from data_prep.beam import pipeline_options
from data_prep.build import build_shards
from data_prep.datasets.synthetic import SyntheticClips

HAS_BEAM = importlib.util.find_spec('apache_beam') is not None
HAS_DASK = HAS_BEAM and importlib.util.find_spec('distributed') is not None
needs_beam = pytest.mark.skipif(not HAS_BEAM, reason="Apache Beam is not installed: pip install -e '.[beam]'")

FLAGS = ('--clips', '10', '--seed', '1', '--seconds', '0.25', '--sample-rate', '8000', '--clips-per-shard', '3')
IN_PROCESS = '--runner=DirectRunner'
MULTI_PROCESS = '--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing'
DASK = '--runner=DaskRunner'


def contents(directory) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob('*') if p.is_file()}


def build(out, *flags) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'data_prep', 'build', *flags, '--name', 'toy', '--out', out]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture
def local(tmp_path):
    build_shards(SyntheticClips(10, 1, 0.25), tmp_path / 'local', sample_rate=8000, name='toy', clips_per_shard=3)
    return tmp_path / 'local'


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize(
    'beam_args',
    [
        IN_PROCESS,
        MULTI_PROCESS,
        pytest.param(DASK, marks=pytest.mark.skipif(not HAS_DASK, reason='dask and distributed are not installed')),
    ],
)
def test_beam_and_local_builds_are_the_same_bytes(tmp_path, local, beam_args):
    done = build(tmp_path / 'out', 'synthetic', *FLAGS, '--runner', 'beam', f'--beam-args={beam_args}')
    assert done.returncode == 0, done.stderr
    assert '4 of 4 shards made now' in done.stdout
    assert contents(tmp_path / 'out') == contents(local)


@needs_beam
@pytest.mark.slow
def test_beam_makes_only_what_is_missing(tmp_path, local):
    before = contents(local)
    missing = sorted(local.glob('toy-train.array_record-*'))[2]
    missing.unlink()
    kept = {path: path.stat().st_mtime_ns for path in local.glob('toy-train.array_record-*')}
    done = build(local, 'synthetic', *FLAGS, '--runner', 'beam', f'--beam-args={IN_PROCESS}')
    assert '1 of 4 shards made now' in done.stdout, done.stderr
    assert contents(local) == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize('beam_args', [IN_PROCESS, MULTI_PROCESS])
def test_a_shard_that_fails_on_beam_is_one_line(tmp_path, beam_args):
    """A folder where a shard is to be: it cannot be renamed into place."""
    out = tmp_path / 'out'
    (out / 'splits').mkdir(parents=True)
    (out / 'splits' / 'train-00002-of-00004.json').mkdir()
    done = build(out, 'synthetic', *FLAGS, '--runner', 'beam', f'--beam-args={beam_args}')
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith('data_prep: error')]
    assert len(errors) == 1
    assert 'cannot be written' in errors[0]
    assert not list(out.glob('splits/.*'))


@needs_beam
@pytest.mark.parametrize('beam_args', ['--runner=NoSuchRunner', 'runner', '--direct_num_workers=many'])
def test_flags_that_beam_does_not_take_write_nothing(tmp_path, beam_args, capsys):
    flags = ['--runner', 'beam', f'--beam-args={beam_args}', '--out', str(tmp_path / 'out')]
    assert main(['build', 'synthetic', *FLAGS, *flags]) == 2
    assert '--beam-args' in capsys.readouterr().err.splitlines()[-1]
    assert not os.listdir(tmp_path)


@needs_beam
def test_direct_runner_downloads_nothing():
    # Prism is left alone for pipelines with unsafe triggers, whether they have any or not.
    assert pipeline_options(['--runner=DirectRunner']).get_all_options()['allow_unsafe_triggers']


@pytest.mark.skipif(HAS_BEAM, reason='Apache Beam is installed')
def test_without_beam_one_line_says_how_to_get_it(tmp_path, capsys):
    assert main(['build', 'synthetic', *FLAGS, '--runner', 'beam', '--out', str(tmp_path / 'out')]) == 2
    assert "pip install 'audiosep_jax[beam]'" in capsys.readouterr().err
    assert not os.listdir(tmp_path)
