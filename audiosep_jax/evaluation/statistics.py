"""Aggregates the scores of items to one number with a confidence interval.

The statistics are the original's. The intervals are 95 % percentile intervals of 2,000 bootstrap resamples, which
resample what was drawn at random when the benchmark was made:

- *mean*: n of n groups are drawn with replacement. A group is all items with the same target, or a single item.
  AudioCaps and Clotho query each clip with five captions, so five items are one draw. If all items have the same
  target, items are drawn.
- *mean of class means*, *mean of class medians*: the classes are fixed, not drawn, so groups are drawn within each
  class, and every class keeps its weight.
"""

from collections.abc import Sequence

import numpy as np

from audiosep_jax.evaluation.benchmark import Statistic

_RESAMPLES = 2000
_CHUNK = 100  # resamples at a time: the counts of all 2,000 would fill gigabytes for a large benchmark


def aggregate(values: np.ndarray, labels: Sequence[str], statistic: Statistic) -> np.ndarray:
    """Returns the aggregated scores, float64 [M].

    Args:
        values: the scores of the items, [n, M].
        labels: the classes of the items, [n].
        statistic: how to aggregate.
    """
    values = np.asarray(values, np.float64)
    if statistic == 'mean':
        return values.mean(axis=0)
    average = np.mean if statistic == 'mean of class means' else np.median
    return np.mean([average(values[rows], axis=0) for rows in _rows_of(labels)], axis=0)


def intervals(
    values: np.ndarray, labels: Sequence[str], groups: Sequence[str], statistic: Statistic, seed: int
) -> np.ndarray:
    """Returns the lower and upper ends of the 95 % intervals, [2, M].

    The resamples depend only on the seed, the classes and the groups, so rows of the same items share them.

    Args:
        values: the scores of the items, [n, M].
        labels: the classes of the items, [n].
        groups: the groups of the items, [n]; '' for an item that is a group by itself.
        statistic: how to aggregate.
        seed: seed of the resamples.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    classes = [np.arange(len(values))] if statistic == 'mean' else _rows_of(labels)
    names = np.asarray([group or f'item {i}' for i, group in enumerate(groups)])
    resample = _median_resamples if statistic == 'mean of class medians' else _mean_resamples
    drawn = np.mean([resample(values[rows], names[rows], rng) for rows in classes], axis=0)
    return np.percentile(drawn, [2.5, 97.5], axis=0)


def bootstrap_interval(values: np.ndarray, labels: Sequence[str] | None, seed: int) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of `values` [n]; with labels, of the mean of the means per label."""
    statistic: Statistic = 'mean' if labels is None else 'mean of class means'
    empty = [''] * len(values)
    low, high = intervals(np.asarray(values)[:, None], labels or empty, empty, statistic, seed)[:, 0]
    return float(low), float(high)


def interval_notes(labels: Sequence[str], statistic: Statistic) -> list[str]:
    """Returns a note if intervals are too narrow, because they are drawn within classes and many have one item."""
    sizes = [len(rows) for rows in _rows_of(labels)]
    alone = sizes.count(1)
    if statistic == 'mean' or 10 * alone < len(sizes):
        return []
    return [f'{alone} of {len(sizes)} classes have one item, whose spread is not known: the intervals are too narrow']


def _mean_resamples(values: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the means of resamples that draw groups [n] of values [n, M] with replacement, [resamples, M]."""
    _, codes = np.unique(groups, return_inverse=True)
    if not codes.any():
        codes = np.arange(len(values))
    count = codes.max() + 1
    sizes = np.bincount(codes).astype(np.float64)
    sums = np.stack([np.bincount(codes, column) for column in values.T], axis=1)  # [groups, M]
    means = []
    for _ in range(_RESAMPLES // _CHUNK):
        times = rng.multinomial(count, np.full(count, 1 / count), size=_CHUNK).astype(np.float64)
        means.append((times @ sums) / (times @ sizes)[:, None])
    return np.concatenate(means)


def _median_resamples(values: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the medians of resamples that draw items of values [n, M] with replacement, [resamples, M].

    Groups are ignored, because resamples of groups of different sizes would differ in size.
    """
    drawn = rng.integers(len(values), size=(_RESAMPLES, len(values)))
    return np.median(values[drawn], axis=1)


def _rows_of(labels: Sequence[str]) -> list[np.ndarray]:
    """Returns the indices of the items of each class, int arrays."""
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    order = np.argsort(codes, kind='stable')
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])
