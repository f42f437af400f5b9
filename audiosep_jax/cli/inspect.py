"""The command `audiosep-jax inspect`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from audiosep_jax.cli import terminal
from audiosep_jax.cli.flags import CheckpointArgument


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Describe a checkpoint: its step, query encoder, number of parameters and configuration."""

    checkpoint: CheckpointArgument


def run(command: Inspect) -> int:
    """Prints the description; returns the exit code.

    Raises:
        CheckpointError, DownloadError: there is no such checkpoint, or it is damaged.
    """
    import jax

    from audiosep_jax.checkpoints.find import open_checkpoint

    terminal.silence_orbax()
    checkpoint = open_checkpoint(command.checkpoint)
    params = checkpoint.variables['params']
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    encoder = checkpoint.encoder or {'none': 'accepts embeddings only'}
    terminal.say(f'path        {checkpoint.path}')
    terminal.say(f'step        {checkpoint.step}')
    terminal.say(f'encoder     {", ".join(f"{key} {value}" for key, value in encoder.items())}')
    terminal.say(f'parameters  {count:,}')
    if checkpoint.level is not None:
        level = checkpoint.level
        terminal.say(f'level       {level.low_db:.1f}, {level.median_db:.1f}, {level.high_db:.1f} dBFS (see --level)')
    if checkpoint.equalizer is not None:
        equalizer = checkpoint.equalizer
        about = f'share {equalizer.share:g}, {len(equalizer.counts)} captions (see --equalizer)'
        terminal.say(f'equalizer   {about}')
    terminal.say(f'checksums   {"verified" if checkpoint.verified else "unverified (written without checksums)"}')
    terminal.say('config')
    for line in _indented(checkpoint.record['config']):
        terminal.say(f'  {line}')
    return 0


def _indented(config: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of a nested configuration; each level is indented by two spaces."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield key
            yield from (f'  {line}' for line in _indented(value))
        else:
            yield f'{key} = {value}'
