"""The command `audiosep-jax convert`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from audiosep_jax.cli import terminal
from audiosep_jax.errors import ConfigError

_FRONT_END = ('sample_rate', 'window_size', 'hop_size')
_ONLY_FROM_TORCH = ('preset', *_FRONT_END, 'encoder')  # flags without a meaning in the other direction


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a checkpoint of the original PyTorch code to the format of this project, or back.

    The suffix of DST decides the direction: .ckpt, .pt, .pth, .bin and .safetensors mean PyTorch. A round trip restores
    every tensor bit for bit, used or not, except those inside objects of Python classes.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='SRC')]
    """A .ckpt, .pt, .pth or .safetensors file, a name of `audiosep-jax models`, a repository on the hub (org/name,
    org/name:FILE), or a checkpoint."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar='DST')]
    """The checkpoint folder or the PyTorch file to write."""
    preset: Annotated[
        Literal['audiosep-32k', 'dcase2024-16k'] | None,
        tyro.conf.arg(
            metavar='{audiosep-32k,dcase2024-16k}', help_behavior_hint="(default: audiosep-32k, or the name's)"
        ),
    ] = None
    """Sample rate, window and hop, which PyTorch files do not record: 32000 Hz, 2048, 320; or 16000 Hz, 1024, 160."""
    sample_rate: Annotated[int | None, tyro.conf.arg(metavar='HZ')] = None
    """Sample rate in Hz, instead of the preset's."""
    window_size: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """STFT window in samples, instead of the preset's."""
    hop_size: Annotated[int | None, tyro.conf.arg(metavar='N')] = None
    """STFT hop in samples, instead of the preset's."""
    encoder: Annotated[str | None, tyro.conf.arg(metavar='PATH')] = None
    """Query encoder for a file with only the separator: `words`, `wordllama`, CLAP weights (file, folder, org/name)."""
    ignore_unknown: bool = False
    """Go past tensors that are neither the separator's nor CLAP's, such as EMA copies; keep them for the way back."""
    force: bool = False
    """Replace DST if it exists."""


def run(command: Convert) -> int:
    """Converts in the direction that DST asks for; returns the exit code.

    Raises:
        ConfigError: flags that do not fit the direction.
        CheckpointError, DownloadError: SRC cannot be read, or DST cannot be written.
    """
    from audiosep_jax.weights.tensor_files import SUFFIXES

    terminal.silence_orbax()
    if command.destination.suffix in SUFFIXES:
        from audiosep_jax.checkpoints.convert import to_torch
        from audiosep_jax.checkpoints.find import open_checkpoint

        given = [f'--{name.replace("_", "-")}' for name in _ONLY_FROM_TORCH if getattr(command, name) is not None]
        given += ['--ignore-unknown'] * command.ignore_unknown
        if given:
            raise ConfigError(f'{given[0]} only applies to conversions from PyTorch: omit it')
        found = open_checkpoint(command.source)
        count, notes = to_torch(found, command.destination, force=command.force)
        if found.equalizer is not None:
            notes = [*notes, 'the equalizer was left out: PyTorch gets the network alone']
        terminal.say(f'{command.destination}: {count} tensors')
        for note in notes:
            terminal.note(note)
        return 0
    from audiosep_jax.checkpoints.convert import PRESETS, from_torch
    from audiosep_jax.checkpoints.find import fetch_published, published

    if (Path(command.source) / 'params').is_dir() or (Path(command.source) / 'checkpoints').is_dir():
        names = ', '.join(SUFFIXES)
        raise ConfigError(
            f'{command.source} already is a checkpoint of this project: give DST a PyTorch suffix ({names})'
        )
    changed = {name: getattr(command, name) for name in _FRONT_END if getattr(command, name) is not None}
    named = published(command.source)
    preset = command.preset or ('audiosep-32k' if named is None else named.preset)
    place = 'a path of your choice, and convert that'
    converted = from_torch(
        command.source if named is None else fetch_published(named, place=place),
        command.destination,
        front_end=dataclasses.replace(PRESETS[preset], **changed),
        encoder=command.encoder,
        default_encoder=None if named is None else named.clap.address,
        force=command.force,
        ignore_unknown=command.ignore_unknown,
    )
    model = converted.model
    terminal.say(
        f'{converted.path}: separator at {model.sample_rate} Hz, window {model.window_size}, hop {model.hop_size}'
    )
    if converted.encoder is not None:
        terminal.say(f'query encoder: {converted.encoder["name"]}, {converted.encoder["embedding_size"]} numbers')
    terminal.say(f'kept for the way back: {converted.num_kept} tensors (not used here, or of another precision)')
    for note in converted.notes:
        terminal.note(note)
    return 0
