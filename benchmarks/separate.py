"""What separating costs: seconds per second of sound and peak memory, by length and number of queries; and what the way
a long recording is cut does to the result.

    python benchmarks/separate.py                                  # the article's network, random weights
    python benchmarks/separate.py --size small
    python benchmarks/separate.py --checkpoint quickstart --lengths 60 600 --queries 1

Each row is a separate process, whose peak memory the system reports (resident set, with Python, JAX and the weights;
query encoders are not in it: queries are embeddings). It reads a stereo WAV at 44.1 kHz and writes one WAV per query.
Compilation is not in the times: the same work is done before on a recording just long enough to need all of it.

`whole` is the network on the whole recording at once; `pieces` of so many frames is what Separator does with long
recordings; `live` is its `stream`; `windows` is what others do, windows of 10 s cross-faded over 2 s, each a recording
of its own. SNR: of the result against `whole`, dB.
"""

import dataclasses
import itertools
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.errors import reported

RATE = 44100
WINDOW, OVERLAP = 10.0, 2.0  # seconds
SIZES = {
    'article': {},
    'small': dict(sample_rate=16000, window_size=1024, hop_size=256, widths=(8, 16, 32, 64, 64, 64)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One row. `frames` of a piece; None: by `method` alone."""

    method: str
    seconds: float
    queries: int
    frames: int | None = None

    def __str__(self) -> str:
        return self.method if self.frames is None else f'{self.method} of {self.frames} frames'


def main(
    checkpoint: str | None = None,
    size: Literal['article', 'small'] = 'article',
    lengths: tuple[float, ...] = (5, 10, 60, 180),
    queries: tuple[int, ...] = (1, 3),
    methods: tuple[str, ...] = ('default', 'live', 'whole', 'windows', 'pieces'),
    compared: float = 60,
    frames: tuple[int, ...] = (32, 64, 128, 256),
    json_file: Path | None = None,
) -> None:
    """Prints the tables.

    Args:
        checkpoint: a trained network; by default random weights.
        size: of the network of random weights: the article's, or that of the README's small run at 16 kHz.
        lengths: of the recordings, seconds.
        queries: how many are asked at once.
        methods: of those above; default is what Separator does.
        compared: seconds of the recording on which all methods but default are compared with each other, one query.
        frames: sizes of pieces to compare.
        json_file: where to write the figures as well.
    """
    config = SIZES[size]
    cases = [Case('default', n, q) for n, q in itertools.product(lengths, queries) if 'default' in methods]
    for method in methods:
        sizes = frames if method == 'pieces' else (None,)
        cases += [Case(method, compared, 1, size) for size in sizes if method != 'default']
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            figures.append(measured(case, checkpoint or config, Path(folder)))
            print(json.dumps(figures[-1]), flush=True)
        whole = Path(folder) / 'whole.npy'
        if whole.exists():
            add_snr(figures, Path(folder))
    Console().print(table(figures))
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + '\n')


def measured(case: Case, network: str | dict, folder: Path) -> dict:
    """Runs a case in a separate process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(work, case, network, folder).result()


def work(case: Case, network: str | dict, folder: Path) -> dict:
    """In the process: writes the recording, separates it, tells how long that took and how much memory."""
    separator = load(network, case)
    embeddings = np.random.default_rng(1).standard_normal((case.queries, separator.config.condition_size))
    prepared = separator.prepare((embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32))
    warm_up = case.seconds if case.method == 'whole' else min(case.seconds, 14)
    source = folder / 'mixture.wav'
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seconds in (warm_up, case.seconds):
        write_recording(source, seconds)
        started, worked = time.perf_counter(), time.process_time()
        run(separator, source, prepared, case, folder)
        elapsed, worked = time.perf_counter() - started, time.process_time() - worked
    if case.method != 'default':
        keep(case, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **dataclasses.asdict(case),
        'name': str(case),
        'seconds_per_second': elapsed / case.seconds,
        'cpu_seconds_per_second': worked / case.seconds,
        'peak_mb': peak / 1024,
        'before_mb': before / 1024,
        'latency': separator.latency if case.method == 'live' else None,
        'cpus': len(os.sched_getaffinity(0)),
    }


def load(network: str | dict, case: Case):
    """The separator of a checkpoint, or one of random weights of this configuration."""
    import jax

    from audiosep_jax.models.audiosep import ModelConfig, init_variables
    from audiosep_jax.separation import separator as separate

    if case.frames:
        separate._FRAMES_AT_ONCE = case.frames
    most = {'whole': 1e9, 'windows': 1e9, 'pieces': 0.0}.get(case.method)
    if isinstance(network, str):
        return separate.load(network, max_whole_seconds=most)
    config = ModelConfig(**network)
    rng = np.random.default_rng(0)

    def weights(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.standard_normal(shape.shape, np.float32) * 0.02 + (shape.ndim == 1)

    shapes = jax.eval_shape(lambda key: init_variables(config, key), jax.random.key(0))
    return separate.Separator(config, jax.tree.map(weights, shapes), max_whole_seconds=most)


def write_recording(path: Path, seconds: float) -> None:
    """Tones that come and go over noise, stereo, in blocks."""
    rng = np.random.default_rng(2)
    with soundfile.SoundFile(path, 'w', RATE, 2, 'PCM_16') as file:
        for start in range(0, round(seconds * RATE), RATE):
            t = (start + np.arange(min(RATE, round(seconds * RATE) - start))) / RATE
            tone = 0.2 * np.sin(2 * np.pi * 700 * t + 40 * np.sin(np.pi * t)) * (np.sin(2 * np.pi * 0.3 * t) > 0)
            file.write(np.stack([tone, 0.7 * tone], 1) + 0.05 * rng.standard_normal((len(t), 2)))


def run(separator, source: Path, prepared, case: Case, folder: Path) -> None:
    from audiosep_jax.audio.reading import open_sound
    from audiosep_jax.audio.writing import written_together

    outputs = [folder / f'target{i}.wav' for i in range(case.queries)]
    with (
        open_sound(source) as sound,
        written_together(outputs, sound.rate, channels=sound.channels, subtype='FLOAT') as files,
    ):
        if case.method == 'windows':
            pieces = windows(separator, sound, prepared)
        else:
            live = case.method == 'live'
            stream = separator.stream(sound.blocks(), prepared, sample_rate=sound.rate, live=live)
            pieces = (piece.targets for piece in stream)
        for targets in pieces:
            files.write(list(targets))
        files.finish()


def windows(separator, sound, prepared) -> Iterator[np.ndarray]:
    """[Q, channels, m] of windows that are cross-faded."""
    audio = np.concatenate(list(sound.blocks()), axis=-1)
    window, overlap = round(WINDOW * sound.rate), round(OVERLAP * sound.rate)
    fade = ((np.arange(overlap) + 0.5) / overlap).astype(np.float32)
    tail = None
    for start in range(0, max(audio.shape[-1] - overlap, 1), window - overlap):
        target = separator.separate(audio[:, start : start + window], prepared, sample_rate=sound.rate).targets
        if tail is not None:
            target[..., :overlap] = target[..., :overlap] * fade + tail * fade[::-1]
        last = start + window >= audio.shape[-1]
        tail = target[..., -overlap:]
        yield target if last else target[..., :-overlap]


def keep(case: Case, folder: Path) -> None:
    """The first target, for the comparison."""
    np.save(folder / f'{str(case).replace(" ", "_")}.npy', soundfile.read(folder / 'target0.wav', dtype='float32')[0])


def add_snr(figures: list[dict], folder: Path) -> None:
    whole = np.load(folder / 'whole.npy').astype(np.float64)
    for row in figures:
        path = folder / f'{row["name"].replace(" ", "_")}.npy'
        if row['name'] != 'whole' and path.exists():
            error = np.sum((np.load(path) - whole) ** 2)
            row['snr'] = float(10 * np.log10(np.sum(whole**2) / max(error, 1e-30)))


def table(figures: list[dict]) -> Table:
    result = Table()
    for column in ('', 'seconds', 'queries', 's per s', 'CPU s per s', 'peak MB', 'SNR dB'):
        result.add_column(column, justify='right' if column else 'left')
    for row in figures:
        name = row['name'] + (f' (latency {row["latency"]:.2f} s)' if row['latency'] else '')
        result.add_row(
            name,
            f'{row["seconds"]:g}',
            str(row['queries']),
            f'{row["seconds_per_second"]:.3f}',
            f'{row["cpu_seconds_per_second"]:.3f}',
            f'{row["peak_mb"]:.0f}',
            f'{row["snr"]:.0f}' if 'snr' in row else '',
        )
    return result


if __name__ == '__main__':
    with reported('separate'):
        tyro.cli(main)
