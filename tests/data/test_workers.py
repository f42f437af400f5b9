"""Worker processes that are killed, fail, or get the signals of the run."""

import os
import signal

import pytest
from support.data_batches import batches_of, clips_in, config_of, damage_clips, take
from support.processes import worker_processes
from support.small_dataset import build_small

from audiosep_jax.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp('dataset')
    build_small(directory, 10)
    return directory


def read_on(batches):
    for _ in range(100):
        next(batches)


@pytest.mark.parametrize(
    ('number', 'says'),
    [
        (
            signal.SIGKILL,
            r'a data worker was killed \(signal 9\), probably because memory ran out: use fewer --workers',
        ),
        (signal.SIGSEGV, r'a data worker died \(signal 11\)'),
    ],
)
def test_a_killed_worker_is_one_line(dataset, number, says):
    """Batches of 2 MB, so that it dies while it sends one."""
    config = config_of(dataset, segment_seconds=32.0, workers=2)
    with batches_of(config) as batches:
        next(batches)
        os.kill(worker_processes(os.getpid())[0], number)
        with pytest.raises(DataError, match=says):
            read_on(batches)
        taken = batches.get_state()
    assert worker_processes(os.getpid()) == [], 'the others ended, too'
    # What was taken counts, and no more: it continues there, here without workers.
    again = batches_of(config_of(dataset, segment_seconds=32.0))
    again.set_state(taken)
    rest = clips_in(take(again, 1)[0])
    whole = take(batches_of(config_of(dataset, segment_seconds=32.0)), taken['position'] // 4 + 1)
    assert list(rest) == list(clips_in(whole[-1]))


def test_the_signals_of_the_run_do_not_end_its_workers(dataset):
    with batches_of(config_of(dataset, workers=2)) as batches:
        next(batches)
        for worker in worker_processes(os.getpid()):
            os.kill(worker, signal.SIGINT)
            os.kill(worker, signal.SIGTERM)
        for _ in range(20):
            next(batches)


def test_a_stopped_worker_delays_no_end(dataset):
    batches = batches_of(config_of(dataset, workers=1))
    next(batches)
    (worker,) = worker_processes(os.getpid())
    os.kill(worker, signal.SIGSTOP)
    assert not batches.wait(50, lambda: True)
    batches.close()
    assert worker_processes(os.getpid()) == []


def test_a_failing_worker_says_why(tmp_path):
    build_small(tmp_path, 4, codec='pcm16')
    batches = batches_of(config_of(tmp_path, workers=2))
    damage_clips(tmp_path, [f'clip-{n}' for n in range(4)])
    with batches, pytest.raises(DataError, match='too many unreadable records in a row') as caught:
        read_on(batches)
    assert '\n' not in str(caught.value)
