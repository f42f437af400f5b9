"""The program of every experiment script: reads the flags, joins the other processes, and trains."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Annotated

import jax
import tyro

from audiosep_jax.data.ahead import is_stuck
from audiosep_jax.errors import ConfigError, reported
from audiosep_jax.parallel.launch import LaunchConfig, ending_together, join
from audiosep_jax.storage.cache import enable_compilation_cache
from audiosep_jax.storage.system import abandon_threads_at_exit
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.determinism import make_deterministic
from audiosep_jax.training.planning.dry_run import dry_run
from audiosep_jax.training.planning.topologies import look_for_no_devices, parse_topology
from audiosep_jax.training.train import train


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line of an experiment."""

    config: Annotated[TrainConfig, tyro.conf.arg(name='')]
    launch: Annotated[LaunchConfig, tyro.conf.arg(name='')] = dataclasses.field(default_factory=LaunchConfig)
    dry_run: bool = False
    """Print mesh, shapes, memory and plan, compile the step, and exit."""
    topology: Annotated[str, tyro.conf.arg(metavar='CHIP:SHAPE')] = ''
    """With --dry-run: compile for these devices, which this machine need not have: `v5e:16x16`, `h100:8`."""
    find_batch: bool = False
    """With --topology: find the largest batch that fits into the memory of each device."""

    def __post_init__(self) -> None:
        if self.topology and not self.dry_run:
            raise ConfigError('--topology is for --dry-run: nothing can run on devices that are not there')
        if self.find_batch and not self.topology:
            raise ConfigError('--find-batch needs --dry-run and --topology')


def run_experiment(default: Callable[[], TrainConfig], program: str, description: str | None) -> None:
    """Runs an experiment from its command line, with messages and exit codes for the shell.

    The exit code is 0 if the run is complete, 130 if a signal stopped it with a checkpoint (the same command resumes
    it), 1 for problems with files and data, and 2 for flags.

    Args:
        default: returns the experiment's configuration.
        program: the name in messages.
        description: the text of --help.

    Raises:
        SystemExit: with any exit code except 0.
    """
    with _abandoning_threads(), reported(program):
        flags = tyro.cli(Flags, default=Flags(default()), description=description)
        enable_compilation_cache()
        if flags.topology:
            topology = parse_topology(flags.topology)
            look_for_no_devices()
            dry_run(flags.config, topology=topology, find_batch=flags.find_batch)
            return
        if flags.config.deterministic:
            make_deterministic()
        launched = join(flags.launch)
        with ending_together(program):
            if flags.dry_run:
                dry_run(flags.config, launched)
                return
            result = train(flags.config)
    if jax.process_index() == 0:
        verb = 'stopped; the same command continues' if result.stopped else 'done'
        print(f'{verb}: step {result.step}, checkpoints in {result.checkpoints}', flush=True)
    code = 130 if result.stopped else 0  # so that a batch system does not count a stopped run as complete
    if is_stuck():
        jax.distributed.shutdown()
        os._exit(code)
    if code:
        raise SystemExit(code)


@contextlib.contextmanager
def _abandoning_threads() -> Iterator[None]:
    """After an error, does not wait for threads at the end: after a failed write, Orbax's may hang for minutes."""
    try:
        yield
    except SystemExit as stop:
        abandon_threads_at_exit(stop.code if isinstance(stop.code, int) else 1)
        raise
