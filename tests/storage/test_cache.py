"""The user's cache, and programs where there is none: in a container, without a home or an entry in /etc/passwd."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import soundfile
from support.compiling import xla_flags
from support.paths import ROOT
from support.processes import command_of
from support.small_dataset import SAMPLE_RATE, tone

from audiosep_jax.storage import cache

USER = 12345
# A user namespace: the files stay readable, and the number has no name.
NAMELESS = ['unshare', '--user', f'--map-user={USER}', f'--map-group={USER}']
CHECK = 'import os, pwd; pwd.getpwuid(os.getuid())'
VARIABLES = ('HOME', 'USER', 'LOGNAME', 'XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'MPLCONFIGDIR', 'HF_HOME')


def runs_without_a_name() -> bool:
    if shutil.which('unshare') is None:
        return False
    tried = subprocess.run([*NAMELESS, sys.executable, '-c', CHECK], capture_output=True, text=True)
    return 'uid not found' in tried.stderr


@pytest.fixture(scope='module')
def homeless():
    """Runs a Python program as a user without a home and a name; returns what it printed and said."""
    if not runs_without_a_name():
        pytest.skip('this system gives no user namespace')

    def run(folder, *arguments):
        environment = {k: v for k, v in os.environ.items() if k not in (*VARIABLES, 'JAX_COMPILATION_CACHE_DIR')}
        environment['XLA_FLAGS'] = xla_flags(devices=1)  # all compile for themselves
        environment['PYTHONPATH'] = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        done = subprocess.run(
            [*NAMELESS, sys.executable, *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert 'Traceback' not in done.stderr
        return done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ('variables', 'xla_caches'),
    [
        ({'JAX_COMPILATION_CACHE_DIR': '/shared/xla'}, None),
        ({'JAX_COMPILATION_CACHE_DIR': 'gs://bucket/xla'}, 'none'),
        ({'JAX_COMPILATION_CACHE_DIR': 'gs://bucket/xla', 'JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES': 'all'}, None),
    ],
)
def test_xla_writes_nothing_of_its_own_to_a_bucket(monkeypatch, variables, xla_caches):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    changes = {}
    monkeypatch.setattr(jax.config, 'update', changes.__setitem__)
    cache.enable_compilation_cache()
    assert changes == ({'jax_persistent_cache_enable_xla_caches': xla_caches} if xla_caches else {})


@pytest.mark.slow
@pytest.mark.nightly
def test_everything_works_without_a_home(homeless, tmp_path):
    build = ['-m', 'data_prep', 'build', 'synthetic', '--out', 'shards', '--clips', 24, '--sample-rate', SAMPLE_RATE]
    homeless(tmp_path, *build)
    homeless(tmp_path, '-m', 'data_prep', 'embed', 'shards')
    training = command_of(Path('shards'), Path('run'), {'--steps': [2], '--workers': [1]})
    homeless(tmp_path, *training[1:])
    soundfile.write(tmp_path / 'a.wav', tone(1, 8000), SAMPLE_RATE)
    program = ['-m', 'audiosep_jax.cli']
    homeless(tmp_path, *program, 'separate', 'a.wav', '--query', 'a dog', '--checkpoint', 'run', '-o', 'separated')
    (tmp_path / 'mixtures.csv').write_text('mixture,target,query\na.wav,a.wav,dog\n')
    evaluation = ['--data', 'mixtures.csv', '--benchmark', 'csv', '--checkpoint', 'run', '--out', 'scores']
    _, said = homeless(tmp_path, *program, 'evaluate', *evaluation)
    assert 'matplotlib' not in said
    assert (tmp_path / 'scores' / 'csv' / 'report.md').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *('a.wav', 'mixtures.csv', 'run', 'scores', 'separated', 'shards'),
    ], 'nobody took ~ for a folder'


IMPORTS = """
import audiosep_jax as asj
for name in asj.__all__:
    getattr(asj, name)
import audiosep_jax.training.experiment, audiosep_jax.checkpoints.convert, data_prep.__main__
from audiosep_jax.checkpoints.find import find_checkpoint
from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.cache import cache_folder, enable_compilation_cache, give_libraries_a_cache
enable_compilation_cache()
give_libraries_a_cache()
import huggingface_hub.constants, jax, os
try:
    find_checkpoint('~/nothing/here/at/all')
except CheckpointError as error:
    assert 'no such checkpoint' in str(error)
print(jax.config.jax_compilation_cache_dir, huggingface_hub.constants.HF_HUB_CACHE.startswith(str(cache_folder())))
print(cache_folder())
"""


def test_imports_and_the_cache_without_a_home(homeless, tmp_path):
    printed, _ = homeless(tmp_path, '-c', IMPORTS)
    settings, folder = printed.splitlines()
    assert settings == 'None True'
    assert not Path(folder).exists(), 'the temporary cache goes with the process'


def test_the_user_s_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'caches'))
    assert cache.cache_folder() == tmp_path / 'caches' / 'audiosep_jax'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache.cache_folder() == tmp_path / '.cache' / 'audiosep_jax'
    assert cache.expanded('~/a') == tmp_path / 'a'


def test_a_cache_that_cannot_be_written_is_temporary(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    for name in ('MPLCONFIGDIR', 'HF_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file' / 'caches'))
    folder = cache.cache_folder()
    assert folder.is_dir()
    assert folder == cache.cache_folder()
    cache.give_libraries_a_cache()
    assert os.environ['MPLCONFIGDIR'] == str(folder / 'matplotlib')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache.cache_folder() == tmp_path / 'audiosep_jax'
