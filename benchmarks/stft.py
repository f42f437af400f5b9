"""The STFT of five seconds at 32 kHz (window 2048, hop 320): ours beside two other formulations, medians in ms.

python benchmarks/stft.py
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from audiosep_jax.stft import hann_window, istft, reflect_pad, stft

WINDOW, HOP, SAMPLES = 2048, 320, 160_000


def by_gather(x):
    """Frames by an array of indices, then rfft."""
    padded = reflect_pad(x, WINDOW)
    index = np.arange(1 + SAMPLES // HOP)[:, None] * HOP + np.arange(WINDOW)
    return jnp.fft.rfft(padded[..., index] * hann_window(WINDOW))


def by_matmul(x):
    """Frames by an array of indices, then the DFT as a matrix product."""
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


def main() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, SAMPLES)), jnp.float32)
    ours = jax.jit(lambda x: stft(x, WINDOW, HOP))
    others = {'gather + rfft': jax.jit(by_gather), 'gather + DFT matrix': jax.jit(by_matmul)}
    spectrum = ours(x)
    table = Table('formulation', 'ms', 'greatest difference')
    table.add_row('stft (blocks of a hop + rfft)', f'{milliseconds(ours, x):.1f}', '')
    for name, function in others.items():
        error = float(jnp.abs(function(x) - spectrum).max() / jnp.abs(spectrum).max())
        table.add_row(name, f'{milliseconds(function, x):.1f}', f'{error:.0e}')
    inverse = jax.jit(lambda s: istft(s, WINDOW, HOP, length=SAMPLES))
    error = float(jnp.abs(inverse(spectrum) - x).max() / jnp.abs(x).max())
    table.add_row('istft', f'{milliseconds(inverse, spectrum):.1f}', f'{error:.0e}')
    Console().print(jax.devices()[0].device_kind, table)


if __name__ == '__main__':
    main()
