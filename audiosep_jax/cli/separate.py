"""The command `audiosep-jax separate`: checks its flags, then separates files or a pipe."""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import tyro

from audiosep_jax.audio.compression import Compression, parse_bit_rate
from audiosep_jax.audio.formats import OUTPUT_FORMATS, WRITABLE_SUFFIXES, held_rate
from audiosep_jax.audio.raw import RAW_FORMATS, RawFormat, encoded, read_raw
from audiosep_jax.audio.reading import SoundInput, open_sound
from audiosep_jax.audio.writing import Subtype, has_subtypes
from audiosep_jax.cli import terminal
from audiosep_jax.cli.flags import CheckpointFlag, DtypeFlag, EqualizerFlag, LevelFlag
from audiosep_jax.errors import AudioFileError, AudioSepError, ConfigError, DataError, QueryError
from audiosep_jax.separation.files import FileOptions, FileProgress, separated_pieces, write_sounds
from audiosep_jax.separation.outputs import (
    RESIDUAL,
    check_input,
    expand_inputs,
    expand_queries,
    looks_like_a_file,
    plan_outputs,
    query_names,
    removed_name,
)
from audiosep_jax.separation.spans import Span
from audiosep_jax.storage.atomic import check_writable, replacing

if TYPE_CHECKING:
    from audiosep_jax.separation.queries import Embedded, Query
    from audiosep_jax.separation.separator import Separator

_PIPE = Path('-')


@dataclasses.dataclass(frozen=True)
class Separate:
    """Extract the sounds that you describe from audio files of any length, or from a pipe.

    The output has the rate, length and channels of the input. One input and one query may go to a file (-o dog.wav);
    otherwise -o is a folder and gets {stem}__{query}.wav. It reads WAV, FLAC, OGG, MP3 and whatever else libsndfile
    or FFmpeg (through PyAV) decodes, also the sound of videos.
    """

    inputs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar='IN [IN ...]', name='in', help_behavior_hint='(required)'),
    ]
    """Sound files, folders (without their sub-folders) or patterns ('in/**/*.wav'); - reads raw samples from stdin."""
    query: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT')] = ()
    """The sound to extract, in words; repeat the flag for several sounds."""
    like: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract the sound that resembles this recording (models with a CLAP encoder)."""
    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract the sound of what this picture shows (models with a CLIP encoder)."""
    vector: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract the sound of this embedding: a .npy file, a query of `learn-query`, or a folder of such queries."""
    without: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT', name='not')] = ()
    """A sound to exclude from all extracted sounds (negative query), in words."""
    blend: bool = False
    """Blend all queries into one, and extract a single sound."""
    weights: Annotated[
        tuple[float, ...], tyro.conf.arg(metavar='W [W ...]', help_behavior_hint='(default: equal)')
    ] = ()
    """The weights of the queries in the blend, in the order --query, --like, --image, --vector."""
    checkpoint: CheckpointFlag = None
    output: Annotated[Path, tyro.conf.arg(aliases=['-o'], metavar='OUT')] = Path('separated')
    """A sound file, a folder (created if its parent exists), or - for raw samples on standard output."""
    name: Annotated[
        str | None, tyro.conf.arg(metavar='TEMPLATE', help_behavior_hint="(default: '{stem}__{query}')")
    ] = None
    """How the files in a folder are named: {stem} of the input, {query}, {index} of the sound, {input} (a number)."""
    residual: bool = False
    """Also write the residual: the input minus all extracted sounds."""
    remove: bool = False
    """Write only the residual, one file per input."""
    segments: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar='START-STOP [...]', help_behavior_hint='(default: all of it)')
    ] = ()
    """Extract only within these spans, such as 0:10-0:25 1:02:03.5-1:03:00; elsewhere the sound counts as absent."""
    format: Annotated[str | None, tyro.conf.arg(metavar='NAME', help_behavior_hint='(default: wav)')] = None
    """Of files: wav, flac, ogg, opus, mp3, aiff, caf, w64 or m4a; one that lacks the input's rate gets the next higher
    one. Of a pipe: u8, s16le, s24le, s32le, f32le or f64le."""
    subtype: Annotated[
        str | None, tyro.conf.arg(metavar='NAME', help_behavior_hint="(default: the input's, at least PCM_16)")
    ] = None
    """Sample format of the outputs: PCM_16, PCM_24, PCM_32 or FLOAT. OGG, Opus, MP3 and M4A have none."""
    bitrate: Annotated[str | None, tyro.conf.arg(metavar='RATE', help_behavior_hint="(default: the encoder's)")] = None
    """Bit rate of MP3, Opus or M4A files, such as 192k, of all channels together."""
    quality: Annotated[float | None, tyro.conf.arg(metavar='Q', help_behavior_hint="(default: the encoder's)")] = None
    """Quality of MP3 or OGG files with a variable bit rate, from 0 to 10, the best."""
    rate: Annotated[int | None, tyro.conf.arg(metavar='HZ')] = None
    """Sample rate of standard input."""
    channels: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """Number of channels of standard input."""
    strength: Annotated[float, tyro.conf.arg(metavar='S')] = 1.0
    """Blend each output with the input, S x sound + (1 - S) x input, which hides artefacts; at 0.9, the rest is 20 dB
    quieter."""
    keep_loudness: bool = False
    """Raise or lower each output to the loudness of its input (EBU R 128), by at most 24 dB."""
    per_channel: bool = False
    """Run the network on each channel instead of on the downmix."""
    level: LevelFlag = None
    """Let the network hear quiet and loud recordings at the level that it was trained at (auto), or as they are (off).
    The level of the outputs stays in proportion to the input."""
    equalizer: EqualizerFlag = None
    """Share of the checkpoint's equalizer in the results, from 0 to 1 (docs/train.md)."""
    dtype: DtypeFlag = None
    """Number format of the network. bfloat16 is for accelerators, and less accurate (docs/separate.md)."""
    json: Annotated[Path | None, tyro.conf.arg(metavar='FILE')] = None
    """Write a report of all inputs to this file; - prints it on standard output, instead of the names of the files."""
    force: bool = False
    """Replace existing outputs."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all inputs of one command have in common."""

    command: Separate
    separator: 'Separator'
    embedded: 'Embedded'
    options: FileOptions
    names: tuple[str, ...]  # of the outputs: the queries as given, then the residual


def run(command: Separate) -> int:
    """Separates all inputs; returns the exit code, 1 if any of them failed.

    Raises:
        ConfigError, QueryError: flags or queries that cannot job.
        AudioSepError: the checkpoint cannot be loaded, or the only input, a pipe, cannot be separated.
    """
    queries = _queries(command)
    options = _options(command)
    inputs = expand_inputs(command.inputs, command.output)
    _check_flags(command, inputs, len(queries), options)
    names = _output_names(command, list(queries))
    plans = {} if command.output == _PIPE else _plans(command, inputs, list(names), len(queries), options)
    if command.output != _PIPE and looks_like_a_file(command.output):
        terminal.note(f'{command.output} is treated as a folder, because its suffix is not that of a sound format')
    separator = terminal.load(command.checkpoint, level=command.level, dtype=command.dtype, equalizer=command.equalizer)
    # An unusable query is not the fault of any input, so it ends the command here.
    with terminal.warnings_as_notes('--vector'):
        embedded = separator.prepare(list(queries.values()))
    job = _Job(command, separator, embedded, options, tuple(names.values()))
    if command.output == _PIPE:
        with terminal.warnings_as_notes(inputs[0]):
            return _separate_to_pipe(job, inputs[0])
    records, failed = [], 0
    with _progress(inputs) as progress_of_next:
        for source, outputs in plans.items():
            try:
                with terminal.warnings_as_notes(source):
                    record = _separate_file(job, source, outputs, progress_of_next())
            except AudioSepError as error:
                failed += 1
                message = str(error)
                terminal.complain(message if str(source) in message else f'{source}: {message}')
                record = {'input': str(source), 'error': message}
            records.append(record)
    if command.json is not None:
        _write_report(command.json, {'queries': list(queries), 'items': records})
    if failed and len(plans) > 1:
        terminal.complain(f'{failed} of {len(plans)} inputs failed')
    return 1 if failed else 0


# ---- flags -----------------------------------------------------------------------------------------------------------


def _check_flags(command: Separate, inputs: Sequence[Path], num_queries: int, options: FileOptions) -> None:
    """Raises ConfigError for flags that do not fit together."""
    pipe_in, pipe_out = _PIPE in inputs, command.output == _PIPE
    raw = command.format in RAW_FORMATS
    if command.format not in (None, *OUTPUT_FORMATS, *RAW_FORMATS):
        known = f'{", ".join(OUTPUT_FORMATS)}, or for a pipe {", ".join(RAW_FORMATS)}'
        raise ConfigError(f'--format {command.format}: unknown; use {known}')
    if command.remove and command.residual:
        raise ConfigError('--remove writes only the residual: omit --residual')
    if raw and not (pipe_in or pipe_out):
        raise ConfigError(f'--format {command.format} is for raw samples in a pipe: give - as the input or as -o')
    if (pipe_in or pipe_out) and not raw:
        raise ConfigError(f'- needs the format of the raw samples: --format {", ".join(RAW_FORMATS[:-1])} or f64le')
    if pipe_in and (command.rate is None or command.channels is None):
        raise ConfigError('- as the input needs --rate and --channels, for example --rate 44100 --channels 2')
    for flag in ('rate', 'channels'):
        value = getattr(command, flag)
        if value is not None and not pipe_in:
            raise ConfigError(f'--{flag} is for standard input only: files state it themselves')
        if value is not None and value < 1:
            raise ConfigError(f'--{flag} {value}: must be at least 1')
    if pipe_out:
        if len(inputs) > 1 or (num_queries > 1 and not command.remove) or command.residual:
            raise ConfigError('-o - carries a single sound: give one input, and one query or --remove')
        if command.keep_loudness:
            raise ConfigError('--keep-loudness has to measure the whole recording, so it cannot be combined with -o -')
        if command.json is not None or command.subtype is not None or command.name is not None:
            raise ConfigError('--json, --subtype and --name are for files and cannot be combined with -o -')
        if options.compression:
            raise ConfigError('--bitrate and --quality are for files and cannot be combined with -o -')
    if command.json is not None and command.json != _PIPE:
        check_writable(command.json, '--json')
    suffix = _suffix(command)
    if command.format and not raw and suffix != f'.{command.format}':
        raise ConfigError(f'-o {command.output} and --format {command.format} conflict: give only one')
    if command.subtype and not has_subtypes(suffix):
        raise ConfigError(f'--subtype {command.subtype}: {suffix} has no subtypes; omit it')


def _suffix(command: Separate) -> str:
    """Returns the suffix of the outputs."""
    suffix = command.output.suffix.lower()
    if suffix in WRITABLE_SUFFIXES and not command.output.is_dir():
        return suffix
    return '.wav' if command.format is None or command.format in RAW_FORMATS else f'.{command.format}'


def _options(command: Separate) -> FileOptions:
    """Returns what is done to every recording. `plan_outputs` checks the value of --subtype."""
    return FileOptions(
        spans=tuple(Span.parse(text) for text in command.segments),
        per_channel=command.per_channel,
        strength=command.strength,
        keep_loudness=command.keep_loudness,
        subtype=cast(Subtype, command.subtype.upper()) if command.subtype else None,
        compression=Compression(None if command.bitrate is None else parse_bit_rate(command.bitrate), command.quality),
    )


def _output_names(command: Separate, queries: list[str]) -> dict[str, str]:
    """Returns the outputs' parts of file names, each with its query or `residual`."""
    if command.remove:
        return {removed_name(queries): RESIDUAL}
    names = dict(zip(query_names(queries), queries, strict=True))
    return {**names, RESIDUAL: RESIDUAL} if command.residual else names


def _plans(
    command: Separate, inputs: list[Path], names: list[str], num_queries: int, options: FileOptions
) -> dict[Path, list[Path]]:
    """Returns the output files of each input."""
    return plan_outputs(
        command.output,
        inputs,
        names,
        num_queries=1 if command.remove else num_queries,
        suffix=_suffix(command),
        subtype=options.subtype,
        compression=options.compression,
        template=command.name,
    )


def _queries(command: Separate) -> dict[str, 'Query']:
    """Returns the queries of the flags by name, each with the sounds to exclude."""
    from audiosep_jax.separation.queries import Query

    texts = _check_texts('query', command.query)
    queries = dict(zip(texts, map(Query.text, texts), strict=True))
    for paths, make in (
        (command.like, Query.audio_file),
        (command.image, Query.image),
        (expand_queries(command.vector), Query.vector_file),
    ):
        for path in paths:
            name = path.stem
            while name in queries:
                name += '-2'
            queries[name] = make(path)
    if not queries:
        raise QueryError('no query: describe the sound to extract, for example --query "a dog barking"')
    if command.blend or command.weights:
        weights = command.weights or (1.0,) * len(queries)
        if len(weights) != len(queries):
            raise ConfigError(f'--weights has {len(weights)} numbers for {len(queries)} queries')
        first, *others = (weight * query for weight, query in zip(weights, queries.values(), strict=True))
        blended = sum(others, start=first)
        queries = {' + '.join(queries): blended}
    unwanted = _check_texts('not', command.without)
    return {name: query.without(*unwanted) for name, query in queries.items()}


def _check_texts(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the texts without surrounding spaces; raises QueryError for an empty, undecodable or repeated one."""
    texts = tuple(text.strip() for text in texts)
    for text in texts:
        if not text:
            raise QueryError(f'a query is empty: describe a sound, for example --{flag} "a dog barking"')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise QueryError(f"the query {text!r} is not valid text in this terminal's encoding") from error
    repeated = sorted({text for text in texts if texts.count(text) > 1})
    if repeated:
        raise QueryError(f'the query {repeated[0]!r} is given twice; once is enough')
    return texts


# ---- files -----------------------------------------------------------------------------------------------------------


def _separate_file(job: _Job, source: Path, outputs: list[Path], progress: FileProgress) -> dict[str, Any]:
    """Writes all outputs of one input or none of them; returns its part of the report."""
    command, suffix = job.command, outputs[0].suffix
    with _opened(command, source) as sound:  # before the outputs: a missing input is the more useful message
        existing = [path for path in outputs if path.exists()]
        if existing and not command.force:
            raise AudioFileError(f'{source}: {existing[0]} exists; use --force to replace it, or another -o')
        rate = held_rate(suffix, sound.rate)
        if rate != sound.rate:
            terminal.note(f'{source}: {suffix} does not hold {sound.rate} Hz; written at {rate} Hz')
        with_residual = command.residual or command.remove
        targets, residual = (outputs[:-1], outputs[-1]) if with_residual else (outputs, None)
        with _output_folder(outputs[0].parent):
            written = write_sounds(job.separator, sound, job.embedded, targets, residual, job.options, progress)
    if written.gain < 1:
        terminal.say(
            f'{source}: attenuated by {-20 * np.log10(written.gain):.1f} dB, all outputs equally, to stay within full '
            'scale (--subtype FLOAT in a .wav needs no attenuation)',
            file=sys.stderr,
        )
    if command.json != _PIPE:
        for path in outputs:
            terminal.say(str(path))
    return {
        'input': str(source),
        'seconds': written.seconds,
        'sample_rate': sound.rate,
        **({'output_sample_rate': rate} if rate != sound.rate else {}),
        'channels': sound.channels,
        'subtype': written.subtype,
        'outputs': [
            {'query': name, 'path': str(path), 'gain_db': round(20 * float(np.log10(written.gain * own)), 3)}
            for name, path, own in zip(job.names, outputs, written.loudness_gains, strict=True)
        ],
    }


@dataclasses.dataclass
class _PipeInput:
    """Standard input, with the attributes of a SoundInput that are used here."""

    rate: int
    channels: int
    subtype: str | None
    blocks: Callable[[], Iterator[np.ndarray]]
    mask: int = 0
    seconds: float | None = None


@contextlib.contextmanager
def _opened(command: Separate, source: Path) -> Iterator[SoundInput | _PipeInput]:
    """Yields the input, opened. Raises AudioFileError."""

    if source != _PIPE:
        check_input(source)
        with open_sound(source) as sound:
            yield sound
        return
    if sys.stdin is None:
        raise AudioFileError('standard input is closed')

    # _check_flags has made sure of these.
    assert command.rate is not None
    assert command.channels is not None
    form = cast(RawFormat, command.format)
    blocks = functools.partial(read_raw, sys.stdin.buffer, form, command.channels, terminal.note)

    bits = {'s24le': 'PCM_24', 's32le': 'PCM_32', 'f32le': 'FLOAT', 'f64le': 'FLOAT'}
    yield _PipeInput(command.rate, command.channels, bits.get(form), blocks)


@contextlib.contextmanager
def _output_folder(folder: Path) -> Iterator[None]:
    """Creates the folder; if something fails inside, removes it again unless it existed before."""
    new = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # it stays if another program has written a file into it
                folder.rmdir()
        raise


@contextlib.contextmanager
def _progress(inputs: Sequence[Path]) -> Iterator[Callable[[], FileProgress]]:
    """Yields what makes the next input's callback; the bar counts seconds of sound, as far as headers state them."""
    from audiosep_jax.progress import progress_bar

    total = done = 0.0
    for source in inputs if sys.stderr.isatty() else ():
        with contextlib.suppress(AudioSepError), open_sound(source) as sound:  # reported when its turn comes
            total += sound.seconds or 0.0
    with progress_bar('separating') as show:

        def progress_of_next() -> FileProgress:
            before = done

            def progress(seconds: float, _: float | None) -> None:
                nonlocal done
                done = before + seconds
                show(round(done), round(max(total, done)))

            return progress

        yield progress_of_next


def _write_report(path: Path, record: dict[str, Any]) -> None:
    """Writes the report of --json. Raises DataError."""
    if path == _PIPE:
        terminal.say(json.dumps(record, ensure_ascii=False))
        return
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    except OSError as error:
        raise DataError(f'--json {path}: cannot be written: {error.strerror or error}') from error


# ---- pipes -----------------------------------------------------------------------------------------------------------


def _separate_to_pipe(job: _Job, source: Path) -> int:
    """Writes one sound to standard output, each piece as soon as it is finished; returns the exit code."""
    if sys.stdout is None:
        raise AudioFileError('standard output is closed')
    clipped, out = 0, sys.stdout.buffer
    form = cast(RawFormat, job.command.format)  # _check_flags has made sure of it
    with _opened(job.command, source) as sound:
        if source != _PIPE:
            terminal.say(
                f'{source}: {sound.rate} Hz, {sound.channels} channels as {job.command.format} on standard output',
                file=sys.stderr,
            )
        pieces = separated_pieces(
            job.separator, sound.blocks(), sound.rate, job.embedded, job.options, live=source == _PIPE
        )
        for piece in pieces:
            parts = piece.blended(job.options.strength)
            data, beyond = encoded(parts.residual if job.command.remove else parts.targets[0], form)
            clipped += beyond
            out.write(data)
            out.flush()
    if clipped:
        terminal.say(
            f'{source}: clipped {clipped} samples beyond full scale; --format f32le preserves them',
            file=sys.stderr,
        )
    return 0
