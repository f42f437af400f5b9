"""Batches of small datasets."""

import numpy as np
from support.small_dataset import SAMPLE_RATE, overwrite, shard_files

from audiosep_jax.data.batches import DataConfig, make_batches


def config_of(*directories, **settings) -> DataConfig:
    settings = {'segment_seconds': 0.05, 'threads': 2, 'read_ahead': 2, **settings}
    return DataConfig(data=tuple(map(str, directories)), **settings)


def batches_of(config: DataConfig, **settings):
    return make_batches(config, **{'sample_rate': SAMPLE_RATE, 'batch_size': 4, 'seed': 3, **settings})


def take(batches, count: int) -> list[dict]:
    with batches:
        return [next(batches) for _ in range(count)]


def clips_in(batch: dict) -> np.ndarray:
    """Which clips a batch of `small_dataset.tone`s is made of."""
    return batch['waveforms'].max(axis=1) // 100


def damage_clips(directory, ids) -> None:
    for path in shard_files(directory):
        data = path.read_bytes()
        for clip_id in ids:
            if (at := data.find(clip_id.encode())) >= 0:
                overwrite(path, at, b'!')
