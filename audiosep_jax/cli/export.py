"""The command `audiosep-jax export`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from audiosep_jax.cli import terminal
from audiosep_jax.cli.flags import CheckpointArgument


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a checkpoint for other runtimes: ONNX graphs, and StableHLO for programs with JAX alone.

    mask.onnx is the network, separate.onnx the whole from samples to samples; the same with _pieces is for recordings
    of any length. text.onnx is the text encoder. docs/export.md shows how to run them.
    """

    checkpoint: CheckpointArgument
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar='OUT')]
    """The folder to write, which must not exist or be empty."""
    # Written out, because `export.folder` would import JAX.
    format: Literal['all', 'onnx', 'stablehlo'] = 'all'
    """Which programs to write."""
    dtype: Literal['float32', 'float16'] = 'float32'
    """Type of the network in the ONNX graphs; their STFT and the text encoder are always float32."""
    external_weights: bool = False
    """Put the weights of all ONNX graphs into one file beside them, weights.bin, instead of into each."""
    query: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar='TEXT')] = ()
    """Write the embedding of a text to queries.json, for programs without the text encoder."""


def run(command: Export) -> int:
    """Exports, and prints the files; returns the exit code. Raises as `export.folder.export` does."""
    from audiosep_jax.export.folder import export

    terminal.silence_orbax()
    exported = export(
        command.checkpoint,
        command.out,
        format=command.format,
        dtype=command.dtype,
        external_weights=command.external_weights,
        queries=command.query,
    )
    for path in exported.paths:
        terminal.say(f'{path}  {path.stat().st_size:,} bytes')
    for note in exported.notes:
        terminal.note(note)
    return 0
