"""The command `audiosep-jax evaluate`: checks its flags before hours of work, evaluates, and reports the results."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from audiosep_jax.cli import terminal
from audiosep_jax.cli.flags import CheckpointFlag, EqualizerFlag, LevelFlag
from audiosep_jax.errors import ConfigError, DataError, listed
from audiosep_jax.storage.atomic import check_writable

if TYPE_CHECKING:
    from audiosep_jax.evaluation.benchmark import Benchmark
    from audiosep_jax.evaluation.results import Results
    from audiosep_jax.separation.separator import Separator

_Name = Literal[
    'audioset', 'audiocaps', 'vggsound', 'clotho', 'music', 'esc50', 'dcase2024', 'voicebank-demand',
    'clapsep-audiocaps', 'clapsep-audioset', 'clapsep-music', 'clapsep-esc50', 'clapsep-fsd50k', 'csv', 'all',
]  # fmt: skip
_Benchmark = Annotated[
    _Name | None,
    tyro.conf.arg(
        metavar='{' + ','.join(get_args(_Name)) + '}', help_behavior_hint='(default: the one whose table is in DIR)'
    ),
]
_MAX_LEFT_OUT_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint on a benchmark, as the original's evaluators do.

    The report compares it with no separation, half of the mixture, an oracle mask, shuffled queries and the published
    scores. The same command resumes an interrupted evaluation. docs/evaluate.md describes the layouts and the
    protocols.
    """

    data: Annotated[Path, tyro.conf.arg(metavar='DIR')]
    """The benchmark's folder; for csv a table `mixture,target,query` or its folder; for all a folder of benchmarks."""
    checkpoint: CheckpointFlag = None
    benchmark: _Benchmark = None
    """The benchmark, which sets the protocol."""
    out: Annotated[Path, tyro.conf.arg(aliases=['-o'], metavar='OUT')] = Path('evaluation')
    """Folder of the results: OUT/BENCHMARK/results.json, report.md, pictures, and the journal to resume from."""
    json: Annotated[Path | None, tyro.conf.arg(metavar='FILE')] = None
    """Also write the results to this file; an existing one is replaced."""
    report: Annotated[Path | None, tyro.conf.arg(metavar='DIR')] = None
    """Also write a page about where it fails, DIR/index.html: classes, confusions, levels, durations, and the worst
    items with their sounds. For all benchmarks: DIR/BENCHMARK/index.html."""
    metadata: Annotated[Path | None, tyro.conf.arg(metavar='DIR')] = None
    """Folder of the benchmarks' tables, if they are neither beside the audio nor where AudioSep keeps them."""
    query_type: Annotated[
        str | None,
        tyro.conf.arg(
            metavar='{label,caption,both}', help_behavior_hint="(default: the protocol's, see docs/evaluate.md)"
        ),
    ] = None
    """Which texts to use as queries, if the benchmark has several kinds."""
    captions: Annotated[Path | None, tyro.conf.arg(metavar='FILE')] = None
    """A table idx,caption with your own texts for the same items, which adds a row to the comparison."""
    query: Annotated[str | None, tyro.conf.arg(metavar='TEXT')] = None
    """Use this query for every item, instead of the benchmark's texts."""
    batch_size: Annotated[
        int | None,
        tyro.conf.arg(metavar='N', help_behavior_hint='(default: 8 for each accelerator, 2 on a CPU)'),
    ] = None
    """Number of mixtures in a batch."""
    max_items: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """Score only this many items, evenly spread over the table."""
    max_whole_seconds: float = 30.0
    """Longer mixtures are separated in pieces, with the same result and less memory."""
    level: LevelFlag = None
    """Let the network hear mixtures at the level that it was trained at (auto), or as they are (off)."""
    equalizer: EqualizerFlag = None
    """Share of the checkpoint's equalizer in the results, from 0 to 1 (docs/train.md)."""
    skip_shuffled: bool = False
    """Omit the row of shuffled queries, which takes half of the time."""
    skip_pictures: bool = False
    """Draw no pictures."""
    train_data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar='DIR')] = ()
    """Datasets for training, from data_prep: adds the row of a fixed spectral mask per class, fitted on them."""
    clap: Annotated[str | None, tyro.conf.arg(metavar='PATH')] = None
    """CLAP weights (a path, org/name, or `own` for the checkpoint's): adds the similarity of query and output."""
    several_hosts: bool = False
    """Share the items among the processes of a cluster; run the same command on each, with OUT on a shared disk."""
    seed: int = 0
    """Seed of the bootstrap intervals and of the shuffled queries."""


def run(command: Evaluate) -> int:
    """Evaluates; returns the exit code, 1 if any item or benchmark was left out.

    Raises:
        ConfigError: flags that cannot work.
        DataError: the benchmark cannot be read or scored, or the results cannot be written.
        CheckpointError, DownloadError: the checkpoint cannot be read.
    """
    try:
        return _evaluate(command)
    except KeyboardInterrupt:
        terminal.complain('interrupted; the same command resumes')
        return 130


def _evaluate(command: Evaluate) -> int:
    if command.several_hosts:
        _join_hosts()
    import jax

    from audiosep_jax.evaluation.run import Options, evaluate
    from audiosep_jax.evaluation.speech import check_installed
    from audiosep_jax.progress import printed_progress, progress_bar

    _check(command)
    folders = _folders(command)
    benchmarks = _benchmarks(command, folders)  # before the checkpoint, whose loading takes longer
    if any(benchmark.speech for benchmark in benchmarks):
        check_installed()
    alone = command.benchmark != 'all'
    types = {benchmark.name: _query_types(command.query_type, benchmark, alone=alone) for benchmark in benchmarks}
    separator = terminal.load(
        command.checkpoint,
        max_whole_seconds=command.max_whole_seconds,
        level=command.level,
        equalizer=command.equalizer,
    )
    options = Options(
        seed=command.seed,
        batch_size=command.batch_size,
        shuffled=not command.skip_shuffled,
        clap=None if command.clap is None else _clap(command.clap, separator),
        train_data=command.train_data,
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
            terminal.complain(f'{benchmark.name}: {error}')
            continue
        if jax.process_index() == 0:
            _finish(command, found[benchmark.name], folder, separator)
    if not found:
        raise DataError(f'{command.data}: no benchmark could be scored')
    if jax.process_index() == 0:
        _conclude(command, found)
    complete = len(found) == len(folders) and not any(results.left_out for results in found.values())
    return 0 if complete else 1


def _check(command: Evaluate) -> None:
    """Raises ConfigError or DataError for whatever would otherwise fail after hours of evaluation."""
    if command.batch_size is not None and command.batch_size < 1:
        raise ConfigError(f'--batch-size {command.batch_size}: must be at least 1')
    if command.max_items is not None and command.max_items < 1:
        raise ConfigError(f'--max-items {command.max_items}: must be at least 1')
    if command.seed < 0:
        raise ConfigError(f'--seed {command.seed}: must not be negative')
    if command.query is not None and not command.query.strip():
        raise ConfigError('--query is empty: describe a sound in words')
    if command.query is not None and command.query_type is not None:
        raise ConfigError('--query replaces the texts that --query-type chooses from: give only one of them')
    if command.benchmark == 'all' and command.captions is not None:
        raise ConfigError('--captions describes the items of one benchmark: name it with --benchmark')
    if command.metadata is not None and not command.metadata.is_dir():
        raise ConfigError(f'--metadata {command.metadata}: no such folder')
    check_writable(command.out, '--out', kind='folder')
    if command.json is not None:
        check_writable(command.json, '--json')
    if command.report is not None:
        check_writable(command.report, '--report', kind='folder')


def _folders(command: Evaluate) -> dict[str | None, Path]:
    """Returns the folders of the requested benchmarks by name; the name is None where the table decides."""
    from audiosep_jax.evaluation.protocols import find_benchmarks

    if command.benchmark == 'all':
        return {name: folder for name, folder in find_benchmarks(command.data).items()}
    return {command.benchmark: command.data}


def _benchmarks(command: Evaluate, folders: dict[str | None, Path]) -> list['Benchmark']:
    """Reads the tables. One unreadable benchmark of several is reported, and the others are evaluated."""
    from audiosep_jax.evaluation.protocols import read_benchmark

    found = []
    for name, folder in folders.items():
        try:
            benchmark = read_benchmark(
                folder,
                name,
                most_items=command.max_items,
                metadata=command.metadata,
                captions=command.captions,
                query=command.query,
            )
        except DataError as error:
            if command.benchmark != 'all':
                raise
            terminal.complain(str(error))
        else:
            found.append(benchmark)
    if not found:
        raise DataError(f'{command.data}: none of its benchmarks can be read')
    return found


def _query_types(given: str | None, benchmark: 'Benchmark', *, alone: bool) -> tuple[str, ...]:
    """Returns the query types to score. With several benchmarks, each uses those that it has."""
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


def _clap(path: str, separator: 'Separator') -> Any:
    """Returns an encoder with `encode_audio`. Raises ConfigError."""
    from audiosep_jax.encoders.registry import load_encoder

    encoder = separator.encoder if path == 'own' else load_encoder(path)
    if encoder is None or not hasattr(encoder, 'encode_audio'):
        problem = 'there is no encoder' if encoder is None else f'the encoder {encoder.name!r} does not encode audio'
        raise ConfigError(f'--clap {path}: {problem}; give the path of CLAP weights')
    return encoder


def _join_hosts() -> None:
    """Joins the other processes. Raises ConfigError if there is no cluster; a job of one task is a cluster of one."""
    from audiosep_jax.parallel.launch import LaunchConfig, join, runs_alone

    if join(LaunchConfig()) is None and not runs_alone():
        raise ConfigError(
            '--several-hosts finds no cluster here; start it under Slurm, Open MPI or Kubernetes or on a TPU pod, set '
            '$JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID, or omit the flag'
        )


# ---- results ---------------------------------------------------------------------------------------------------------


def _finish(command: Evaluate, results: 'Results', folder: Path, separator: 'Separator') -> None:
    """Prints the results of one benchmark and writes its folder."""
    from audiosep_jax.evaluation.report import write_report

    for left in results.left_out[:_MAX_LEFT_OUT_SHOWN]:
        terminal.note(f'left out ({left.reason}): {left.message}')
    silent = results.silent_targets
    if silent:
        what = '1 target is silent but counts' if len(silent) == 1 else f'{len(silent)} targets are silent but count'
        terminal.note(f'{what}, as in the original: {listed(silent)}')
    for note in results.notes:
        terminal.note(f'{results.benchmark.name}: {note}')
    show(results.table(f'{results.benchmark.title}: {len(results.items)} mixtures'))
    report = write_report(results, folder, separator, pictures=not command.skip_pictures)
    terminal.say(f'{report}')
    if command.report is not None:
        _write_page(command, results, separator)
    if results.left_out:
        counts = ', '.join(f'{reason} {count}' for reason, count in results.counts.items())
        terminal.complain(
            f'left out in all: {len(results.left_out)} ({counts}), listed in {folder / "results.json"}; '
            f'the scores are those of the other {len(results.items)}'
        )


def _write_page(command: Evaluate, results: 'Results', separator: 'Separator') -> None:
    from audiosep_jax.evaluation.failures.page import write_page

    assert command.report is not None
    folder = command.report
    if command.benchmark == 'all':
        folder.mkdir(exist_ok=True)
        folder /= results.benchmark.name
    try:
        terminal.say(f'{write_page(results, folder, separator, pictures=not command.skip_pictures)}')
    except DataError as error:  # the scores are worth more than the page
        terminal.complain(str(error))


def _conclude(command: Evaluate, found: dict[str, 'Results']) -> None:
    """Prints the table of all benchmarks, and writes the file of --json."""
    from audiosep_jax.evaluation.report import summary_markdown, summary_table
    from audiosep_jax.evaluation.results import write_json, write_text

    records = {name: results.to_dict() for name, results in found.items()}
    if command.benchmark == 'all':
        show([summary_table(list(found.values()))])
        write_text(command.out / 'report.md', summary_markdown(list(found.values())))
        terminal.say(str(command.out / 'report.md'))
    if command.json is not None:
        single = {'data': str(command.data), **next(iter(records.values()))}
        write_json(command.json, {'benchmarks': records} if command.benchmark == 'all' else single)


def show(tables: Sequence[Any]) -> None:
    """Prints `rich` tables, at a width of 120 where stdout is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    for table in tables:
        console.print(table)
