"""A dataset of a few short clips, for the tests of what writes and reads one."""

import pathlib

import numpy as np

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.encoders.registry import load_encoder
from data_prep.build import BuildResult, build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions

SAMPLE_RATE = 8000


def tone(index: int, num_samples: int = 2000) -> np.ndarray:
    """float32 [T] whose every sample names the clip and its place: 100 * index + (sample mod 100), exact in 16 bits."""
    return ((100 * index + np.arange(num_samples) % 100) / INT16_SCALE).astype(np.float32)


def small_clips(count: int, num_samples: int = 2000, captions: int = 1) -> list[Clip]:
    """Clip n has n % captions + 1 captions, all different."""

    def texts(n):
        return tuple(f'sound {n} take {k}' for k in range(n % captions + 1))

    return [Clip(f'clip-{n}', tone(n, num_samples), texts(n), (f'l{n}',)) for n in range(count)]


def build_small(directory: pathlib.Path, count: int = 10, *, num_samples=2000, captions=1, embed=True, **settings):
    """Builds and embeds it; returns the BuildResult."""
    settings = {'sample_rate': SAMPLE_RATE, 'name': 'small', 'clips_per_shard': 4, **settings}
    result: BuildResult = build_shards(small_clips(count, num_samples, captions), directory, **settings)
    if embed:
        embed_captions(directory, load_encoder('words'))
    return result


def shard_files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in directory.glob('*.array_record-*') if not path.name.startswith('.'))


def overwrite(path: pathlib.Path, offset: int, data: bytes) -> None:
    """Damages a file in place."""
    with open(path, 'r+b') as file:
        file.seek(offset)
        file.write(data)
