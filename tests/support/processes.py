"""Programs as several processes that find each other, `jax.distributed` with gloo; the training program above all."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from support.compiling import xla_flags
from support.paths import ROOT, TESTS
from support.small_dataset import SAMPLE_RATE

# The run of test_train.py, as flags.
_SMALL_RUN = {
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
    '--model.widths': [2] * 2,
    '--optimizer.schedule': ['constant'],
}


def command_of(dataset: Path, workdir: Path, changes: dict[str, Sequence] | None = None) -> list[str]:
    """The command of the small run; `changes` are flags with their values."""
    flags = {**_SMALL_RUN, '--data': [dataset], '--workdir': [workdir], **(changes or {})}
    script = str(ROOT / 'experiments' / 'audiosep_clap.py')
    return [sys.executable, script, *(str(x) for flag, values in flags.items() for x in (flag, *values))]


def free_address() -> str:
    """HOST:PORT, where nobody listens."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return f'localhost:{free.getsockname()[1]}'


def run_pair(program: str, *arguments: object, timeout: float = 600) -> tuple[list[int], list[str]]:
    """Runs a program as two processes with two devices each: their exit codes, and what they said on stderr.

    Args:
        program: its text. It gets the address to meet at, its number, and `arguments`.
        timeout: in seconds; then both are killed.
    """
    paths = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get('PYTHONPATH', '')])
    environment = {**os.environ, 'PYTHONPATH': paths, 'XLA_FLAGS': xla_flags(devices=2)}
    address = free_address()
    running = [
        subprocess.Popen(
            [sys.executable, '-c', program, address, str(index), *map(str, arguments)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=timeout)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], said


class Processes:
    """A context manager: so many processes of one run, killed at the end if they still live.

    Args:
        commands: one for each.
        devices: how many each has.
        heartbeat: seconds after which a silent process counts as dead.
    """

    def __init__(self, commands: Sequence[Sequence[str]], *, devices: int = 2, heartbeat: int = 100):
        address = free_address()
        environment = {
            **os.environ,
            'XLA_FLAGS': xla_flags(devices),
            'PYTHONUNBUFFERED': '1',
        }
        self.all = []
        for index, command in enumerate(commands):
            own = ['--coordinator', address, '--num-processes', len(commands), '--process-id', index]
            arguments = [*command, *map(str, [*own, '--heartbeat-seconds', heartbeat])]
            self.all.append(
                subprocess.Popen(
                    arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
                )
            )

    def __enter__(self) -> 'Processes':
        return self

    def __exit__(self, *exception) -> None:
        for process in self.all:
            process.kill()
            process.wait()
            process.stdout.close()

    def wait_for(self, condition: Callable[[], bool], timeout: float = 600) -> None:
        """Until it holds; an error if a process ends before."""
        deadline = time.monotonic() + timeout
        while not condition():
            for process in self.all:
                assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ends(self, timeout: float = 600) -> tuple[list[int], list[str]]:
        """Waits for all: their exit codes, and what they said."""
        said = [process.communicate(timeout=timeout)[0] for process in self.all]
        return [process.returncode for process in self.all], said


def worker_processes(pid: int) -> list[int]:
    """The data workers of a process that are running: its children that `multiprocessing` has spawned."""
    children = psutil.Process(pid).children()
    return [c.pid for c in children if c.status() != psutil.STATUS_ZOMBIE and 'spawn_main' in ' '.join(c.cmdline())]
