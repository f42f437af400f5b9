"""The command `audiosep-jax separate`: its flags, files in and out, and pipes."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from audiosep_jax.audio.formats import OUTPUT_FORMATS, WRITABLE_SUFFIXES
from audiosep_jax.audio.raw import RAW_FORMATS, encoded, read_raw
from audiosep_jax.audio.writing import Subtype, has_subtypes, subtype_like, written_together
from audiosep_jax.errors import AudioFileError, AudioSepError, ConfigError, DataError, QueryError
from audiosep_jax.separation.outputs import (
    RESIDUAL,
    check_input,
    expand_inputs,
    looks_like_a_file,
    plan_outputs,
    query_names,
    removed_name,
)
from audiosep_jax.separation.spans import Span, stream_spans
from audiosep_jax.storage.atomic import check_writable, replacing

if TYPE_CHECKING:
    from audiosep_jax.audio.reading import SoundInput
    from audiosep_jax.separation.queries import Embedded, Query
    from audiosep_jax.separation.separator import Separation, Separator

_PIPE = Path('-')
_MOST_RAISED_DB = 24.0


@dataclasses.dataclass(frozen=True)
class Separate:
    """Extract the sounds that you describe from audio files of any length, or from a pipe.

    The output has the rate, length and channels of the input. One input and one query may go to a file (-o dog.wav);
    otherwise -o is a folder and gets {stem}__{query}.wav. WAV, FLAC, OGG, MP3 and what else libsndfile knows are read;
    M4A, MP4, WebM and MKV with the extra `video`.
    """

    inputs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar='IN [IN ...]', name='in', help_behavior_hint='(required)'),
    ]
    """Sound files, folders (not their sub-folders), patterns ('in/**/*.wav'); - reads headerless samples from stdin."""
    query: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT')] = ()
    """What to extract, in words; once for each sound."""
    like: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract what sounds like this recording (models with a CLAP encoder)."""
    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract the sound of what this picture shows (models with a CLIP encoder)."""
    vector: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract what this embedding in a .npy file stands for."""
    without: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT', name='not')] = ()
    """What must stay out of every extracted sound, in words."""
    blend: bool = False
    """Make one query of all that are given: one sound that is like each of them."""
    weights: Annotated[
        tuple[float, ...], tyro.conf.arg(metavar='W [W ...]', help_behavior_hint='(default: all alike)')
    ] = ()
    """How much each counts in the blend: first those of --query, then --like, --image, --vector."""
    checkpoint: Annotated[
        str | None, tyro.conf.arg(metavar='DIR', help_behavior_hint='(default: official weights, fetched once)')
    ] = None
    """A training run's folder, one step's folder in it, a converted checkpoint, or a repository of the hub."""
    output: Annotated[Path, tyro.conf.arg(aliases=['-o'], metavar='OUT')] = Path('separated')
    """A sound file, a folder (made if its parent exists), or - for samples on standard output."""
    residual: bool = False
    """Also write what is left: the input less all that was extracted."""
    remove: bool = False
    """Write only what is left, one file for each input."""
    segments: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar='START-STOP [...]', help_behavior_hint='(default: all of it)')
    ] = ()
    """Extract within these parts alone, as 0:10-0:25 1:02:03.5-1:03:00; elsewhere the sound counts as absent."""
    format: Annotated[str | None, tyro.conf.arg(metavar='NAME', help_behavior_hint='(default: wav)')] = None
    """Of files: wav, flac, ogg, opus, mp3, aiff, caf or w64. In a pipe: u8, s16le, s24le, s32le, f32le or f64le."""
    subtype: Annotated[
        str | None, tyro.conf.arg(metavar='NAME', help_behavior_hint="(default: the input's, at least PCM_16)")
    ] = None
    """Of the output samples: PCM_16, PCM_24, PCM_32 or FLOAT. OGG, Opus and MP3 have none."""
    rate: Annotated[int | None, tyro.conf.arg(metavar='HZ')] = None
    """Sample rate of standard input."""
    channels: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """Channels of standard input."""
    keep_loudness: bool = False
    """Raise or lower each output to the loudness of its input (EBU R 128), by at most 24 dB."""
    per_channel: bool = False
    """Run the network on each channel, instead of on the downmix."""
    json: Annotated[Path | None, tyro.conf.arg(metavar='FILE')] = None
    """Write there what became of each input; - for standard output, instead of the names of the files."""
    force: bool = False
    """Replace outputs that exist."""


@dataclasses.dataclass(frozen=True)
class _Work:
    """A command, understood: what every input has in common."""

    command: Separate
    separator: 'Separator'
    embedded: 'Embedded'
    spans: tuple[Span, ...]
    names: tuple[str, ...]  # of the outputs: the queries as they were given, then the residual

    def pieces(self, blocks: Iterator[np.ndarray], rate: int, *, live: bool) -> Iterator['Separation']:
        flags = {'sample_rate': rate, 'per_channel': self.command.per_channel, 'live': live}
        if self.spans:
            return stream_spans(self.separator, blocks, self.embedded, self.spans, **flags)
        return self.separator.stream(blocks, self.embedded, **flags)

    def sounds(self, piece: 'Separation') -> list[np.ndarray]:
        """Of a piece, what goes to each output."""
        if self.command.remove:
            return [piece.residual]
        return [*piece.targets, *([piece.residual] if self.command.residual else [])]


def run(
    command: Separate,
    *,
    load: Callable[[str | None], 'Separator'],
    say: Callable[..., None],
    complain: Callable[[str], None],
) -> int:
    """The command; returns the exit code.

    Args:
        command: the flags.
        load: a checkpoint by its name.
        say: prints a line, by default to standard output.
        complain: prints an error.
    """
    queries = _queries(command)
    spans = tuple(Span.parse(text) for text in command.segments)
    inputs = expand_inputs(command.inputs, command.output)
    _check_flags(command, inputs, len(queries))
    names = _output_names(command, list(queries))
    plans = {_PIPE: []} if command.output == _PIPE else _plans(command, inputs, list(names), len(queries))
    if command.output != _PIPE and looks_like_a_file(command.output):
        say(
            f'audiosep-jax: note: {command.output} is taken for a folder, its suffix being none of a sound format',
            file=sys.stderr,
        )
    separator = load(command.checkpoint)
    embedded = separator.prepare(list(queries.values()))  # now: an unusable query concerns no input in particular
    work = _Work(command, separator, embedded, spans, tuple(names.values()))
    if command.output == _PIPE:
        return _to_pipe(work, inputs[0], say)
    records, failed = [], 0
    with _progress(inputs) as advance:
        for source, outputs in plans.items():
            try:
                record = _separate_file(work, source, outputs, say, advance)
            except AudioSepError as error:
                failed += 1
                message = str(error)
                complain(message if str(source) in message else f'{source}: {message}')
                record = {'input': str(source), 'error': message}
            records.append(record)
    if command.json is not None:
        _write_json(command.json, {'queries': list(queries), 'items': records}, say)
    if failed and len(plans) > 1:
        complain(f'{failed} of {len(plans)} inputs failed')
    return 1 if failed else 0


# ---- flags -----------------------------------------------------------------------------------------------------------


def _check_flags(command: Separate, inputs: Sequence[Path], num_queries: int) -> None:
    """Raises ConfigError for flags that do not go together."""
    pipe_in, pipe_out = _PIPE in inputs, command.output == _PIPE
    raw = command.format in RAW_FORMATS
    if command.format not in (None, *OUTPUT_FORMATS, *RAW_FORMATS):
        known = f'{", ".join(OUTPUT_FORMATS)}, or in a pipe {", ".join(RAW_FORMATS)}'
        raise ConfigError(f'--format {command.format}: not known; use {known}')
    if command.remove and command.residual:
        raise ConfigError('--remove writes the residual alone: leave --residual away')
    if raw and not (pipe_in or pipe_out):
        raise ConfigError(f'--format {command.format} is of samples in a pipe: give - as the input or as -o')
    if (pipe_in or pipe_out) and not raw:
        raise ConfigError(f'with - say how the samples are written: --format {", ".join(RAW_FORMATS[:-1])} or f64le')
    if pipe_in and (command.rate is None or command.channels is None):
        raise ConfigError('with - as the input give its --rate and --channels, for example --rate 44100 --channels 2')
    for flag in ('rate', 'channels'):
        value = getattr(command, flag)
        if value is not None and not pipe_in:
            raise ConfigError(f'--{flag} is of standard input: a file says it itself')
        if value is not None and value < 1:
            raise ConfigError(f'--{flag} {value}: must be at least 1')
    if pipe_out:
        if len(inputs) > 1 or (num_queries > 1 and not command.remove) or command.residual:
            raise ConfigError('-o - carries one sound: give one input, and one query or --remove')
        if command.keep_loudness:
            raise ConfigError('--keep-loudness needs to know the whole: it does not go with -o -')
        if command.json is not None or command.subtype is not None:
            raise ConfigError('--json and --subtype are for files: they do not go with -o -')
    if command.json is not None and command.json != _PIPE:
        check_writable(command.json, '--json')
    suffix = _suffix(command)
    if command.format and not raw and suffix != f'.{command.format}':
        raise ConfigError(f'-o {command.output} and --format {command.format} say two things: leave one away')
    if command.subtype and not has_subtypes(suffix):
        raise ConfigError(f'--subtype {command.subtype}: {suffix} has none; leave it away')


def _suffix(command: Separate) -> str:
    """Of the outputs."""
    suffix = command.output.suffix.lower()
    if suffix in WRITABLE_SUFFIXES and not command.output.is_dir():
        return suffix
    return '.wav' if command.format is None or command.format in RAW_FORMATS else f'.{command.format}'


def _subtype(command: Separate) -> Subtype | None:
    return command.subtype and command.subtype.upper()


def _output_names(command: Separate, queries: list[str]) -> dict[str, str]:
    """Part of a file name -> the query, or `residual`."""
    if command.remove:
        return {removed_name(queries): RESIDUAL}
    names = dict(zip(query_names(queries), queries, strict=True))
    return {**names, RESIDUAL: RESIDUAL} if command.residual else names


def _plans(command: Separate, inputs: list[Path], names: list[str], num_queries: int) -> dict[Path, list[Path]]:
    return plan_outputs(
        command.output,
        inputs,
        names,
        num_queries=1 if command.remove else num_queries,
        suffix=_suffix(command),
        subtype=_subtype(command),
    )


def _queries(command: Separate) -> dict[str, 'Query']:
    """What the flags ask for: name -> query."""
    from audiosep_jax.separation.queries import Query

    texts = _checked_texts('query', command.query)
    queries = dict(zip(texts, map(Query.text, texts), strict=True))
    for paths, make in (
        (command.like, Query.audio_file),
        (command.image, Query.image),
        (command.vector, Query.vector_file),
    ):
        for path in paths:
            name = path.stem
            while name in queries:
                name += '-2'
            queries[name] = make(path)
    if not queries:
        raise QueryError('no query: say in words what to extract, for example --query "a dog barking"')
    if command.blend or command.weights:
        weights = command.weights or (1.0,) * len(queries)
        if len(weights) != len(queries):
            raise ConfigError(f'--weights has {len(weights)} numbers for {len(queries)} queries')
        blended = sum(weight * query for weight, query in zip(weights, queries.values(), strict=True))
        queries = {' + '.join(queries): blended}
    unwanted = _checked_texts('not', command.without)
    return {name: query.without(*unwanted) for name, query in queries.items()}


def _checked_texts(flag: str, texts: Sequence[str]) -> tuple[str, ...]:
    texts = tuple(text.strip() for text in texts)
    for text in texts:
        if not text:
            raise QueryError(f'a query is empty: describe a sound in words, for example --{flag} "a dog barking"')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise QueryError(f"the query {text!r} is not valid text in this terminal's encoding") from error
    repeated = sorted({text for text in texts if texts.count(text) > 1})
    if repeated:
        raise QueryError(f'the query {repeated[0]!r} is given twice; once is enough')
    return texts


# ---- files -----------------------------------------------------------------------------------------------------------


def _separate_file(
    work: _Work, source: Path, outputs: list[Path], say: Callable[..., None], advance: Callable[[float], None]
) -> dict:
    """Writes all outputs of one input, or none of them; returns what there is to tell of it."""
    with _opened(work.command, source, say) as sound:  # first: an input that is not there is the worse mistake
        existing = [path for path in outputs if path.exists()]
        if existing and not work.command.force:
            raise AudioFileError(f'{source}: {existing[0]} exists; use --force to replace it, or another -o')
        subtype = _subtype(work.command) or subtype_like(sound.subtype, outputs[0].suffix)
        with (
            _made(outputs[0].parent),
            written_together(outputs, sound.rate, channels=sound.channels, subtype=subtype) as files,
        ):
            meters = _Meters(len(outputs), sound.rate, sound.channels) if work.command.keep_loudness else None
            samples = 0
            for piece in work.pieces(sound.blocks(), sound.rate, live=False):
                sounds = work.sounds(piece)
                files.write(sounds)
                if meters is not None:
                    meters.push(piece, sounds)
                samples += piece.residual.shape[-1]
                advance(piece.residual.shape[-1] / sound.rate)
            raised = meters.gains() if meters is not None else [1.0] * len(outputs)
            gain = files.finish(raised)
    if gain < 1:
        say(
            f'{source}: attenuated by {-20 * np.log10(gain):.1f} dB, all outputs alike, to keep within full scale '
            '(--subtype FLOAT in a .wav needs no attenuation)',
            file=sys.stderr,
        )
    if work.command.json != _PIPE:
        for path in outputs:
            say(str(path))
    return {
        'input': str(source),
        'seconds': samples / sound.rate,
        'sample_rate': sound.rate,
        'channels': sound.channels,
        'subtype': subtype if has_subtypes(outputs[0].suffix) else None,
        'outputs': [
            {'query': name, 'path': str(path), 'gain_db': round(20 * float(np.log10(gain * own)), 3)}
            for name, path, own in zip(work.names, outputs, raised, strict=True)
        ],
    }


@dataclasses.dataclass(frozen=True)
class _PipeInput:
    """Standard input, in the place of a SoundInput."""

    rate: int
    channels: int
    subtype: str | None
    blocks: Callable[[], Iterator[np.ndarray]]


@contextlib.contextmanager
def _opened(command: Separate, source: Path, say: Callable[..., None]) -> Iterator['SoundInput | _PipeInput']:
    from audiosep_jax.audio.reading import open_sound

    if source != _PIPE:
        check_input(source)
        with open_sound(source) as sound:
            yield sound
        return
    if sys.stdin is None:
        raise AudioFileError('standard input is closed')

    def note(text: str) -> None:
        say(f'audiosep-jax: note: {text}', file=sys.stderr)

    def blocks() -> Iterator[np.ndarray]:
        return read_raw(sys.stdin.buffer, command.format, command.channels, note)

    bits = {'s24le': 'PCM_24', 's32le': 'PCM_32', 'f32le': 'FLOAT', 'f64le': 'FLOAT'}
    yield _PipeInput(command.rate, command.channels, bits.get(command.format), blocks)


class _Meters:
    """How loud the mixture and each output is."""

    def __init__(self, outputs: int, rate: int, channels: int):
        from audiosep_jax.audio.loudness import LoudnessMeter

        self._mixture, *self._outputs = (LoudnessMeter(rate, channels) for _ in range(outputs + 1))

    def push(self, piece: 'Separation', sounds: list[np.ndarray]) -> None:
        self._mixture.push(piece.residual + piece.targets.sum(0))
        for meter, sound in zip(self._outputs, sounds, strict=True):
            meter.push(sound)

    def gains(self) -> list[float]:
        """What brings each output to the mixture's loudness; 1 for what is silent."""
        mixture, gains = self._mixture.integrated(), []
        for meter in self._outputs:
            decibels = mixture - meter.integrated()
            bounded = np.clip(decibels, -_MOST_RAISED_DB, _MOST_RAISED_DB) if np.isfinite(decibels) else 0.0
            gains.append(float(10 ** (bounded / 20)))
        return gains


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


@contextlib.contextmanager
def _progress(inputs: Sequence[Path]) -> Iterator[Callable[[float], None]]:
    """Yields `advance(seconds)`: the bar shows seconds of sound, as far as headers tell."""
    from audiosep_jax.audio.reading import open_sound
    from audiosep_jax.progress import progress_bar

    total = done = 0.0
    for source in inputs if sys.stderr.isatty() else ():
        with contextlib.suppress(AudioSepError), open_sound(source) as sound:  # said when it is its turn
            total += sound.seconds or 0.0
    with progress_bar('separating') as show:

        def advance(seconds: float) -> None:
            nonlocal done
            done += seconds
            show(round(done), round(max(total, done)))

        yield advance


def _write_json(path: Path, record: dict, say: Callable[..., None]) -> None:
    if path == _PIPE:
        say(json.dumps(record, ensure_ascii=False))
        return
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
    except OSError as error:
        raise DataError(f'--json {path}: cannot be written: {error.strerror or error}') from error


# ---- pipes -----------------------------------------------------------------------------------------------------------


def _to_pipe(work: _Work, source: Path, say: Callable[..., None]) -> int:
    """One sound to standard output, piece by piece as it is finished."""
    if sys.stdout is None:
        raise AudioFileError('standard output is closed')
    clipped, out = 0, sys.stdout.buffer
    with _opened(work.command, source, say) as sound:
        if source != _PIPE:
            say(
                f'{source}: {sound.rate} Hz, {sound.channels} channels as {work.command.format} on standard output',
                file=sys.stderr,
            )
        for piece in work.pieces(sound.blocks(), sound.rate, live=source == _PIPE):
            data, beyond = encoded(work.sounds(piece)[0], work.command.format)
            clipped += beyond
            out.write(data)
            out.flush()
    if clipped:
        say(
            f'{source}: {clipped} samples were beyond full scale and were clipped; --format f32le holds them',
            file=sys.stderr,
        )
    return 0
