"""Runs that stop because a data worker was killed, reading fails, or a signal comes while they wait for data."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import jax
import pytest
from support.compiling import xla_flags
from support.processes import Processes, command_of, worker_processes
from support.training_runs import config_of, losses_in, variables_of

import audiosep_jax.training.train as train_module
from audiosep_jax.data.batches import Batches
from audiosep_jax.errors import DataError
from audiosep_jax.training.train import train

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.fixture(scope='module')
def uninterrupted(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('uninterrupted')
    train(config_of(dataset, workdir))
    return workdir


def assert_same_run(workdir, uninterrupted):
    assert losses_in(workdir) == losses_in(uninterrupted)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables_of(workdir), variables_of(uninterrupted))
    assert jax.tree.all(same)


def steps_in(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())


def break_reading_after(monkeypatch, batches: int, stuck: threading.Event | None = None):
    """From then on, the source fails; with `stuck`, it gives nothing until that is set."""
    pipeline = Batches._pipeline

    def breaking(self):
        source = pipeline(self)

        class Breaking:
            given = 0

            def __next__(self):
                if self.given == batches:
                    if stuck:
                        stuck.wait()
                    raise OSError('Stale file handle')
                self.given += 1
                return next(source)

            def close(self):
                source.close()

        return Breaking()

    monkeypatch.setattr(Batches, '_pipeline', breaking)


def test_data_that_go_away_cost_no_step(dataset, tmp_path, uninterrupted, monkeypatch):
    break_reading_after(monkeypatch, 3)
    with pytest.raises(DataError, match=r'Stale file handle; the same command continues after step 3'):
        train(config_of(dataset, tmp_path, checkpoint_every=100))
    assert steps_in(tmp_path) == [3]
    monkeypatch.undo()
    train(config_of(dataset, tmp_path))
    assert_same_run(tmp_path, uninterrupted)


def test_data_that_fail_at_the_start_are_an_error_without_a_checkpoint(dataset, tmp_path, monkeypatch):
    break_reading_after(monkeypatch, 0)
    with pytest.raises(DataError, match='Stale file handle'):
        train(config_of(dataset, tmp_path))
    assert steps_in(tmp_path) == []


def test_a_signal_reaches_the_save_while_the_loop_waits_for_data(dataset, tmp_path, uninterrupted, monkeypatch):
    stuck = threading.Event()
    break_reading_after(monkeypatch, 3, stuck)
    update = train_module.TrainingProgress.update

    def stop_soon(self, step, *args):
        update(self, step, *args)
        if step == 3:
            threading.Timer(0.5, signal.raise_signal, [signal.SIGTERM]).start()

    monkeypatch.setattr(train_module.TrainingProgress, 'update', stop_soon)
    result = train(config_of(dataset, tmp_path, checkpoint_every=100))
    stuck.set()
    assert (result.step, result.stopped) == (3, True)
    assert steps_in(tmp_path) == [3]
    monkeypatch.undo()
    train(config_of(dataset, tmp_path))
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_last_save_does_not_cut_it_off(dataset, tmp_path, monkeypatch, number):
    wait = train_module.Checkpointer.wait

    def interrupted(self):
        if 2 in self.steps():
            signal.raise_signal(number)
        wait(self)

    monkeypatch.setattr(train_module.Checkpointer, 'wait', interrupted)
    result = train(config_of(dataset, tmp_path, steps=2))
    assert (result.step, result.stopped) == (2, False)
    assert steps_in(tmp_path) == [2]


def long_run(dataset, workdir) -> list[str]:
    changes = {'--steps': [100_000], '--checkpoint-every': [100_000], '--workers': [2], '--segment-seconds': [0.5]}
    return command_of(dataset, workdir, changes)


def last_logged(workdir: Path) -> int:
    log = workdir / 'log.jsonl'
    return max(losses_in(workdir), default=0) if log.exists() and log.read_text().endswith('\n') else 0


@pytest.mark.slow
@pytest.mark.nightly
def test_a_killed_data_worker_ends_the_run_with_a_checkpoint(dataset, tmp_path):
    environment = {**os.environ, 'XLA_FLAGS': xla_flags(devices=1)}
    command = long_run(dataset, tmp_path)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            wait_until(lambda: last_logged(tmp_path) >= 3, process)
            os.kill(worker_processes(process.pid)[-1], signal.SIGKILL)
            said = process.communicate(timeout=300)[1]
        finally:
            process.kill()
    assert process.returncode == 1
    step = last_logged(tmp_path)
    assert steps_in(tmp_path) == [step]
    last = said.strip().splitlines()[-1]
    assert re.fullmatch(
        r'audiosep_clap: error: a data worker was killed \(signal 9\), probably because memory ran out: .*'
        rf'; the same command continues after step {step}',
        last,
    )
    assert 'Traceback' not in said


@pytest.mark.slow
@pytest.mark.nightly
def test_a_killed_data_worker_of_one_process_lets_all_save_the_same_step(dataset, tmp_path):
    with Processes([long_run(dataset, tmp_path)] * 2, devices=1) as two:
        two.wait_for(lambda: last_logged(tmp_path) >= 3)
        os.kill(worker_processes(two.all[1].pid)[0], signal.SIGKILL)
        codes, said = two.ends(timeout=300)
    assert codes == [1, 1], said
    step = last_logged(tmp_path)
    assert steps_in(tmp_path) == [step]
    assert (
        f'the data of another process failed, see what it said; the same command continues after step {step}' in said[0]
    )
    assert 'a data worker was killed (signal 9)' in said[1]
    assert not any('Traceback' in text for text in said)


def wait_until(condition, process, timeout=600):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
