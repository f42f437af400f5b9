"""Real runs of several processes on this machine: `jax.distributed` with gloo, two devices each."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from small_dataset import SAMPLE_RATE

EXPERIMENTS = Path(__file__).parents[1] / 'experiments'
# The run of test_train.py, as flags.
SMALL_RUN = {
    '--steps': [6],
    '--batch-size': [16],
    '--segment-seconds': [0.05],
    '--threads': [2],
    '--read-ahead': [2],
    '--ema-decay': [0.9],
    '--log-every': [1],
    '--checkpoint-every': [2],
    '--mixing.mix-group': [2],
    '--model.sample-rate': [SAMPLE_RATE],
    '--model.window-size': [128],
    '--model.hop-size': [64],
    '--model.widths': [2] * 6,
    '--optimizer.schedule': ['constant'],
}


def command_of(dataset: Path, workdir: Path, changes: dict[str, Sequence] | None = None, **more: Sequence) -> list[str]:
    flags = {**SMALL_RUN, '--data': [dataset], '--workdir': [workdir], **(changes or {}), **more}
    script = str(EXPERIMENTS / 'audiosep_clap.py')
    return [sys.executable, script, *(str(x) for flag, values in flags.items() for x in (flag, *values))]


def start(command: Sequence[str], count: int, *, devices: int = 2, heartbeat: int = 100) -> list[subprocess.Popen]:
    """`count` processes of one run; 1: a program of its own with that many devices."""
    environment = {**os.environ, 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    processes = []
    for index in range(count):
        own = ['--coordinator', f'localhost:{port}', '--num-processes', count, '--process-id', index]
        own += ['--heartbeat-seconds', heartbeat]
        arguments = [*command, *map(str, own if count > 1 else [])]
        processes.append(
            subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=0 or -1
            )
        )
    return processes


def outputs_of(processes: Sequence[subprocess.Popen], timeout: float = 300) -> list[str]:
    """What each said, when all have ended; those that have not by then are killed, and that is an error."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
