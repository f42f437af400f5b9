"""Runs of several real processes, and what becomes of them when one is killed, stopped or given other settings."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from support.processes import Processes, command_of
from support.training_runs import config_of, losses_in

from audiosep_jax.parallel.mesh import MeshConfig
from audiosep_jax.training.optim import OptimizerConfig
from audiosep_jax.training.train import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('shared_programs')]

# At Adam's usual 1e-8 runs drift apart by percents: what is only rounding in a gradient moves a weight like the rest.
EPS = 1e-2


def run_of(dataset, workdir, **settings):
    return config_of(dataset, workdir, optimizer=OptimizerConfig(schedule='constant', eps=EPS), **settings)


def command_with(dataset, workdir, changes):
    return command_of(dataset, workdir, {'--optimizer.eps': [EPS], **changes})


@pytest.fixture(scope='module')
def alone(dataset, tmp_path_factory):
    """The losses of eight steps on the eight devices of one process.

    Later, rounding that flips the sign of an activation has grown too large for the tolerance.
    """
    workdir = tmp_path_factory.mktemp('alone')
    train(run_of(dataset, workdir, steps=8))
    return losses_in(workdir)


def assert_same_losses(workdir, alone):
    found = {step: loss for step, loss in losses_in(workdir).items() if step in alone}
    np.testing.assert_allclose([*found.values()], [alone[step] for step in found], rtol=2e-4)


def saved_steps(workdir: Path) -> set[int]:
    folder = workdir / 'checkpoints'
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()} if folder.is_dir() else set()


@pytest.mark.nightly
def test_one_is_killed_another_stopped_and_other_numbers_continue(dataset, tmp_path, alone):
    """Two processes, then two again, then one with its weights split over two devices: one run, one stream of data."""
    command = command_with(dataset, tmp_path, {'--steps': [10_000]})
    with Processes([command] * 2, heartbeat=10) as two:
        two.wait_for(lambda: 2 in saved_steps(tmp_path))
        two.all[1].kill()
        killed = time.monotonic()
        codes, said = two.ends()
        assert codes[0] not in (0, 130)
        assert time.monotonic() - killed < 300, 'the survivor does not wait for ever'
        assert 'another process' in said[0] or 'another task died' in said[0]
    last = max(saved_steps(tmp_path))

    with Processes([command] * 2) as two:
        two.wait_for(lambda: last + 2 in saved_steps(tmp_path))
        two.all[1].send_signal(signal.SIGTERM)
        codes, said = two.ends()
    assert codes == [130, 130], said
    stopped = max(saved_steps(tmp_path))
    assert stopped > last
    assert f'stopped; the same command continues: step {stopped}' in said[0]
    assert 'stopped;' not in said[1], 'one process speaks'

    assert [*losses_in(tmp_path)] == [*range(1, stopped + 1)]
    assert_same_losses(tmp_path, alone)

    train(run_of(dataset, tmp_path, steps=stopped + 2, mesh=MeshConfig(fsdp=2)))
    assert [*losses_in(tmp_path)] == [*range(1, stopped + 3)]
    positions = json.loads(next((tmp_path / 'checkpoints' / str(stopped + 2) / 'data').iterdir()).read_text())
    assert positions['position'] == 16 * (stopped + 2)


@pytest.mark.parametrize('count', [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_several_processes_have_the_losses_of_one(dataset, tmp_path, alone, count):
    with Processes([command_with(dataset, tmp_path, {'--steps': [3], '--mesh.fsdp': [2]})] * count) as several:
        codes, said = several.ends()
    assert codes == [0] * count, said
    assert_same_losses(tmp_path, alone)
    assert len(losses_in(tmp_path)) == 3
    # And one process goes on from what they wrote.
    train(run_of(dataset, tmp_path, steps=5))
    assert_same_losses(tmp_path, alone)


def test_processes_that_do_not_fit_together_all_say_so(dataset, tmp_path):
    commands = [command_of(dataset, tmp_path / 'run', {'--seed': [seed]}) for seed in (0, 1)]
    with Processes(commands) as two:
        codes, said = two.ends()
    assert codes == [2, 2]
    for text in said:
        assert 'process 1 was started with other settings' in text
    assert not (tmp_path / 'run').exists()


def test_workdirs_that_are_not_shared_are_told_apart(dataset, tmp_path, monkeypatch):
    """Two hosts, each with a folder of that name: here two current folders and a relative path."""
    commands = []
    for index in range(2):
        (tmp_path / str(index)).mkdir()
        inner = command_of(dataset, 'run')
        commands.append(['env', '-C', str(tmp_path / str(index)), *inner])
    with Processes(commands) as two:
        codes, said = two.ends()
    assert codes == [1, 1]
    for text in said:
        assert 'process 1 does not see what process 0 writes there' in text
