"""What an exported checkpoint costs and how exact it is: ONNX Runtime beside this project, in one run.

    python benchmarks/export.py                                    # the article's network, random weights
    python benchmarks/export.py --checkpoint quickstart --seconds 8

Both separate the same noise on the same CPUs with one query, whole. They take turns, and the fastest of each counts.
Compilation and the loading of graphs are not in the times. Error: of a target against the separator's, relative to its
largest sample, and as a ratio of powers in dB.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.export.graph import save
from audiosep_jax.export.network import MaskNetwork
from audiosep_jax.export.waveform import SeparationGraph
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.separation.separator import Separator


def main(
    checkpoint: str | None = None,
    seconds: float = 5.0,
    repeats: int = 3,
    dtypes: tuple[str, ...] = ('float32', 'float16'),
) -> None:
    """Prints a table.

    Args:
        checkpoint: what to measure; by default the article's network with random weights.
        seconds: length of the sound.
        repeats: how often each separates it; the fastest counts.
        dtypes: of the exported networks.
    """
    config, variables, level = _loaded(checkpoint)
    rng = np.random.default_rng(0)
    mixture = (0.1 * rng.standard_normal((1, round(seconds * config.sample_rate)))).astype(np.float32)
    embedding = rng.standard_normal((1, config.condition_size)).astype(np.float32)
    embedding /= np.linalg.norm(embedding)
    separator = Separator(config, variables, None, max_whole_seconds=seconds, trained_level=level)
    ways: dict[str, Callable[[], np.ndarray]] = {
        'this project': lambda: separator.separate(mixture, embedding, sample_rate=config.sample_rate).targets[0]
    }
    sizes = {'this project': 0}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in dtypes:
            path = Path(folder) / f'{dtype}.onnx'
            save(SeparationGraph(MaskNetwork.fold(config, variables, dtype), level).whole().model({}), path)
            session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
            name = f'ONNX Runtime, {dtype}'
            inputs = {'mixture': mixture[None], 'embedding': embedding}
            ways[name] = lambda session=session, inputs=inputs: session.run(None, inputs)[0][0]
            sizes[name] = path.stat().st_size
        targets = {name: way() for name, way in ways.items()}
        times = {name: float('inf') for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name] = min(times[name], time.perf_counter() - start)
    _print(targets, times, sizes, seconds)


def _loaded(checkpoint: str | None) -> tuple[ModelConfig, dict, Level | None]:
    if checkpoint is not None:
        found = open_checkpoint(checkpoint)
        return found.model, found.variables, found.level
    config = ModelConfig()
    return config, jax.device_get(init_variables(config, jax.random.key(0))), None


def _print(targets: dict[str, np.ndarray], times: dict[str, float], sizes: dict[str, int], seconds: float) -> None:
    table = Table('', 's per s of sound', 'of ours', 'largest error', 'error', 'file')
    wanted, ours = targets['this project'], times['this project']
    for name, target in targets.items():
        error = target - wanted
        decibels = 10 * np.log10(np.sum(error**2) / np.sum(wanted**2)) if error.any() else -np.inf
        row = [name, f'{times[name] / seconds:.2f}', f'{times[name] / ours:.2f}']
        row += [
            f'{np.abs(error).max() / np.abs(wanted).max():.1e}',
            f'{decibels:.0f} dB',
            f'{sizes[name] / 1e6:.0f} MB',
        ]
        table.add_row(*row)
    Console().print(table)


if __name__ == '__main__':
    tyro.cli(main)
