"""What `--dtype bfloat16` costs and brings: its error against float32, and its speed.

    python benchmarks/dtype.py                            # the article's network, random weights
    python benchmarks/dtype.py --checkpoint quickstart    # a trained network, on the sounds beside it
    python benchmarks/dtype.py --checkpoint RUN --sounds street.wav talk.wav

The signal-to-noise ratio is that of the bfloat16 targets against the float32 ones, in dB, over all sounds and queries.
Of random weights it says little about a trained network, whose masks are near 0 or 1, so both are worth measuring. The
speed is in seconds of computing for each second of sound, after compilation, the best of three runs.
"""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.errors import reported
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.separation.loading import load
from audiosep_jax.separation.separator import Separator
from audiosep_jax.storage.cache import enable_compilation_cache

SECONDS = 5.0
RUNS = 3
DTYPES = ('float32', 'bfloat16')


def main(
    checkpoint: str | None = None,
    sounds: tuple[Path, ...] = (),
    queries: tuple[str, ...] = (),
    seconds: float = SECONDS,
    seed: int = 0,
) -> None:
    """Prints the table.

    Args:
        checkpoint: a trained network; by default random weights.
        sounds: recordings; by default the examples in the checkpoint's folder, or noise.
        queries: what to ask of each recording; by default the texts beside the examples, or random embeddings.
        seconds: length of the noise.
        seed: of the weights, the noise and the embeddings.
    """
    enable_compilation_cache()
    if checkpoint is not None and not sounds:
        sounds = tuple(sorted(Path(checkpoint, 'examples').glob('*.wav')))
        queries = queries or tuple(path.with_suffix('.txt').read_text('utf-8').strip() for path in sounds)
    separators = {dtype: separator_of(checkpoint, dtype, seed) for dtype in DTYPES}
    first = separators['float32']
    rng = np.random.default_rng(seed)
    rate, size = first.config.sample_rate, first.config.condition_size
    noise = 0.1 * rng.standard_normal((1, round(seconds * rate))).astype(np.float32)
    recordings = [read_audio(path) for path in sounds] or [(noise, rate)]
    vectors = rng.standard_normal((2, size))
    asked = list(queries) or (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    outputs, times = {}, {}
    for dtype, separator in separators.items():
        prepared = separator.prepare(asked)
        run = functools.partial(separate, separator, recordings, prepared)
        outputs[dtype] = run()
        times[dtype] = min(timed(run) for _ in range(RUNS))
    duration = sum(audio.shape[-1] / rate for audio, rate in recordings) * len(asked)
    table = Table(title=f'{checkpoint or "random weights"} on {jax.devices()[0].device_kind}')
    for column in ('', 'seconds per second and query', 'SNR against float32, dB'):
        table.add_column(column, justify='right')
    for dtype in DTYPES:
        table.add_row(dtype, f'{times[dtype] / duration:.4f}', snr(outputs['float32'], outputs[dtype]))
    Console().print(table)


def separator_of(checkpoint: str | None, dtype: str, seed: int) -> Separator:
    """Returns the network of a checkpoint, or the article's with random weights."""
    if checkpoint is not None:
        return load(checkpoint, dtype=dtype)
    config = ModelConfig()
    variables = init_variables(config, jax.random.key(seed))
    return Separator(dataclasses.replace(config, dtype=dtype), variables)


def separate(separator: Separator, recordings: list, prepared) -> list[np.ndarray]:
    """Returns the targets of every recording."""
    return [separator.separate(audio, prepared, sample_rate=rate).targets for audio, rate in recordings]


def timed(run) -> float:
    """Returns how many seconds a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def snr(exact: list[np.ndarray], rough: list[np.ndarray]) -> str:
    """Returns the energy of the exact targets over that of the error, in dB."""
    error = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(exact, rough, strict=True))
    energy = sum(float(np.square(a, dtype=np.float64).sum()) for a in exact)
    return '' if not error else f'{10 * np.log10(energy / error):.1f}'


if __name__ == '__main__':
    with reported('dtype'):
        tyro.cli(main)
