"""The command `audiosep-jax`: separate, evaluate, inspect. Files, flags and printing; the work is done elsewhere.

Exit codes: 0 done; 1 files and data, also when one of many inputs failed; 2 flags, configuration keys, empty queries.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from audiosep_jax import audio
from audiosep_jax.errors import AudioFileError, AudioSepError, ConfigError, DataError, QueryError, explained

if TYPE_CHECKING:
    from audiosep_jax.separate import Separator

_SUBTYPES: dict[str, audio.Subtype] = {'16': 'PCM_16', '24': 'PCM_24', 'float': 'FLOAT'}
# What a user may take for an output format. A folder's name may have a dot too, so not every suffix means a file.
_AUDIO_SUFFIXES = (*audio.SUFFIXES, '.mp3', '.m4a', '.aac', '.opus', '.oga', '.wma', '.aif', '.aiff', '.w64', '.caf')
_RESIDUAL = 'residual'
_MOST_QUERY_BYTES = 80
_MOST_NAME_BYTES = 240  # file systems allow 255


@dataclasses.dataclass(frozen=True)
class Separate:
    """Extract the sounds that you describe from audio files.

    The output has the rate, length and channels of the input. One input and one query may go to a file (-o dog.wav);
    otherwise -o is a folder and gets {stem}__{query}.wav.
    """

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar='IN [IN ...]', name='in')]
    """Audio files: WAV, FLAC, OGG, MP3 and whatever else libsndfile reads; any rate, length and number of channels."""
    query: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT')]
    """What to extract, in words. Repeat the flag for more sounds."""
    checkpoint: Annotated[Path, tyro.conf.arg(metavar='DIR')]
    """A training run's folder, or one step's folder in it."""
    output: Annotated[Path, tyro.conf.arg(aliases=['-o'], metavar='OUT')]
    """A .wav, .flac or .ogg file, or a folder (made if its parent exists)."""
    residual: bool = False
    """Also write what is left: the input less all that was extracted."""
    bits: Literal['16', '24', 'float'] = '16'
    """Of the output samples. OGG has none."""
    per_channel: bool = False
    """Run the network on each channel, instead of on the downmix."""
    force: bool = False
    """Replace outputs that exist."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint on a benchmark: SDRi and SI-SDR, beside no separation and wrong queries."""

    data: Annotated[Path, tyro.conf.arg(metavar='DIR')]
    """The benchmark's folder. music: music_eval.csv, segment-IDX and mixture-IDX files."""
    checkpoint: Annotated[Path, tyro.conf.arg(metavar='DIR')]
    """A training run's folder, or one step's folder in it."""
    benchmark: Literal['music'] = 'music'
    """The protocol."""
    json: Annotated[Path | None, tyro.conf.arg(metavar='FILE')] = None
    """Also write the results there; an existing file is replaced."""
    batch_size: int = 8
    """Mixtures through the network at a time."""
    seed: int = 0
    """Of the bootstrap intervals and of the wrong queries."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Say what a checkpoint is: step, encoder, parameter count, configuration."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar='DIR')]
    """A training run's folder, or one step's folder in it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default the process's) and returns the exit code."""
    try:
        command = tyro.cli(
            Annotated[Separate, tyro.conf.subcommand('separate')]
            | Annotated[Evaluate, tyro.conf.subcommand('evaluate')]
            | Annotated[Inspect, tyro.conf.subcommand('inspect')],
            prog='audiosep-jax',
            description='Separate sounds by describing them.',
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except SystemExit as stop:  # --help, or a flag that tyro has explained
        return stop.code if isinstance(stop.code, int) else 2
    run = {Separate: _separate, Evaluate: _evaluate, Inspect: _inspect}[type(command)]
    try:
        with _terminable():
            return run(command)
    except KeyboardInterrupt:
        _complain('interrupted; the output being written was not kept')
        return 130
    except BrokenPipeError:  # `| head`: nobody reads on. Without this Python complains again while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        explanation = explained(error)
        if explanation is None:
            raise
        _complain(explanation[0])
        return explanation[1]


# ---- separate --------------------------------------------------------------------------------------------------------


def _separate(command: Separate) -> int:
    from audiosep_jax.progress import progress_bar

    queries = _checked_queries(command.query)
    names = [*_query_names(queries), *([_RESIDUAL] if command.residual else [])]
    plans = _plan(command, names)
    separator = _load(command.checkpoint)
    embeddings = separator.embed(list(queries))  # now: an unusable query concerns no input in particular

    failed = 0
    with progress_bar('separating') as show:
        for done, (source, outputs) in enumerate(plans.items()):
            show(done, len(plans))
            try:
                _separate_file(separator, source, outputs, embeddings, command)
            except AudioSepError as error:
                failed += 1
                message = str(error)
                _complain(message if str(source) in message else f'{source}: {message}')
    if failed and len(plans) > 1:
        _complain(f'{failed} of {len(plans)} inputs failed')
    return 1 if failed else 0


def _separate_file(
    separator: 'Separator', source: Path, outputs: list[Path], embeddings: np.ndarray, command: Separate
) -> None:
    """Writes all outputs of one input, or none of them."""
    subtype = _SUBTYPES[command.bits]
    existing = [path for path in outputs if path.exists()]
    if existing and not command.force:
        raise AudioFileError(f'{source}: {existing[0]} exists; use --force to replace it, or another -o')
    mixture, rate = audio.read_audio(source)
    for path in outputs:
        audio.check_format(path, subtype, channels=len(mixture), sample_rate=rate)
    separation = separator.separate(mixture, embeddings, sample_rate=rate, per_channel=command.per_channel)
    sounds = [*separation.targets, *([separation.residual] if command.residual else [])]
    with _made(outputs[0].parent):
        gain = audio.write_together(dict(zip(outputs, sounds, strict=True)), rate, subtype=subtype)
    if gain < 1:
        _say(
            f'{source}: attenuated by {-20 * np.log10(gain):.1f} dB, all outputs alike, to keep within full scale '
            '(--bits float in a .wav needs no attenuation)',
            file=sys.stderr,
        )
    for path in outputs:
        _say(str(path))


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder exists inside; if it did not before and something fails, it goes again."""
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # somebody else's file in it: then it stays
                folder.rmdir()
        raise


def _checked_queries(queries: Sequence[str]) -> tuple[str, ...]:
    if not queries:
        raise QueryError('no query: say in words what to extract, for example --query "a dog barking"')
    queries = tuple(query.strip() for query in queries)
    for query in queries:
        if not query:
            raise QueryError('a query is empty: say in words what to extract, for example --query "a dog barking"')
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise QueryError(f"the query {query!r} is not valid text in this terminal's encoding") from error
    repeated = sorted({query for query in queries if queries.count(query) > 1})
    if repeated:
        raise QueryError(f'the query {repeated[0]!r} is given twice; once is enough')
    return queries


def _plan(command: Separate, names: list[str]) -> dict[Path, list[Path]]:
    """Input to outputs, one per name; everything about the flags that could go wrong goes wrong here, before any work.

    Raises:
        ConfigError: an output that cannot be meant.
    """
    out, inputs = command.output, command.inputs
    if not inputs:
        raise ConfigError('no input: name the audio files to separate')
    suffix = out.suffix.lower()
    if suffix in _AUDIO_SUFFIXES and not out.is_dir():
        if len(inputs) > 1 or len(command.query) > 1:
            raise ConfigError(
                f'-o {out}: with several inputs or queries -o is a folder; give it a name without {suffix}'
            )
        audio.check_format(out, _SUBTYPES[command.bits])
        outputs = [out.with_name(_file_name(out.stem, name, suffix)) for name in names[1:]]
        plans, folder = {inputs[0]: [out, *outputs]}, None
    else:
        plans, folder = {}, out
        for source in inputs:
            if source in plans:
                raise ConfigError(f'{source}: given twice; once is enough')
            plans[source] = [out / _file_name(source.stem, name, '.wav') for name in names]
    _check_folder(out, folder)
    _check_collisions(plans)
    return plans


def _check_folder(out: Path, folder: Path | None) -> None:
    """The folder for the outputs must be there, or (for a folder of stems) at least its parent: typos make no trees."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise AudioFileError(f'-o {out}: is a file, but a folder is needed; give a folder, or a name that ends in .wav')
    needed = out.absolute().parent
    if not needed.is_dir():
        raise AudioFileError(f'-o {out}: the folder {needed} does not exist; make it first')
    place = folder if folder is not None and folder.exists() else needed
    if not os.access(place, os.W_OK | os.X_OK):
        raise AudioFileError(f'-o {out}: no permission to write into {place}')


def _check_collisions(plans: dict[Path, list[Path]]) -> None:
    sources = {os.path.realpath(source): source for source in plans}
    owner: dict[str, Path] = {}
    for source, outputs in plans.items():
        for path in outputs:
            real = os.path.realpath(path)
            if real in sources:
                raise ConfigError(f'{path}: is an input and would be overwritten; choose another -o')
            # Some file systems do not tell upper from lower case.
            first = owner.setdefault(real.casefold(), source)
            if first is not source:
                raise ConfigError(f'{first} and {source} would both be written to {path}; separate them one by one')


def _query_names(queries: Sequence[str]) -> list[str]:
    """File-name parts for queries, all different: where two come out alike, the later one gets a number."""
    names: list[str] = []
    taken = {_RESIDUAL}
    for query in queries:
        base = name = _safe_name(query)
        number = 2
        while name.casefold() in taken:
            name = f'{base}-{number}'
            number += 1
        taken.add(name.casefold())
        names.append(name)
    return names


def _safe_name(text: str) -> str:
    """Text as a part of a file name: letters of any script stay, what file systems or shells trip over becomes `_`."""
    text = unicodedata.normalize('NFC', text)
    # Of the invisible characters only the joiners are kept, which emoji and some scripts are written with; others turn
    # the direction of what follows (a name can then lie about its suffix) or are no text at all.
    text = ''.join(c if c in '\u200c\u200d' or unicodedata.category(c)[0] not in 'CZ' else ' ' for c in text)
    text = re.sub(r'[\s/\\:*?"<>|$`!\'&;#~%{}()\[\]^,=@+.]+', '_', text)
    return _shortened(text.strip('_-') or 'query', _MOST_QUERY_BYTES, text)


def _file_name(stem: str, name: str, suffix: str) -> str:
    rest = f'__{name}{suffix}'
    return _shortened(stem, _MOST_NAME_BYTES - len(os.fsencode(rest)), stem) + rest


def _shortened(text: str, most_bytes: int, identity: str) -> str:
    """Cut at a character to `most_bytes` with a hash of `identity` at the end, so that different texts stay apart."""
    data = os.fsencode(text)
    if len(data) <= most_bytes:
        return text
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]
    return data[: most_bytes - len(digest) - 1].decode('utf-8', 'ignore') + '-' + digest


# ---- evaluate --------------------------------------------------------------------------------------------------------


def _evaluate(command: Evaluate) -> int:
    from rich.console import Console

    from audiosep_jax.evaluate import evaluate_music, read_music, write_json
    from audiosep_jax.progress import progress_bar

    if command.batch_size < 1:
        raise ConfigError(f'--batch-size {command.batch_size}: must be at least 1')
    if command.seed < 0:
        raise ConfigError(f'--seed {command.seed}: must not be negative')
    if command.json is not None:
        _check_json(command.json)
    read_music(command.data)  # before the checkpoint: its mistakes are seen sooner
    separator = _load(command.checkpoint)
    with progress_bar('evaluating') as show:
        results = evaluate_music(
            separator, command.data, seed=command.seed, batch_size=command.batch_size, progress=show
        )
    for line in results.left_out:
        _complain(f'left out: {line}')
    if results.silent_targets:
        _say(
            f'audiosep-jax: note: {len(results.silent_targets)} targets are silent and count all the same: '
            + ', '.join(results.silent_targets),
            file=sys.stderr,
        )
    Console(highlight=False).print(results.table(f'{command.benchmark}: {len(results.items)} mixtures'))
    if command.json is not None:
        record = {'benchmark': command.benchmark, 'data': str(command.data), **results.to_dict()}
        write_json(command.json, record)
    if results.left_out:
        _complain(f'{len(results.left_out)} items were left out; the numbers are of the other {len(results.items)}')
    return 1 if results.left_out else 0


def _check_json(path: Path) -> None:
    """Before the work: hours of evaluation must not end at a folder that is not there or not ours."""
    if path.is_dir():
        raise DataError(f'--json {path}: is a folder; name a file')
    if not path.absolute().parent.is_dir():
        raise DataError(f'--json {path}: the folder {path.absolute().parent} does not exist; make it first')
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise DataError(f'--json {path}: no permission to write into {path.absolute().parent}')


# ---- inspect ---------------------------------------------------------------------------------------------------------


def _inspect(command: Inspect) -> int:
    import jax

    from audiosep_jax.checkpoint import load_for_inference

    _quieten()
    checkpoint = load_for_inference(command.checkpoint)
    params = checkpoint.variables['params']
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    _say(f'path        {checkpoint.path}')
    _say(f'step        {checkpoint.step}')
    _say(f'encoder     {", ".join(f"{key} {value}" for key, value in checkpoint.encoder.items())}')
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


# ---- the terminal ----------------------------------------------------------------------------------------------------


def _load(path: Path) -> 'Separator':
    from audiosep_jax.compilation import enable_compilation_cache
    from audiosep_jax.separate import load

    _quieten()
    enable_compilation_cache()
    return load(path)


def _quieten() -> None:
    """Orbax tells of its internals in warnings through absl, which nobody at a command line can act on."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as an exception, as Ctrl-C is, so that temporary files are removed. Only the main thread may ask so."""

    def stop(*_):
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _complain(message: str) -> None:
    _say(f'audiosep-jax: error: {message}', file=sys.stderr)


def _say(text: str, file=None) -> None:
    """One line, whatever the terminal's encoding and whatever bytes a file name has."""
    file = file or sys.stdout
    text = ''.join(c if c.isprintable() or c == ' ' else c.encode('unicode_escape').decode() for c in text)
    encoding = file.encoding or 'utf-8'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), file=file, flush=True)


if __name__ == '__main__':
    sys.exit(main())
