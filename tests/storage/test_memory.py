import os
import subprocess
import sys
import threading

import pytest

from audiosep_jax.storage import memory
from audiosep_jax.storage.memory import keep_freed_memory, memory_file


@pytest.mark.skipif(sys.platform != 'linux', reason="glibc's malloc")
def test_freed_memory_is_kept():
    """Reading a record frees half a megabyte; the next record must get the same pages, and no fresh ones."""
    code = (
        'import resource, sys\n'
        'from audiosep_jax.storage.memory import keep_freed_memory\n'
        'kept = sys.argv[1] == "kept" and keep_freed_memory()\n'
        'blocks = [bytes(600_000) for _ in range(3)]\n'
        'del blocks\n'
        'before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
        'for _ in range(50):\n'
        '    blocks = [bytes(600_000) for _ in range(3)]\n'
        '    del blocks\n'
        'print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n'
    )

    def faults(how):
        run = subprocess.run([sys.executable, '-c', code, how], capture_output=True, text=True, check=True)
        kept, count = run.stdout.split()
        return kept == 'True', int(count)

    kept, count = faults('kept')
    if not kept:
        pytest.skip('another C library')
    assert count < 1000
    assert count * 3 < faults('not')[1]
    assert keep_freed_memory() is keep_freed_memory()


@pytest.mark.skipif(not hasattr(os, 'memfd_create'), reason='there are no files in memory')
def test_a_thread_has_one_file_for_all_its_data():
    for data in (b'long ' * 100, b'short', b'longer than short'):
        descriptor = memory_file(data)
        assert os.read(descriptor, 1000) == data
        assert memory_file(data) == descriptor
    others = []
    thread = threading.Thread(target=lambda: others.append(memory_file(b'another')))
    thread.start()
    thread.join()
    assert others != [descriptor]


@pytest.mark.skipif(not hasattr(os, 'memfd_create'), reason='there are no files in memory')
def test_forked_processes_do_not_share_the_file():
    mine = memory._thread_file()
    assert memory._thread_file() is mine
    mine.process += 1  # as the child of a fork finds it
    assert memory._thread_file() is not mine


def test_without_files_in_memory_it_is_an_os_error(monkeypatch):
    monkeypatch.delattr(os, 'memfd_create', raising=False)
    monkeypatch.setattr(memory, '_thread', threading.local())
    with pytest.raises(OSError, match='no files in memory'):
        memory_file(b'data')
