"""`audiosep-jax evaluate`: flags, what is checked before hours of work, and where the results go."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

from audiosep_jax.errors import ConfigError, DataError, listed

if TYPE_CHECKING:
    from audiosep_jax.evaluation.benchmark import Benchmark
    from audiosep_jax.evaluation.results import Results
    from audiosep_jax.separation.separator import Separator

_Name = Literal[
    'audioset', 'audiocaps', 'vggsound', 'clotho', 'music', 'esc50', 'dcase2024', 'voicebank-demand', 'csv', 'all'
]
_Benchmark = Annotated[
    _Name | None,
    tyro.conf.arg(
        metavar='{' + ','.join(get_args(_Name)) + '}', help_behavior_hint='(default: the one whose table is in DIR)'
    ),
]
_Checkpoint = Annotated[str | None, tyro.conf.arg(metavar='DIR', help_behavior_hint='(default: official weights)')]
_SHOWN = 20  # items left out that are named on the screen


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint on a benchmark, as the original's evaluators do.

    Beside it stand no separation, an oracle mask, wrong queries and the published scores. A killed evaluation continues
    when the same command is given again. docs/evaluate.md tells the layouts and the protocols.
    """

    data: Annotated[Path, tyro.conf.arg(metavar='DIR')]
    """Folder of the benchmark; for csv one with a table `mixture,target,query`, or it; for all, of sub-folders."""
    checkpoint: Annotated[
        str | None, tyro.conf.arg(metavar='DIR', help_behavior_hint='(default: official weights)')
    ] = None
    """A training run's folder, one step's folder in it, a converted checkpoint, or a repository of the hub."""
    benchmark: _Benchmark = None
    """The protocol."""
    out: Annotated[Path, tyro.conf.arg(aliases=['-o'], metavar='OUT')] = Path('evaluation')
    """Folder of the results: OUT/BENCHMARK/results.json, report.md, pictures, and the scores to continue from."""
    json: Annotated[Path | None, tyro.conf.arg(metavar='FILE')] = None
    """Also write the results there; an existing file is replaced."""
    metadata: Annotated[Path | None, tyro.conf.arg(metavar='DIR')] = None
    """Folder of the benchmarks' tables, where they are not beside the audio nor where AudioSep has them."""
    query_type: Annotated[
        str | None,
        tyro.conf.arg(
            metavar='{label,caption,both}', help_behavior_hint="(default: the protocol's, see docs/evaluate.md)"
        ),
    ] = None
    """What to ask with, where a benchmark has several texts."""
    captions: Annotated[Path | None, tyro.conf.arg(metavar='FILE')] = None
    """A table idx,caption with texts of your own for the same items: one more row to compare."""
    query: Annotated[str | None, tyro.conf.arg(metavar='TEXT')] = None
    """Ask every item for this, instead of the benchmark's own texts."""
    batch_size: Annotated[
        int | None,
        tyro.conf.arg(metavar='N', help_behavior_hint='(default: 8 for each accelerator, 2 on a CPU)'),
    ] = None
    """Mixtures through the network at a time."""
    max_items: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """Score only so many, evenly spread over the table."""
    max_whole_seconds: float = 30.0
    """Longer mixtures go through the network in pieces, with the same result and less memory."""
    skip_shuffled: bool = False
    """Leave out the row of wrong queries: half the time."""
    skip_pictures: bool = False
    """Draw nothing."""
    clap: Annotated[str | None, tyro.conf.arg(metavar='PATH')] = None
    """CLAP weights (also of the hub; own: the checkpoint's): adds the similarity of query and output."""
    several_hosts: bool = False
    """Share the items with the other processes of a cluster: the same command on each, OUT on a shared disk."""
    seed: int = 0
    """Seed of the bootstrap intervals and of the wrong queries."""


def run(
    command: Evaluate,
    *,
    load: Callable[..., 'Separator'],
    say: Callable[..., None],
    complain: Callable[[str], None],
) -> int:
    """Evaluates; returns the exit code.

    Args:
        load: gives the separator of a path, `load(path, max_whole_seconds=…)`.
        say, complain: print a line on stdout, and an error on stderr.
    """
    if command.several_hosts:
        _join_hosts()
    import jax

    from audiosep_jax.evaluation.run import Options, evaluate
    from audiosep_jax.evaluation.speech import check_installed
    from audiosep_jax.progress import printed_progress, progress_bar

    _check(command)
    folders = _folders(command)
    benchmarks = _benchmarks(command, folders, complain)  # before the checkpoint: its mistakes are seen sooner
    if any(benchmark.speech for benchmark in benchmarks):
        check_installed()
    alone = command.benchmark != 'all'
    types = {benchmark.name: _query_types(command.query_type, benchmark, alone=alone) for benchmark in benchmarks}
    separator = load(command.checkpoint, max_whole_seconds=command.max_whole_seconds)
    options = Options(
        seed=command.seed,
        batch_size=command.batch_size,
        shuffled=not command.skip_shuffled,
        clap=None if command.clap is None else _clap(command.clap, separator),
    )
    command.out.mkdir(exist_ok=True)
    found: dict[str, Results] = {}
    for benchmark in benchmarks:
        folder = command.out / benchmark.name
        try:
            with progress_bar(benchmark.title) as bar, printed_progress('evaluated', bar) as progress:
                found[benchmark.name] = evaluate(
                    separator,
                    benchmark,
                    options,
                    query_types=types[benchmark.name],
                    journal=folder,
                    progress=progress,
                )
        except DataError as error:
            if alone:
                raise
            complain(f'{benchmark.name}: {error}')
            continue
        if jax.process_index() == 0:
            _finish(command, found[benchmark.name], folder, separator, say, complain)
    if not found:
        raise DataError(f'{command.data}: no benchmark could be scored')
    if jax.process_index() == 0:
        _conclude(command, found, say)
    whole = len(found) == len(folders) and not any(results.left_out for results in found.values())
    return 0 if whole else 1


def _check(command: Evaluate) -> None:
    """Whatever hours of evaluation must not end at."""
    if command.batch_size is not None and command.batch_size < 1:
        raise ConfigError(f'--batch-size {command.batch_size}: must be at least 1')
    if command.max_items is not None and command.max_items < 1:
        raise ConfigError(f'--max-items {command.max_items}: must be at least 1')
    if command.seed < 0:
        raise ConfigError(f'--seed {command.seed}: must not be negative')
    if command.query is not None and not command.query.strip():
        raise ConfigError('--query is empty: describe a sound in words')
    if command.query is not None and command.query_type is not None:
        raise ConfigError('--query takes the place of the texts that --query-type chooses from: give one of the two')
    if command.benchmark == 'all' and command.captions is not None:
        raise ConfigError('--captions belongs to one benchmark: name it with --benchmark')
    if command.metadata is not None and not command.metadata.is_dir():
        raise ConfigError(f'--metadata {command.metadata}: no such folder')
    out = command.out.absolute()
    if not out.parent.is_dir():
        raise DataError(f'--out {command.out}: the folder {out.parent} does not exist; make it first')
    if out.exists() and not out.is_dir():
        raise DataError(f'--out {command.out}: is a file; name a folder')
    place = out if out.exists() else out.parent
    if not os.access(place, os.W_OK | os.X_OK):
        raise DataError(f'--out {command.out}: no permission to write into {place}')
    if command.json is None:
        return
    if command.json.is_dir():
        raise DataError(f'--json {command.json}: is a folder; name a file')
    parent = command.json.absolute().parent
    if not parent.is_dir():
        raise DataError(f'--json {command.json}: the folder {parent} does not exist; make it first')
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f'--json {command.json}: no permission to write into {parent}')


def _folders(command: Evaluate) -> dict[str | None, Path]:
    """The benchmarks that are asked for, by name; None: it is to be found out."""
    from audiosep_jax.evaluation.protocols import find_benchmarks

    return find_benchmarks(command.data) if command.benchmark == 'all' else {command.benchmark: command.data}


def _benchmarks(
    command: Evaluate, folders: dict[str | None, Path], complain: Callable[[str], None]
) -> list['Benchmark']:
    """Their tables; of several, one that cannot be read is said, and the others are evaluated."""
    from audiosep_jax.evaluation.protocols import read_benchmark

    found = []
    for name, folder in folders.items():
        options = {'metadata': command.metadata, 'captions': command.captions, 'query': command.query}
        try:
            found.append(read_benchmark(folder, name, most_items=command.max_items, **options))
        except DataError as error:
            if command.benchmark != 'all':
                raise
            complain(str(error))
    if not found:
        raise DataError(f'{command.data}: no benchmark in it can be read')
    return found


def _query_types(given: str | None, benchmark: 'Benchmark', *, alone: bool) -> tuple[str, ...]:
    """What the flag means for a benchmark; of several benchmarks each is asked with what it has."""
    own = [kind for kind in benchmark.query_types if kind.startswith('captions of ')]
    if given is None:
        return (*benchmark.query_types[:1], *(kind for kind in own if kind != benchmark.query_types[0]))
    named = [word.strip() for word in given.split(',')]
    unknown = [word for word in named if word not in ('label', 'caption', 'both')]
    if unknown:
        raise ConfigError(f'--query-type {given}: give label, caption, or both')
    wanted = ('caption', 'label') if 'both' in named else named
    types = tuple(dict.fromkeys(kind for kind in wanted if kind in benchmark.query_types))
    if len(types) < len(set(wanted)) and alone:
        has = [kind for kind in benchmark.query_types if kind not in own]
        raise ConfigError(f'--query-type {given}: {benchmark.name} has {" and ".join(has)} queries only')
    return (*(types or benchmark.query_types[:1]), *own)


def _clap(path: str, separator: 'Separator'):
    from audiosep_jax.encoders.registry import load_encoder

    encoder = separator.encoder if path == 'own' else load_encoder(path)
    if encoder is None or not hasattr(encoder, 'encode_audio'):
        raise ConfigError(
            f'--clap {path}: {"no encoder" if encoder is None else f"the encoder {encoder.name!r}"} hears no audio; '
            'give the path of CLAP weights'
        )
    return encoder


def _join_hosts() -> None:
    import jax

    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f'--several-hosts: JAX finds no cluster here ({str(error).splitlines()[0]}); start it under Slurm, on a '
            'TPU pod, or leave the flag away'
        ) from error


# ---- results ---------------------------------------------------------------------------------------------------------


def _finish(
    command: Evaluate, results: 'Results', folder: Path, separator: 'Separator', say: Callable, complain: Callable
) -> None:
    """Says what became of one benchmark, and writes its folder."""
    from audiosep_jax.evaluation.report import write_report

    for left in results.left_out[:_SHOWN]:
        say(f'audiosep-jax: note: left out ({left.reason}): {left.message}', error=True)
    silent = results.silent_targets
    if silent:
        what = '1 target is silent and counts' if len(silent) == 1 else f'{len(silent)} targets are silent and count'
        say(f'audiosep-jax: note: {what} all the same, as in the original: {listed(silent)}', error=True)
    for note in results.notes:
        say(f'audiosep-jax: note: {results.benchmark.name}: {note}', error=True)
    show(results.table(f'{results.benchmark.title}: {len(results.items)} mixtures'))
    report = write_report(results, folder, separator, pictures=not command.skip_pictures)
    say(f'{report}')
    if results.left_out:
        counts = ', '.join(f'{reason} {count}' for reason, count in results.counts.items())
        complain(
            f'left out in all: {len(results.left_out)} ({counts}), named in {folder / "results.json"}; '
            f'the numbers are of the other {len(results.items)}'
        )


def _conclude(command: Evaluate, found: dict[str, 'Results'], say: Callable) -> None:
    """The table of all benchmarks, and the file that was asked for."""
    from audiosep_jax.evaluation.report import summary_markdown, summary_table
    from audiosep_jax.evaluation.results import write_json, write_text

    records = {name: results.to_dict() for name, results in found.items()}
    if command.benchmark == 'all':
        show([summary_table(list(found.values()))])
        write_text(command.out / 'report.md', summary_markdown(list(found.values())))
        say(str(command.out / 'report.md'))
    if command.json is not None:
        single = {'data': str(command.data), **next(iter(records.values()))}
        write_json(command.json, {'benchmarks': records} if command.benchmark == 'all' else single)


def show(tables: Sequence) -> None:
    """Prints `rich` tables; wider than a terminal where there is none."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    for table in tables:
        console.print(table)
