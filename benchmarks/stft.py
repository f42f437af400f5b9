"""The STFT of five seconds at 32 kHz (window 2048, hop 320): ours beside two other formulations, medians in ms.

python benchmarks/stft.py
"""

import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.audio.stft import hann_window, istft, reflect_pad, stft

WINDOW, HOP, SAMPLES = 2048, 320, 160_000


def by_blocks(x):
    """Frames as concatenated slices of a view in blocks of one hop, then rfft."""
    frames, pieces = 1 + SAMPLES // HOP, -(-WINDOW // HOP)
    padded = jnp.pad(reflect_pad(x, WINDOW), ((0, 0), (0, WINDOW)))
    blocks = padded[:, : (frames + pieces - 1) * HOP].reshape(len(x), frames + pieces - 1, HOP)
    cut = [blocks[:, i : i + frames, : WINDOW - i * HOP] for i in range(pieces)]
    return jnp.fft.rfft(jnp.concatenate(cut, axis=-1) * hann_window(WINDOW))


def by_matmul(x):
    """Frames by an array of indices, then the DFT as a matrix product, as the original computes it."""
    padded = reflect_pad(x, WINDOW)
    index = np.arange(1 + SAMPLES // HOP)[:, None] * HOP + np.arange(WINDOW)
    angles = -2 * np.pi * np.outer(np.arange(WINDOW), np.arange(WINDOW // 2 + 1)) / WINDOW
    frames = padded[..., index] * hann_window(WINDOW)
    return jax.lax.complex(frames @ np.cos(angles).astype(np.float32), frames @ np.sin(angles).astype(np.float32))


def milliseconds(function, argument, repeats=20) -> float:
    function(argument).block_until_ready()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function(argument).block_until_ready()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main(json_file: Path | None = None) -> None:
    """Prints the table.

    Args:
        json_file: where to write the figures as well.
    """
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, SAMPLES)), jnp.float32)
    ours = jax.jit(lambda x: stft(x, WINDOW, HOP))
    others = {'blocks of a hop + rfft': jax.jit(by_blocks), 'gather + DFT matrix': jax.jit(by_matmul)}
    spectrum = ours(x)
    inverse = jax.jit(lambda s: istft(s, WINDOW, HOP, length=SAMPLES))
    milliseconds(ours, x)  # the first measurement of a process is slow, whatever it measures
    rows = [('stft (slices + rfft)', milliseconds(ours, x), 0.0)]
    for name, function in others.items():
        rows.append((name, milliseconds(function, x), difference(function(x), spectrum)))
    rows.append(('istft', milliseconds(inverse, spectrum), difference(inverse(spectrum), x)))

    table = Table('formulation', 'ms', 'greatest difference')
    for name, time_taken, error in rows:
        table.add_row(name, f'{time_taken:.1f}', f'{error:.0e}')
    Console().print(jax.devices()[0].device_kind, table)
    if json_file:
        figures = [dict(zip(('formulation', 'ms', 'difference'), row, strict=True)) for row in rows]
        json_file.write_text(json.dumps(figures, indent=2) + '\n')


def difference(actual, expected) -> float:
    """The greatest difference, as a share of the greatest value."""
    return float(jnp.abs(actual - expected).max() / jnp.abs(expected).max())


if __name__ == '__main__':
    tyro.cli(main)
