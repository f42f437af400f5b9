"""The command `audiosep-jax push`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Push:
    """Upload a checkpoint to the Hugging Face hub, with a model card; from there `--checkpoint org/name` gets it.

    The token is that of `hf auth login`, or HF_TOKEN.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='DIR')]
    """A training run's folder, one step's folder in it, or a converted checkpoint."""
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='ORG/NAME')]
    """Made if it is not there."""
    results: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar='FILE [FILE ...]', help_behavior_hint='(default: none)')
    ] = ()
    """Scores for the model card: what `evaluate --json` wrote."""
    license: Annotated[str | None, tyro.conf.arg(metavar='ID')] = None
    """For the model card, as the hub abbreviates licences: mit, apache-2.0, cc-by-nc-4.0."""
    private: bool = False
    """Make the repository private, if it is new."""
    folder: Annotated[Path | None, tyro.conf.arg(metavar='DIR')] = None
    """Make the repository's folder here and upload nothing: to look at, or to upload by other means."""


def run_push(command: Push, say: Callable[[str], None]) -> int:
    """Returns the exit code. Raises as `publish.push` does."""
    from audiosep_jax.checkpoints.publish import make_repository, push

    options = {'results': command.results, 'license': command.license}
    if command.folder is None:
        say(push(command.checkpoint, command.repository, private=command.private, **options))
        return 0
    for path in make_repository(command.checkpoint, command.folder, command.repository, **options):
        say(f'{path}  {path.stat().st_size:,} bytes')
    return 0
