"""The global stream of clips: the clip and dataset at position p are a function of (seed, p) only.

    range(clips) ─shuffle, again in every epoch─┐
    range(clips) ─shuffle, again in every epoch─┴─mix─▶ shuffle in windows ─▶ (p, dataset, clip)

There is no list of all clips, so a stream of millions starts immediately and at any position. For small datasets, whole
permutations are made and cached: per index, Grain's `index_shuffle` takes 5 µs in a dataset of a million clips, but
20 µs in one of a thousand and milliseconds in one of ten.
"""

import functools
import sys
from collections.abc import Sequence

import grain
import numpy as np

# Grain interleaves datasets in a fixed pattern. Shuffling within windows of this many clips makes it random which clips
# are in a batch together, while the proportions hold in every window.
_MIX_WINDOW = 1000
_MAX_PERMUTATION = 1 << 16  # clips; a permutation takes 0.25 MB


def clip_stream(sizes: Sequence[int], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """Returns the endless stream of (position, dataset, clip).

    Args:
        sizes: number of clips of each dataset, at least 1.
        weights: how often clips are drawn from each dataset, in proportion.
        seed: seed of the order.
    """
    seeds = independent_seeds(seed, len(sizes) + 1)
    streams = [
        grain.MapDataset.source(_ShuffledClips(number, size, seeds[number])) for number, size in enumerate(sizes)
    ]
    mixed = streams[0]
    if len(streams) > 1:
        mixed = grain.MapDataset.source(
            _Windows(grain.MapDataset.mix(streams, [w / sum(weights) for w in weights]), seeds[-1])
        )
    return mixed.map_with_index(_with_position)


def independent_seeds(seed: int, count: int) -> list[int]:
    """Returns 32-bit seeds. Grain adds the epoch to a seed, so without this the runs of seeds 1 and 2 would overlap."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(count)]


class _ShuffledClips:
    """An endless data source of (dataset, clip) with each clip once per epoch, in a different order in each epoch."""

    def __init__(self, dataset: int, size: int, seed: int):
        self._dataset, self._size, self._seed = dataset, size, seed
        self._shuffled = grain.MapDataset.range(size).shuffle(seed=seed) if size > _MAX_PERMUTATION else None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        if self._shuffled is not None:
            return self._dataset, self._shuffled[index]
        epoch, place = divmod(index, self._size)
        return self._dataset, int(_permutation(self._size, self._seed, epoch)[place])


class _Windows:
    """A data source that shuffles another one within windows of `_MIX_WINDOW`."""

    def __init__(self, source: grain.MapDataset, seed: int):
        self._source, self._seed = source, seed

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, int]:
        window, place = divmod(index, _MIX_WINDOW)
        return self._source[window * _MIX_WINDOW + int(_permutation(_MIX_WINDOW, self._seed, window)[place])]


@functools.lru_cache(64)  # at a time, threads and read-ahead need a few windows and epochs of each dataset
def _permutation(size: int, seed: int, number: int) -> np.ndarray:
    """Returns a permutation, int32 [size], by sorting raw random bits, which are the same in every version of NumPy."""
    bits = np.random.Philox(np.random.SeedSequence([seed, number])).random_raw(size)
    return np.argsort(bits, kind='stable').astype(np.int32)


def _with_position(position: int, clip: tuple[int, int]) -> tuple[int, int, int]:
    return position, *clip
