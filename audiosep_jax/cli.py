"""The command `audiosep-jax`. Files, flags and printing; the work is done elsewhere.

Exit codes: 0 done; 1 files and data, also when one of many inputs failed; 2 flags, configuration keys, empty queries.
"""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from audiosep_jax import audio, cli_evaluate
from audiosep_jax.cli_evaluate import Evaluate
from audiosep_jax.errors import AudioFileError, AudioSepError, ConfigError, QueryError, explained
from audiosep_jax.outputs import RESIDUAL, plan_outputs, query_names

if TYPE_CHECKING:
    from audiosep_jax.queries import Embedded, Query
    from audiosep_jax.separate import Separator

_FRONT_END = ('sample_rate', 'window_size', 'hop_size')
_OF_OUR_SIDE = ('preset', *_FRONT_END, 'encoder')
_Checkpoint = Annotated[str | None, tyro.conf.arg(metavar='DIR', help_behavior_hint='(default: official weights)')]
_SUBTYPES: dict[str, audio.Subtype] = {'16': 'PCM_16', '24': 'PCM_24', 'float': 'FLOAT'}


@dataclasses.dataclass(frozen=True)
class Separate:
    """Extract the sounds that you describe from audio files.

    The output has the rate, length and channels of the input. One input and one query may go to a file (-o dog.wav);
    otherwise -o is a folder and gets {stem}__{query}.wav.
    """

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar='IN [IN ...]', name='in')]
    """Audio files: WAV, FLAC, OGG, MP3 and whatever else libsndfile reads; any rate, length and number of channels."""
    query: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT')] = ()
    """What to extract, in words. Repeat the flag for more sounds."""
    like: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract what sounds like this recording (models with a CLAP encoder). Repeatable."""
    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract the sound of what this picture shows (models with a CLIP encoder). Repeatable."""
    vector: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='FILE')] = ()
    """Extract what this embedding in a .npy file stands for. Repeatable."""
    without: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT', name='not')] = ()
    """What must stay out of every extracted sound, in words. Repeatable."""
    blend: bool = False
    """Make one query of all that are given: one sound that is like each of them."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(metavar='W [W ...]')] = ()
    """How much each counts in the blend: first those of --query, then --like, --image, --vector."""
    checkpoint: _Checkpoint = None
    """A training run's folder, one step's folder in it, a converted checkpoint, or a repository of the hub. Without it
    the official weights are fetched and converted once."""
    output: Annotated[Path, tyro.conf.arg(aliases=['-o'], metavar='OUT')] = Path('separated')
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
class Convert:
    """Convert a checkpoint of the original PyTorch code to one of ours, or one of ours to PyTorch.

    The suffix of DST tells the direction: .ckpt, .pt, .pth, .bin and .safetensors are for PyTorch. The way there and
    back is bit-exact for every tensor, used or not (but for those inside objects of Python classes).
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='SRC')]
    """A Lightning .ckpt, a .pt or .pth state dict, a .safetensors, a repository of the hub (organisation/name, or
    organisation/name:FILE), or a checkpoint of ours."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar='DST')]
    """The folder, or the file for PyTorch, to make."""
    preset: Annotated[
        Literal['audiosep-32k', 'dcase2024-16k'] | None,
        tyro.conf.arg(metavar='{audiosep-32k,dcase2024-16k}', help_behavior_hint='(default: audiosep-32k)'),
    ] = None
    """Rate, window and hop, which no such file records: 32000 Hz, 2048, 320; or 16000 Hz, 1024, 160. The window is
    checked against the tensors."""
    sample_rate: Annotated[int | None, tyro.conf.arg(metavar='HZ')] = None
    """Hz, instead of the preset's."""
    window_size: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """Of the STFT in samples, instead of the preset's."""
    hop_size: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """Of the STFT in samples, instead of the preset's."""
    encoder: Annotated[str | None, tyro.conf.arg(metavar='PATH')] = None
    """CLAP weights for a file that holds the separator alone: a file, a folder, or a repository of the hub."""
    force: bool = False
    """Replace DST if it is there."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Say what a checkpoint is: step, encoder, parameter count, configuration."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='DIR')]
    """A training run's folder, one step's folder in it, a converted checkpoint, or a repository of the hub."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default the process's) and returns the exit code."""
    try:
        command = tyro.cli(
            Annotated[Separate, tyro.conf.subcommand('separate')]
            | Annotated[Evaluate, tyro.conf.subcommand('evaluate')]
            | Annotated[Convert, tyro.conf.subcommand('convert')]
            | Annotated[Inspect, tyro.conf.subcommand('inspect')],
            prog='audiosep-jax',
            description='Separate sounds by describing them.',
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except SystemExit as stop:  # --help, or a flag that tyro has explained
        return stop.code if isinstance(stop.code, int) else 2
    run = {Separate: _separate, Evaluate: _evaluate, Convert: _convert, Inspect: _inspect}[type(command)]
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

    queries = _queries(command)
    names = [*query_names(list(queries)), *([RESIDUAL] if command.residual else [])]
    plans = plan_outputs(
        command.output, command.inputs, names, num_queries=len(queries), subtype=_SUBTYPES[command.bits]
    )
    separator = _load(command.checkpoint)
    embedded = separator.prepare(list(queries.values()))  # now: an unusable query concerns no input in particular

    failed = 0
    with progress_bar('separating') as show:
        for done, (source, outputs) in enumerate(plans.items()):
            show(done, len(plans))
            try:
                _separate_file(separator, source, outputs, embedded, command)
            except AudioSepError as error:
                failed += 1
                message = str(error)
                _complain(message if str(source) in message else f'{source}: {message}')
    if failed and len(plans) > 1:
        _complain(f'{failed} of {len(plans)} inputs failed')
    return 1 if failed else 0


def _separate_file(
    separator: 'Separator', source: Path, outputs: list[Path], embedded: 'Embedded', command: Separate
) -> None:
    """Writes all outputs of one input, or none of them."""
    subtype = _SUBTYPES[command.bits]
    existing = [path for path in outputs if path.exists()]
    if existing and not command.force:
        raise AudioFileError(f'{source}: {existing[0]} exists; use --force to replace it, or another -o')
    mixture, rate = audio.read_audio(source)
    for path in outputs:
        audio.check_format(path, subtype, channels=len(mixture), sample_rate=rate)
    separation = separator.separate(mixture, embedded, sample_rate=rate, per_channel=command.per_channel)
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


def _queries(command: Separate) -> dict[str, 'Query']:
    """What the flags ask for: name -> query."""
    from audiosep_jax.queries import Query

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


# ---- evaluate --------------------------------------------------------------------------------------------------------


def _evaluate(command: Evaluate) -> int:
    def say(text: str, *, error: bool = False) -> None:
        _say(text, file=sys.stderr if error else None)

    try:
        return cli_evaluate.run(command, load=_load, say=say, complain=_complain)
    except KeyboardInterrupt:
        _complain('interrupted; the same command continues')
        return 130


# ---- convert ---------------------------------------------------------------------------------------------------------


def _convert(command: Convert) -> int:
    from audiosep_jax.tensor_files import SUFFIXES

    _quieten()
    if command.destination.suffix in SUFFIXES:
        from audiosep_jax.convert import to_torch
        from audiosep_jax.published import find_checkpoint

        given = [f'--{name.replace("_", "-")}' for name in _OF_OUR_SIDE if getattr(command, name) is not None]
        if given:
            raise ConfigError(f'{given[0]} is for the way to our checkpoints: leave it away')
        count, notes = to_torch(find_checkpoint(command.source), command.destination, force=command.force)
        _say(f'{command.destination}: {count} tensors')
        for note in notes:
            _say(f'audiosep-jax: note: {note}', file=sys.stderr)
        return 0
    from audiosep_jax.convert import PRESETS, from_torch

    if (Path(command.source) / 'params').is_dir() or (Path(command.source) / 'checkpoints').is_dir():
        names = ', '.join(SUFFIXES)
        raise ConfigError(f'{command.source} is a checkpoint of ours already: give DST a suffix of PyTorch ({names})')
    changed = {name: getattr(command, name) for name in _FRONT_END if getattr(command, name) is not None}
    front_end = dataclasses.replace(PRESETS[command.preset or 'audiosep-32k'], **changed)
    converted = from_torch(
        command.source, command.destination, front_end=front_end, encoder=command.encoder, force=command.force
    )
    model = converted.model
    _say(f'{converted.path}: separator at {model.sample_rate} Hz, window {model.window_size}, hop {model.hop_size}')
    if converted.encoder is not None:
        _say(f'query encoder: {converted.encoder["name"]}, {converted.encoder["embedding_size"]} numbers')
    _say(f'kept for the way back: {converted.num_kept} tensors (not used here, or of another precision)')
    for note in converted.notes:
        _say(f'audiosep-jax: note: {note}', file=sys.stderr)
    return 0


# ---- inspect ---------------------------------------------------------------------------------------------------------


def _inspect(command: Inspect) -> int:
    import jax

    from audiosep_jax.checkpoint import load_for_inference
    from audiosep_jax.published import find_checkpoint

    _quieten()
    checkpoint = load_for_inference(find_checkpoint(command.checkpoint))
    params = checkpoint.variables['params']
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    _say(f'path        {checkpoint.path}')
    _say(f'step        {checkpoint.step}')
    encoder = checkpoint.encoder or {'none': 'only embeddings can be asked'}
    _say(f'encoder     {", ".join(f"{key} {value}" for key, value in encoder.items())}')
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


def _load(path: str | None, **options: float) -> 'Separator':
    from audiosep_jax.compilation import enable_compilation_cache
    from audiosep_jax.separate import load

    _quieten()
    enable_compilation_cache()
    return load(path, **options)


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
