"""Two real processes, one of which is killed: the other says so in one line, and does not abort."""

import signal

import pytest
from support.processes import run_pair

PROGRAM = """
import os, signal, sys, time
import jax
from audiosep_jax.parallel.launch import LaunchConfig, join

address, index, killed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
join(LaunchConfig(address, 2, index, heartbeat_seconds=5))
jax.device_count()  # waits for the other
if index == killed:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.parametrize('killed', [0, 1])
def test_a_lost_process_is_one_line(killed):
    codes, said = run_pair(PROGRAM, killed, timeout=300)
    survivor = 1 - killed
    assert codes[killed] == -signal.SIGKILL
    assert codes[survivor] == 1, said
    lines = [line for line in said[survivor].splitlines() if ' waits for ' not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f'process {survivor}: error: another process of the run is gone or does not answer')
