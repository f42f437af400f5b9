"""Two real processes, one of which is killed: the other says so in one line, and does not abort."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from support.paths import ROOT

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
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = f'localhost:{free.getsockname()[1]}'
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    running = [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, address, str(index), str(killed)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    survivor = 1 - killed
    assert running[killed].returncode == -signal.SIGKILL
    assert running[survivor].returncode == 1, said
    lines = [line for line in said[survivor].splitlines() if ' waits for ' not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f'process {survivor}: error: another process of the run is gone or does not answer')
