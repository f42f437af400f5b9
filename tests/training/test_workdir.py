"""The lock of a workdir as the training program takes it: two starts, a killed run, and readers in the meantime."""

import dataclasses
import os
import shutil
import signal
import subprocess

import pytest
from support.processes import Processes, command_of
from support.training_runs import config_of

import audiosep_jax.training.train as train_module
from audiosep_jax.errors import CheckpointError, DataError
from audiosep_jax.separation.loading import load
from audiosep_jax.storage import run_lock
from audiosep_jax.storage.run_lock import LOCK_FILE, RunLock
from audiosep_jax.training.train import train

pytestmark = pytest.mark.usefixtures('shared_programs')


def test_a_second_run_is_refused_before_anything_is_touched(dataset, tmp_path):
    train(config_of(dataset, tmp_path, steps=2))
    lock = RunLock(tmp_path)
    lock.acquire()
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob('*')) if path.is_file()}
    del before[tmp_path / LOCK_FILE]
    with pytest.raises(CheckpointError, match=f'{tmp_path} is in use by another run .process {os.getpid()} on '):
        train(config_of(dataset, tmp_path))
    assert load(tmp_path).info['step'] == 2  # who only reads need not wait
    lock.release()
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob('*')) if path.is_file()} == before
    assert train(config_of(dataset, tmp_path)).step == 6
    assert not (tmp_path / LOCK_FILE).exists()


def test_the_lock_is_released_after_errors_and_signals(dataset, tmp_path, monkeypatch):
    def fail(*_, **__):
        assert (tmp_path / 'run' / LOCK_FILE).exists()
        raise DataError('enough')

    with monkeypatch.context() as patch:
        patch.setattr(train_module, 'make_batches', fail)
        with pytest.raises(DataError, match='enough'):
            train(config_of(dataset, tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()

    update = train_module.TrainingProgress.update

    def stop(self, step, *args):
        update(self, step, *args)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train_module.TrainingProgress, 'update', stop)
    assert train(config_of(dataset, tmp_path / 'run')).stopped
    assert not (tmp_path / 'run' / LOCK_FILE).exists()


def test_a_run_that_lost_its_lock_ends_before_it_writes(dataset, tmp_path, monkeypatch):
    update = train_module.TrainingProgress.update

    def lose_after_3(self, step, *args):
        update(self, step, *args)
        if step == 3:
            other = dataclasses.replace(run_lock._Holder.here(), host='node7', pid=5)
            (tmp_path / LOCK_FILE).unlink()
            (tmp_path / LOCK_FILE).write_bytes(other.encode())
            monkeypatch.setattr(run_lock, '_PERIOD', 0.0)  # so long ago seems the last refreshment

    monkeypatch.setattr(train_module.TrainingProgress, 'update', lose_after_3)
    with pytest.raises(CheckpointError, match=r'taken over by another run .process 5 on node7'):
        train(config_of(dataset, tmp_path))
    assert len((tmp_path / 'log.jsonl').read_text().splitlines()) == 3


def test_a_run_whose_workdir_was_removed_writes_nothing_into_the_next_one(dataset, tmp_path, monkeypatch):
    update = train_module.TrainingProgress.update
    workdir = tmp_path / 'run'
    following = RunLock(workdir)

    def start_another_after_3(self, step, *args):
        update(self, step, *args)
        if step == 3:
            shutil.rmtree(workdir)
            following.acquire()

    monkeypatch.setattr(train_module.TrainingProgress, 'update', start_another_after_3)
    with pytest.raises(CheckpointError, match=r'taken over by another run .* after it was removed') as caught:
        train(config_of(dataset, workdir, checkpoint_every=6))  # so none is being written meanwhile
    assert '\n' not in str(caught.value)
    assert [path.name for path in workdir.iterdir()] == [LOCK_FILE]
    following.check()
    following.release()


@pytest.mark.slow
@pytest.mark.nightly
def test_the_program_refuses_a_second_start_and_takes_over_from_a_killed_one(dataset, tmp_path):
    command = command_of(dataset, tmp_path, {'--steps': [100_000]})
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        while 'step 2/' not in (line := first.stderr.readline()):
            assert line, 'it has ended'
        os.setpriority(os.PRIO_PGRP, first.pid, 19)  # leaves the processors to the others
        second = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert second.returncode == 1
        (said,) = second.stderr.splitlines()
        assert f'audiosep_clap: error: {tmp_path} is in use by another run (process {first.pid} on ' in said
        with Processes([command] * 2) as two:
            codes, said = two.ends()
        assert codes == [1, 1]
        for index, text in enumerate(said):
            assert f'process {index}: error: {tmp_path} is in use by another run (process {first.pid} on ' in text
            assert 'Traceback' not in text
    finally:
        first.kill()
        first.communicate()
    third = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert f'taking over {tmp_path} from process {first.pid} on ' in third.stderr.readline()
    third.stderr.readline()
    third.send_signal(signal.SIGTERM)
    third.communicate()
