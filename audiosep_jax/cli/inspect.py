"""The command `audiosep-jax inspect`."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import tyro

from audiosep_jax.cli.terminal import _quieten, _say


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Say what a checkpoint is: step, encoder, parameter count, configuration."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='DIR')]
    """A training run's folder, one step's folder in it, a converted checkpoint, or a repository of the hub."""


def _inspect(command: Inspect) -> int:
    import jax

    from audiosep_jax.checkpoints.find import open_checkpoint

    _quieten()
    checkpoint = open_checkpoint(command.checkpoint)
    params = checkpoint.variables['params']
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    _say(f'path        {checkpoint.path}')
    _say(f'step        {checkpoint.step}')
    encoder = checkpoint.encoder or {'none': 'only embeddings can be asked'}
    _say(f'encoder     {", ".join(f"{key} {value}" for key, value in encoder.items())}')
    _say(f'parameters  {count:,}')
    _say('config')
    for line in _indented(checkpoint.record['config']):
        _say(f'  {line}')
    return 0


def _indented(config: dict) -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield key
            yield from (f'  {line}' for line in _indented(value))
        else:
            yield f'{key} = {value}'
