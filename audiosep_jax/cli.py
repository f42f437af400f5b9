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

from audiosep_jax import __version__, cli_evaluate, cli_separate
from audiosep_jax.cli_evaluate import Evaluate
from audiosep_jax.cli_push import Push, run_push
from audiosep_jax.cli_separate import Separate
from audiosep_jax.cli_serve import Serve, serve
from audiosep_jax.errors import ConfigError, explained

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator

_FRONT_END = ('sample_rate', 'window_size', 'hop_size')
_OF_OUR_SIDE = ('preset', *_FRONT_END, 'encoder')


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a checkpoint of the original PyTorch code to one of ours, or one of ours to PyTorch.

    The suffix of DST tells the direction: .ckpt, .pt, .pth, .bin and .safetensors are for PyTorch. The way there and
    back is bit-exact for every tensor, used or not (but for those inside objects of Python classes).
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='SRC')]
    """A .ckpt, .pt, .pth or .safetensors, a repository of the hub (org/name, org/name:FILE), a checkpoint of ours."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar='DST')]
    """The folder, or the file for PyTorch, to make."""
    preset: Annotated[
        Literal['audiosep-32k', 'dcase2024-16k'] | None,
        tyro.conf.arg(metavar='{audiosep-32k,dcase2024-16k}', help_behavior_hint='(default: audiosep-32k)'),
    ] = None
    """Rate, window and hop, which no such file records: 32000 Hz, 2048, 320; or 16000 Hz, 1024, 160."""
    sample_rate: Annotated[int | None, tyro.conf.arg(metavar='HZ')] = None
    """Hz, instead of the preset's."""
    window_size: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """Of the STFT in samples, instead of the preset's."""
    hop_size: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """Of the STFT in samples, instead of the preset's."""
    encoder: Annotated[str | None, tyro.conf.arg(metavar='PATH')] = None
    """For a file of the separator alone, its query encoder: `words`, or CLAP weights (a file, a folder, org/name)."""
    force: bool = False
    """Replace DST if it is there."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Say what a checkpoint is: step, encoder, parameter count, configuration."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='DIR')]
    """A training run's folder, one step's folder in it, a converted checkpoint, or a repository of the hub."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (by default the process's) and returns the exit code."""
    if (sys.argv[1:] if argv is None else list(argv)) == ['--version']:
        _say(f'audiosep-jax {__version__}')
        return 0
    try:
        command = tyro.cli(
            Annotated[Separate, tyro.conf.subcommand('separate')]
            | Annotated[Evaluate, tyro.conf.subcommand('evaluate')]
            | Annotated[Convert, tyro.conf.subcommand('convert')]
            | Annotated[Inspect, tyro.conf.subcommand('inspect')]
            | Annotated[Push, tyro.conf.subcommand('push')]
            | Annotated[Serve, tyro.conf.subcommand('serve')],
            prog='audiosep-jax',
            description='Separate sounds by describing them. --version says which version this is.',
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    except SystemExit as stop:  # --help, or a flag that tyro has explained
        return stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:
        return _unread()
    run = {
        Separate: _separate,
        Evaluate: _evaluate,
        Convert: _convert,
        Inspect: _inspect,
        Push: _push,
        Serve: _serve,
    }[type(command)]
    try:
        with _terminable():
            return run(command)
    except KeyboardInterrupt:
        _complain('interrupted; the output being written was not kept')
        return 130
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        explanation = explained(error)
        if explanation is None:
            raise
        _complain(explanation[0])
        return explanation[1]


def _unread() -> int:
    """`| head`: nobody reads on. Without this Python complains again while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


# ---- separate --------------------------------------------------------------------------------------------------------


def _separate(command: Separate) -> int:
    return cli_separate.run(command, load=_load, say=_say, complain=_complain)


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
    from audiosep_jax.weights.tensor_files import SUFFIXES

    _quieten()
    if command.destination.suffix in SUFFIXES:
        from audiosep_jax.checkpoints.convert import to_torch
        from audiosep_jax.checkpoints.find import find_checkpoint

        given = [f'--{name.replace("_", "-")}' for name in _OF_OUR_SIDE if getattr(command, name) is not None]
        if given:
            raise ConfigError(f'{given[0]} is for the way to our checkpoints: leave it away')
        count, notes = to_torch(find_checkpoint(command.source), command.destination, force=command.force)
        _say(f'{command.destination}: {count} tensors')
        for note in notes:
            _say(f'audiosep-jax: note: {note}', file=sys.stderr)
        return 0
    from audiosep_jax.checkpoints.convert import PRESETS, from_torch

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

    from audiosep_jax.checkpoints.find import find_checkpoint
    from audiosep_jax.checkpoints.run_folder import load_for_inference

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


# ---- push and serve --------------------------------------------------------------------------------------------------


def _push(command: Push) -> int:
    _quieten()
    return run_push(command, _say)


def _serve(command: Serve) -> int:
    return serve(command, _load)


# ---- the terminal ----------------------------------------------------------------------------------------------------


def _load(path: str | None, **options: float) -> 'Separator':
    from audiosep_jax.separation.separator import load
    from audiosep_jax.storage.cache import enable_compilation_cache

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
