import subprocess
import sys

import pytest

from audiosep_jax.storage.system import keep_freed_memory

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


@pytest.mark.skipif(sys.platform != 'linux', reason="glibc's malloc")
def test_freed_memory_is_kept():
    """Reading a record frees half a megabyte each time: its pages must not be new ones the next time."""
    code = (
        'import resource, sys\n'
        'from audiosep_jax.storage.system import keep_freed_memory\n'
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
