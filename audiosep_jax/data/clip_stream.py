"""The global stream of clips: which clip of which dataset stands at position p, a function of (seed, p) alone.

    range(clips) ─shuffle, again in every epoch─┐
    range(clips) ─shuffle, again in every epoch─┴─mix─▶ shuffle in windows ─▶ (p, dataset, clip)

No list of all clips is made, so a stream of millions begins at once, anywhere. Permutations of small sets are made
whole and kept for a while: Grain's `index_shuffle` takes 5 µs for an index of a million, but 20 for one of a thousand
and milliseconds for one of ten.
"""

import functools
import sys
from collections.abc import Sequence

import grain
import numpy as np

# Grain interleaves datasets in a fixed pattern; shuffled within windows of this many, who meets whom in a batch is
# random, while the proportions hold over every window.
_MIX_WINDOW = 1000
_KEPT_WHOLE = 1 << 16  # clips; 0.25 MB a permutation


def clip_stream(sizes: Sequence[int], weights: Sequence[float], seed: int) -> grain.MapDataset:
    """The endless stream of (position, dataset, clip).

    Args:
        sizes: clips of each dataset, at least 1.
        weights: how often each is drawn from, in proportion.
        seed: of the order.
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
    """32-bit seeds. Grain numbers epochs by adding to a seed: runs 1 and 2 would overlap."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(count)]


class _ShuffledClips:
    """An endless data source of (dataset, clip): every epoch has each clip once, in an order of its own."""

    def __init__(self, dataset: int, size: int, seed: int):
        self._dataset, self._size, self._seed = dataset, size, seed
        self._shuffled = grain.MapDataset.range(size).shuffle(seed=seed) if size > _KEPT_WHOLE else None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        if self._shuffled is not None:
            return self._dataset, self._shuffled[index]
        epoch, place = divmod(index, self._size)
        return self._dataset, int(_permutation(self._size, self._seed, epoch)[place])


class _Windows:
    """A data source that shuffles another one within windows."""

    def __init__(self, source: grain.MapDataset, seed: int):
        self._source, self._seed = source, seed

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, int]:
        window, place = divmod(index, _MIX_WINDOW)
        return self._source[window * _MIX_WINDOW + int(_permutation(_MIX_WINDOW, self._seed, window)[place])]


@functools.lru_cache(64)  # threads and read-ahead straddle a few windows, and epochs of every dataset
def _permutation(size: int, seed: int, number: int) -> np.ndarray:
    """int32 [size]. By sorting raw random bits: NumPy promises those alone to stay the same from version to version."""
    bits = np.random.Philox(np.random.SeedSequence([seed, number])).random_raw(size)
    return np.argsort(bits, kind='stable').astype(np.int32)


def _with_position(position: int, clip: tuple[int, int]) -> tuple[int, int, int]:
    return position, *clip
