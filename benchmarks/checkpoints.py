"""Measures how much a checkpoint of the full-size network slows down the run that writes it.

    python benchmarks/checkpoints.py --segment-seconds 0.5 --batch-size 1

Runs stretches of steps of the real program, alternately without and with an asynchronous save. The cost of the save is
the additional time of a stretch with one; its blocking part is the time inside `save`. The last column is the cost's
share of a run with one save in 5,000 steps of `--step-seconds`, which is a step's time on an accelerator.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.checkpoints.checkpoint import describe
from audiosep_jax.data.batches import DataConfig
from audiosep_jax.parallel.mesh import make_mesh, put_batch
from audiosep_jax.training.checkpointer import Checkpointer
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.train_step import make_program


def main(
    segment_seconds: float = 0.5,
    batch_size: int = 2,
    steps: int = 6,
    repeats: int = 3,
    step_seconds: float = 0.3,
    json_file: Path | None = None,
) -> None:
    """Times a training loop with and without a save.

    Args:
        segment_seconds: the length of the segments, short enough for a CPU.
        batch_size: the number of segments in a batch, small enough for a CPU.
        steps: the number of steps in a stretch; the save follows the first.
        repeats: the number of stretches of each kind.
        step_seconds: the time of a step on an accelerator, for the last column.
        json_file: where to write the results, too.
    """
    config = TrainConfig(
        input=DataConfig(segment_seconds=segment_seconds),
        batch_size=batch_size,
        mixing=SegmentMixer(mix_group=2),
        ema_decay=0.999,
    )
    found = measure(config, steps, repeats)
    found['share'] = found['cost_seconds'] / (5000 * step_seconds)
    table = Table('device', 'state', 'step', 'save blocks for', 'save costs', f'of 5,000 steps of {step_seconds} s')
    table.add_row(
        found['device'],
        f'{found["state_bytes"] / 1e6:.0f} MB',
        f'{found["step_seconds"]:.2f} s',
        f'{found["blocking_seconds"]:.2f} s',
        f'{found["cost_seconds"]:.2f} s',
        f'{found["share"]:.2%}',
    )
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + '\n')


def measure(config: TrainConfig, steps: int, repeats: int) -> dict[str, Any]:
    """Returns the device, the size of the state in bytes, and the seconds of a step and of a save."""
    mesh = make_mesh(devices=jax.devices()[:1])
    program = make_program(config, mesh)
    step, state = program.compile_step(), program.initial_state()
    rng = np.random.default_rng(0)
    batch = put_batch(
        {
            'waveforms': rng.integers(-9000, 9000, program.batch['waveforms'].shape).astype(np.int16),
            'embeddings': rng.standard_normal(program.batch['embeddings'].shape).astype(np.float32),
        },
        mesh,
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    plain, saving, blocked = [], [], []
    with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as checkpointer:
        for turn in range(-1, 2 * repeats):  # turn -1 warms up
            saves = turn % 2 == 0
            started, inside = time.perf_counter(), 0.0
            for number in range(steps):
                state, metrics = step(state, batch)
                jax.block_until_ready(metrics)
                if saves and number == 0:
                    before = time.perf_counter()
                    checkpointer.save(state, data={}, record=describe(config, None), score=0.0)
                    inside = time.perf_counter() - before
            seconds = time.perf_counter() - started
            checkpointer.wait()
            if turn >= 0:
                (saving if saves else plain).append(seconds)
                blocked += [inside] if saves else []
    return {
        'device': jax.devices()[0].device_kind,
        'state_bytes': size,
        'step_seconds': statistics.median(plain) / steps,
        'blocking_seconds': statistics.median(blocked),
        'cost_seconds': statistics.median(saving) - statistics.median(plain),
    }


if __name__ == '__main__':
    tyro.cli(main)
