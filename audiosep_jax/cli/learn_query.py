"""The command `audiosep-jax learn-query`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from audiosep_jax.cli import terminal
from audiosep_jax.cli.flags import CheckpointFlag
from audiosep_jax.errors import ConfigError
from audiosep_jax.separation.outputs import check_input, expand_inputs
from audiosep_jax.separation.query_files import QUERY_SUFFIX
from audiosep_jax.storage.atomic import check_writable

if TYPE_CHECKING:
    from audiosep_jax.separation.query_files import LearntQuery


@dataclasses.dataclass(frozen=True)
class LearnQuery:
    """Learn a query from recordings of a sound, for `separate --vector`.

    The network stays as it is. Only an embedding is tuned, so that it extracts the sound from mixtures of these
    recordings and of backgrounds. A part of both is held out, and the scores are measured on that part.
    """

    examples: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar='FILE [FILE ...]', name='examples', help_behavior_hint='(required)'),
    ]
    """Recordings of the sound, as clean as possible: sound files, folders (without their sub-folders) or patterns."""
    query: Annotated[str | None, tyro.conf.arg(metavar='TEXT')] = None
    """The sound in words, from which learning starts; not necessary for models with a CLAP encoder."""
    background: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar='FILE [FILE ...]', help_behavior_hint='(default: procedural sounds)')
    ] = ()
    """Recordings without the sound, best of those from which it will be extracted; files, folders or patterns."""
    checkpoint: CheckpointFlag = None
    output: Annotated[Path, tyro.conf.arg(aliases=['-o'], metavar='FILE')] = Path('learnt.query')
    """The query file to write."""
    start: Literal['auto', 'text', 'sounds', 'both'] = 'auto'
    """Where learning starts: from --query, from the CLAP embedding of the recordings, from the mean of both, or from
    the best of those that the model understands (auto)."""
    steps: int = 200
    """Steps at most; learning stops earlier if the held-out recordings gain nothing more."""
    seed: int = 0
    """Of the random crops, levels and splits."""
    force: bool = False
    """Replace an existing query file."""


def run(command: LearnQuery) -> int:
    """Learns the query and writes its file; returns the exit code.

    Raises:
        ConfigError, QueryError: flags that cannot work, or nothing to start from.
        AudioSepError: the checkpoint or a recording cannot be read, or the file cannot be written.
    """
    output = command.output
    if not command.examples:
        raise ConfigError('no examples: name recordings of the sound')
    if output.suffix != QUERY_SUFFIX:
        raise ConfigError(f'-o {output}: the name of a query file ends in {QUERY_SUFFIX}')
    check_writable(output, '-o')
    if output.exists() and not command.force:
        raise ConfigError(f'{output} already exists: choose another name, or give --force')
    examples, backgrounds = (expand_inputs(paths, output) for paths in (command.examples, command.background))
    for path in (*examples, *backgrounds):
        check_input(path)
    _check_apart(examples, backgrounds)

    from audiosep_jax.progress import printed_progress, progress_bar
    from audiosep_jax.query_learning.learning import LearningConfig, learn_query

    config = LearningConfig(steps=command.steps, seed=command.seed)
    separator = terminal.load(command.checkpoint)
    with progress_bar('learning') as show, printed_progress('learnt', show) as report:
        learnt = learn_query(
            separator,
            examples,
            query=command.query,
            backgrounds=backgrounds,
            start=command.start,
            config=config,
            progress=report,
        )
    learnt.save(output)
    terminal.say(summary(learnt, output))
    return 0


def summary(learnt: 'LearntQuery', path: Path) -> str:
    """Returns the line that says what was learnt, and how good it is."""
    before, after = learnt.before, learnt.after
    measured = f'on {learnt.held_out_mixtures} held-out mixtures'
    if not learnt.learnt:
        return (
            f'{path}: holds the start, {learnt.start}: nothing better was found (SDRi {before.sdri:.1f} dB, SI-SDR '
            f'{before.si_sdr:.1f} dB {measured}); more or cleaner examples may help'
        )
    return (
        f'{path}: SDRi {before.sdri:.1f} -> {after.sdri:.1f} dB, SI-SDR {before.si_sdr:.1f} -> {after.si_sdr:.1f} dB '
        f'{measured}, learnt in {learnt.steps} steps from {learnt.start}'
    )


def _check_apart(examples: list[Path], backgrounds: list[Path]) -> None:
    """Raises ConfigError for a recording that is an example and a background."""
    both = {path.resolve() for path in examples} & {path.resolve() for path in backgrounds}
    if both:
        raise ConfigError(f'{min(both)}: is given as an example and as a background; leave it out of one of them')
