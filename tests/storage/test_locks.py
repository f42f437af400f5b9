"""Locks on files: one holder at a time, who is at work, and file systems without locks."""

import errno
import subprocess
import sys
import threading
import time

import pytest

from audiosep_jax.storage import locks
from audiosep_jax.storage.locks import AtWork, locked

pytest.importorskip('fcntl')


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / 'lock'):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not (tmp_path / 'lock').exists()


def test_processes_see_that_others_are_at_work(tmp_path):
    path = tmp_path / 'lock'
    code = f"""
from audiosep_jax.storage.locks import AtWork
with AtWork({str(path)!r}) as at_work: print(at_work.alone())
"""

    def alone_in_another_process():
        return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()

    assert alone_in_another_process() == 'True'
    with AtWork(path) as at_work:
        assert alone_in_another_process() == 'False'
        assert path.exists()  # the other one has not removed it
        assert at_work.alone()
    assert not path.exists()


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_nobody_waits_and_nobody_knows(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, 'no locks here')

    monkeypatch.setattr(locks.fcntl, 'flock', refuse)
    with locked(tmp_path / 'lock'), locked(tmp_path / 'lock'):
        pass
    with AtWork(tmp_path / 'lock') as at_work:
        assert at_work.alone() is None
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_an_os_error(tmp_path):
    for enter in (lambda: locked(tmp_path / 'missing' / 'lock'), lambda: AtWork(tmp_path / 'missing' / 'lock')):
        with pytest.raises(FileNotFoundError), enter():
            pass
