"""The command `audiosep-jax push`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from audiosep_jax.cli import terminal


@dataclasses.dataclass(frozen=True)
class Push:
    """Upload a checkpoint with a model card to the Hugging Face hub, for use as `--checkpoint org/name`.

    The access token is the one stored by `hf auth login`, or HF_TOKEN.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='DIR')]
    """A training run's folder, one step's folder in it, a converted checkpoint, or a name of `audiosep-jax models`."""
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='ORG/NAME')]
    """The repository; it is created if it does not exist."""
    results: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar='FILE [FILE ...]', help_behavior_hint='(default: none)')
    ] = ()
    """Scores for the model card, as written by `evaluate --json`."""
    license: Annotated[str | None, tyro.conf.arg(metavar='ID')] = None
    """License for the model card, by the hub's identifiers: mit, apache-2.0, cc-by-nc-4.0."""
    private: bool = False
    """Make a new repository private."""
    folder: Annotated[Path | None, tyro.conf.arg(metavar='DIR')] = None
    """Write the repository's files to this folder and upload nothing."""


def run(command: Push) -> int:
    """Uploads, or writes the folder; returns the exit code. Raises as `checkpoints.publish.push` does."""
    from audiosep_jax.checkpoints.publish import make_repository, push

    terminal.silence_orbax()
    if command.folder is None:
        address = push(
            command.checkpoint,
            command.repository,
            results=command.results,
            license=command.license,
            private=command.private,
        )
        terminal.say(address)
        return 0
    paths = make_repository(
        command.checkpoint, command.folder, command.repository, results=command.results, license=command.license
    )
    for path in paths:
        terminal.say(f'{path}  {path.stat().st_size:,} bytes')
    return 0
