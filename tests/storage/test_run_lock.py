"""The lock of a run's folder: one holder, dead holders, other machines, buckets, and a holder that was suspended."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage import run_lock
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.storage.run_lock import LOCK_FILE, RunLock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Seconds become hundredths of a second."""
    for name, value in {'_PERIOD': 0.05, '_STALE': 0.3, '_SETTLE': 0.02}.items():
        monkeypatch.setattr(run_lock, name, value)


def holder_in(folder) -> run_lock._Holder:
    return run_lock._Holder.decode((folder / LOCK_FILE).read_bytes())


def write_holder(folder, **changes) -> run_lock._Holder:
    """Writes a lock of a process that looks like this one, except for the changes."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = dataclasses.replace(run_lock._Holder.here(), **changes)
    (folder / LOCK_FILE).write_bytes(holder.encode())
    return holder


def dead_process() -> int:
    with subprocess.Popen([sys.executable, '-c', '']) as process:
        process.wait()
    return process.pid


def test_a_second_run_is_refused_and_the_folder_is_free_again_afterwards(tmp_path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert first.acquire() == ''
    with pytest.raises(
        CheckpointError, match=rf'in use by another run \(process {os.getpid()} on .*, since 20'
    ) as caught:
        second.acquire()
    assert '\n' not in str(caught.value)
    assert 'if that process is dead' not in str(caught.value)
    second.release()
    first.check()
    assert (tmp_path / LOCK_FILE).exists()
    first.release()
    first.release()
    assert not list(tmp_path.iterdir())
    assert second.acquire() == ''
    second.release()


def test_a_folder_that_was_made_for_the_lock_is_removed_if_nothing_was_written(tmp_path):
    lock = RunLock(tmp_path / 'runs' / 'new')
    lock.acquire()
    lock.release()
    assert not (tmp_path / 'runs').exists()
    lock = RunLock(tmp_path / 'runs' / 'new')
    lock.acquire()
    (tmp_path / 'runs' / 'new' / 'log.jsonl').write_text('')
    lock.release()
    assert [path.name for path in (tmp_path / 'runs' / 'new').iterdir()] == ['log.jsonl']


def test_the_lock_of_a_dead_process_is_taken_over_at_once(tmp_path):
    pid = dead_process()
    write_holder(tmp_path, pid=pid)
    lock = RunLock(tmp_path)
    assert f'from process {pid} on ' in lock.acquire()
    assert holder_in(tmp_path).pid == os.getpid()
    lock.check()
    lock.release()


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='only Linux says when a process started')
def test_another_process_with_the_number_of_a_dead_one_does_not_hold_its_lock(tmp_path):
    write_holder(tmp_path, started=1)
    lock = RunLock(tmp_path)
    assert lock.acquire()
    lock.release()


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='needs /proc')
def test_a_process_that_has_ended_but_was_not_waited_for_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    started = run_lock._start_time(process.pid)
    assert run_lock._is_running(process.pid, started)
    process.stdin.close()
    deadline = time.monotonic() + 60
    while run_lock._is_running(process.pid, started):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()
    assert not run_lock._is_running(process.pid, started)


@pytest.mark.parametrize('changes', [{'host': 'node7'}, {'machine': 'another boot'}])
def test_the_lock_of_a_dead_process_on_another_machine_is_taken_over_after_a_while(tmp_path, capsys, changes):
    other = write_holder(tmp_path, pid=dead_process(), **changes)
    lock = RunLock(tmp_path)
    assert str(other) in lock.acquire()
    assert capsys.readouterr().err.count('whether it lives') == 1
    lock.release()


def test_the_lock_of_a_live_process_on_another_machine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, '_STALE', 60)
    other = write_holder(tmp_path, host='node7')
    # It is refreshed while the second run looks.
    monkeypatch.setattr(run_lock.time, 'sleep', lambda _: (tmp_path / LOCK_FILE).write_bytes(other.refresh().encode()))
    with pytest.raises(CheckpointError, match=r'in use by another run .*on node7'):
        RunLock(tmp_path).acquire()


@pytest.mark.parametrize('skew', [-1000, 1000])
def test_a_clock_that_is_wrong_does_not_make_a_lock_dead(tmp_path, monkeypatch, skew):
    monkeypatch.setattr(run_lock._Holder, 'refresh', lambda self: dataclasses.replace(
        self, refreshed=f'{time.time() + skew:.3f}'
    ))  # fmt: skip
    live = RunLock(tmp_path)
    live.acquire()
    live._own = dataclasses.replace(live._own, host='node7')
    live._refresh()
    with pytest.raises(CheckpointError, match='on node7'):
        RunLock(tmp_path).acquire()
    live.release()


def test_the_file_is_refreshed_and_keeps_its_length(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    before, size = holder_in(tmp_path), (tmp_path / LOCK_FILE).stat().st_size
    deadline = time.monotonic() + 60
    while holder_in(tmp_path) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert dataclasses.replace(holder_in(tmp_path), refreshed=before.refreshed) == before
    assert (tmp_path / LOCK_FILE).stat().st_size == size
    lock.release()


def test_a_run_that_was_suspended_learns_that_another_took_over(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    lock._stopped.set()  # so the thread refreshes nothing, as if the process were suspended
    time.sleep(0.1)
    (tmp_path / LOCK_FILE).unlink()
    other = write_holder(tmp_path, host='node7', pid=5)
    time.sleep(0.1)
    with pytest.raises(CheckpointError, match=r'taken over by another run .process 5 on node7, .* writes nothing more'):
        lock.check()
    lock.release()
    assert holder_in(tmp_path) == other, 'the lock of the other run stays as it is'


def test_a_run_whose_folder_was_removed_learns_at_once_that_another_started_there(tmp_path):
    first, second = RunLock(tmp_path / 'run'), RunLock(tmp_path / 'run')
    first.acquire()
    first.check()
    shutil.rmtree(tmp_path / 'run')
    second.acquire()
    other = holder_in(tmp_path / 'run')
    with pytest.raises(CheckpointError, match=r'taken over by another run .* after it was removed: .* writes nothing'):
        first.check()
    first.release()
    assert dataclasses.replace(holder_in(tmp_path / 'run'), refreshed=other.refreshed) == other
    second.check()
    second.release()


@pytest.mark.parametrize('lock', [None, ''])
def test_a_run_whose_folder_was_removed_does_not_lock_the_next_one(tmp_path, lock):
    first = RunLock(tmp_path / 'run')
    first.acquire()
    first._stopped.set()
    shutil.rmtree(tmp_path / 'run')
    (tmp_path / 'run').mkdir()  # the other run is starting: it has not taken its lock, or is writing it
    if lock is not None:
        (tmp_path / 'run' / LOCK_FILE).write_text(lock)
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match='was removed, and there is another folder in its place: this one ends'
        ):
            first.check()
    first.release()
    assert [path.read_text() for path in (tmp_path / 'run').iterdir()] == ([] if lock is None else [lock])


def test_a_lock_file_that_somebody_removed_or_damaged_is_written_again(tmp_path):
    lock = RunLock(tmp_path)
    lock.acquire()
    own = holder_in(tmp_path)
    for damage in ((tmp_path / LOCK_FILE).unlink, lambda: (tmp_path / LOCK_FILE).write_text('{' * 5000)):
        damage()
        lock._refresh()
        assert holder_in(tmp_path).id == own.id
        lock.check()
    lock.release()


@pytest.mark.parametrize('text', ['', '{', '[]', '{"pid": 1}', '[' * 100_000, json.dumps({'id': 1})])
def test_a_damaged_lock_is_taken_over(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    lock = RunLock(tmp_path)
    assert 'a run, which ended without releasing it' in lock.acquire()
    lock.release()


def test_a_removed_folder_is_not_made_again(tmp_path):
    lock = RunLock(tmp_path / 'run')
    lock.acquire()
    (tmp_path / 'run').rename(tmp_path / 'moved')
    lock._refresh()
    lock.check()
    lock.release()
    assert not (tmp_path / 'run').exists()


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / 'file').write_text('')
    for path, reason in {'file': 'it is not a folder', 'file/run': 'Not a directory'}.items():
        with pytest.raises(CheckpointError, match=f'cannot write checkpoints to .*: {reason}'):
            RunLock(tmp_path / path).acquire()


@pytest.mark.parametrize('left_behind', [False, True])
def test_of_runs_that_start_at_once_exactly_one_wins(tmp_path, left_behind):
    code = f"""
import pathlib, sys, time
from audiosep_jax.errors import CheckpointError
from audiosep_jax.storage.run_lock import RunLock
lock = RunLock(pathlib.Path({str(tmp_path / 'run')!r}))
print('ready', flush=True)
sys.stdin.readline()
try:
    lock.acquire()
except CheckpointError as error:
    print('refused', error, flush=True)
else:
    print('won', flush=True)
    sys.stdin.readline()
    lock.release()
"""
    if left_behind:
        write_holder(tmp_path / 'run', pid=dead_process())
    starts = [
        subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        assert [start.stdout.readline() for start in starts] == ['ready\n'] * 4
        for start in starts:
            start.stdin.write('go\n')
            start.stdin.flush()
        said = [start.stdout.readline().split()[0] for start in starts]
        assert sorted(said) == ['refused'] * 3 + ['won']
    finally:
        for start in starts:
            start.communicate('end\n')


def test_in_a_bucket(bucket, monkeypatch):
    folder = as_path('gs://b/run')
    first, second = RunLock(folder), RunLock(folder)
    first.acquire()
    before = bucket.contents('b/run')[LOCK_FILE]
    with pytest.raises(CheckpointError, match='gs://b/run is in use by another run'):
        second.acquire()
    first._refresh()
    assert bucket.contents('b/run')[LOCK_FILE] != before
    first.release()
    assert not bucket.contents('b/run')
    (folder / LOCK_FILE).write_bytes(dataclasses.replace(run_lock._Holder.here(), pid=dead_process()).encode())
    assert 'taking over gs://b/run' in second.acquire()
    second.release()


def test_a_bucket_that_refuses_is_one_line(bucket, monkeypatch):
    monkeypatch.setattr(bucket, 'refused', (LOCK_FILE,))
    with pytest.raises(CheckpointError, match=r'cannot write checkpoints to gs://b/run: .*no permission'):
        RunLock(as_path('gs://b/run')).acquire()
