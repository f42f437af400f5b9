"""The command `audiosep-jax convert`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from audiosep_jax.cli.terminal import _quieten, _say
from audiosep_jax.errors import ConfigError

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


def _convert(command: Convert) -> int:
    from audiosep_jax.weights.tensor_files import SUFFIXES

    _quieten()
    if command.destination.suffix in SUFFIXES:
        from audiosep_jax.checkpoints.convert import to_torch
        from audiosep_jax.checkpoints.find import open_checkpoint

        given = [f'--{name.replace("_", "-")}' for name in _OF_OUR_SIDE if getattr(command, name) is not None]
        if given:
            raise ConfigError(f'{given[0]} is for the way to our checkpoints: leave it away')
        count, notes = to_torch(open_checkpoint(command.source), command.destination, force=command.force)
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
