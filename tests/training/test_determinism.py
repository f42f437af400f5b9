"""Deterministic runs: XLA gets its flag for GPUs before it starts, or the run is refused."""

import os
import subprocess
import sys

import jax
import pytest

from audiosep_jax.errors import ConfigError
from audiosep_jax.training import determinism
from audiosep_jax.training.determinism import make_deterministic

FLAG = '--xla_gpu_deterministic_ops=true'
# The program of a run, as far as XLA's options; then a compilation, of which XLA notes its options.
PROGRAM = """
import sys, jax
from audiosep_jax.training import experiment
from audiosep_jax.training.config import TrainConfig

def train(config):
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
    raise SystemExit(7)

experiment.train = train
experiment.run_experiment(TrainConfig, 'test', None)
"""


@pytest.fixture
def not_started(monkeypatch):
    monkeypatch.setattr(determinism.xla_bridge, 'backends_are_initialized', lambda: False)


@pytest.mark.parametrize(('given', 'then'), [(None, FLAG), ('--a --b=1', f'--a --b=1 {FLAG}'), (FLAG, FLAG)])
def test_the_flag_is_added_to_the_others(not_started, monkeypatch, given, then):
    if given is None:
        monkeypatch.delenv('XLA_FLAGS', raising=False)
    else:
        monkeypatch.setenv('XLA_FLAGS', given)
    monkeypatch.setattr(determinism.os, 'environ', dict(os.environ))
    make_deterministic()
    assert determinism.os.environ['XLA_FLAGS'] == then
    make_deterministic()
    assert determinism.os.environ['XLA_FLAGS'] == then


def test_flags_in_a_file_are_refused(not_started, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '/etc/xla_flags')
    with pytest.raises(ConfigError, match='names a file'):
        make_deterministic()


def test_after_jax_has_started_it_is_too_late_on_a_gpu_only(monkeypatch):
    before = os.environ['XLA_FLAGS']
    jax.devices()
    make_deterministic()  # on a CPU, which is deterministic
    assert os.environ['XLA_FLAGS'] == before
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    with pytest.raises(ConfigError, match=f'set XLA_FLAGS={FLAG} before'):
        make_deterministic()
    monkeypatch.setenv('XLA_FLAGS', FLAG)
    make_deterministic()


def test_xla_gets_the_flag_from_the_command_line(tmp_path):
    environment = {**os.environ, 'XLA_FLAGS': f'--xla_dump_to={tmp_path}', 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    command = [sys.executable, '-c', PROGRAM, '--workdir', str(tmp_path / 'run'), '--deterministic']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    options = [path.read_text() for path in tmp_path.glob('*debug_options*')]
    assert options
    assert all('xla_gpu_deterministic_ops: true' in text for text in options)
