"""What every experiment script does: flags, the other processes, training."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import tyro

from audiosep_jax.errors import reported
from audiosep_jax.parallel.launch import LaunchConfig, ending_together, join
from audiosep_jax.storage.cache import enable_compilation_cache
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.dry_run import dry_run
from audiosep_jax.training.train import train


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line of an experiment."""

    config: Annotated[TrainConfig, tyro.conf.arg(name='')]
    launch: Annotated[LaunchConfig, tyro.conf.arg(name='')] = dataclasses.field(default_factory=LaunchConfig)
    dry_run: bool = False
    """Print mesh, shapes, memory and plan, compile the step, and exit."""


def run_experiment(default: Callable[[], TrainConfig], program: str, description: str | None) -> None:
    """What an experiment's `main` does: flags, the other processes, training; the shell's messages and exit codes.

    0: trained to the end. 130: stopped by a signal, with a checkpoint; the same command continues. 1: files and data,
    2: flags.

    Args:
        default: makes the experiment's configuration.
        program: the name in messages.
        description: for --help.
    """
    with reported(program):
        flags = tyro.cli(Flags, default=Flags(default()), description=description)
        enable_compilation_cache()
        launched = join(flags.launch)
        with ending_together(program):
            if flags.dry_run:
                dry_run(flags.config, launched)
                return
            result = train(flags.config)
    if jax.process_index() == 0:
        verb = 'stopped; the same command continues' if result.stopped else 'done'
        print(f'{verb}: step {result.step}, checkpoints in {result.checkpoints}', flush=True)
    if result.stopped:
        raise SystemExit(130)  # a batch system must not take it for done
