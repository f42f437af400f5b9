import subprocess
import sys

import pytest

resource = pytest.importorskip('resource')


@pytest.mark.parametrize(
    ('soft', 'hard', 'expected'),
    [
        (300, 1000, 744),  # raised as far as it goes, less what others need
        (300, 300, 64),
        (300, 10**9, 16128),
        (10**6, 10**6, 16128),  # no more than is of use
    ],
)
def test_open_files_are_raised_to_the_hard_limit(soft, hard, expected):
    top = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if top != resource.RLIM_INFINITY and hard > top:
        hard, soft = top, min(soft, top)
        expected = max(min(hard, 16384) - 256, 64)
    code = (
        f'import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); '
        'from audiosep_jax.storage.system import most_open_files as most; '
        'print(most(), most(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    found, again, limit = map(int, run.stdout.split())
    assert found == again == expected
    assert limit >= max(found, soft)


def test_threads_that_hang_do_not_keep_the_process():
    code = """
import sys, threading, time
from audiosep_jax.storage.system import abandon_threads_at_exit
if sys.argv[1] == 'hangs':
    threading.Thread(target=time.sleep, args=(1000,)).start()
abandon_threads_at_exit(7, seconds=0.2)
time.sleep(0.5)
print('still here', flush=True)
sys.exit(3)
"""
    for kind, expected in {'hangs': 7, 'ends': 3}.items():
        command = [sys.executable, '-c', code, kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (expected, 'still here\n')
