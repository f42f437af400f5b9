"""The command `audiosep-jax models`."""

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from audiosep_jax.cli import terminal

if TYPE_CHECKING:
    from audiosep_jax.checkpoints.named import NamedCheckpoint, RemoteFile

_COLUMNS = ('NAME', 'DOWNLOAD', 'LICENCE', 'KEPT HERE')


@dataclasses.dataclass(frozen=True)
class Models:
    """List the published checkpoints that `--checkpoint NAME` fetches, converts once and keeps in the user's cache.

    The scores are those that their publishers state. Scores of different benchmarks do not compare.
    """

    json: bool = False
    """Print JSON."""


def run(command: Models) -> int:
    """Prints the list; returns the exit code."""
    from audiosep_jax.checkpoints.named import NAMED

    if command.json:
        models = [_as_json(checkpoint) for checkpoint in NAMED.values()]
        for line in json.dumps(models, indent=2).splitlines():
            terminal.say(line)
        return 0
    rows = [_row(checkpoint) for checkpoint in NAMED.values()]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    terminal.say(_aligned(_COLUMNS, widths))
    for checkpoint, row in zip(NAMED.values(), rows, strict=True):
        terminal.say(_aligned(row, widths))
        for line in _details(checkpoint):
            terminal.say(f'    {line}')
    claps = {checkpoint.clap.address: _size(checkpoint.clap) for checkpoint in NAMED.values()}
    for address, size in claps.items():
        terminal.say(f'If a file contains no CLAP, {address} ({size}) is fetched as well.')
    return 0


def _row(checkpoint: 'NamedCheckpoint') -> tuple[str, ...]:
    license = checkpoint.license or 'not known'
    return checkpoint.name, _size(checkpoint.separator), license, 'no' if checkpoint.kept is None else 'yes'


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    return '  '.join(f'{cell:{width}}' for cell, width in zip(row, widths, strict=True)).rstrip()


def _details(checkpoint: 'NamedCheckpoint') -> Iterator[str]:
    yield checkpoint.description
    for scores in checkpoint.scores:
        values = ', '.join(f'{benchmark} {value:.2f}' for benchmark, value in scores.values.items())
        yield f'{scores.metric} in dB: {values} ({scores.source})'
    yield checkpoint.url
    if checkpoint.kept is not None:
        yield f'kept in {checkpoint.kept}'


def _size(file: 'RemoteFile') -> str:
    return 'not known' if file.size is None else f'{file.size / 1e9:.2f} GB'


def _as_json(checkpoint: 'NamedCheckpoint') -> dict[str, Any]:
    return dataclasses.asdict(checkpoint) | {'kept': None if checkpoint.kept is None else str(checkpoint.kept)}
