"""How scores of items become one number with an interval.

The statistics are the original's. The intervals are 95 % percentile intervals of 2,000 bootstrap resamples that follow
what was drawn at random when the benchmark was made:

- *mean*: groups are drawn with replacement, n of n. A group is the items of one target (AudioCaps and Clotho ask for
  each clip by five captions: five items, one draw), or a single item. Where all items have one target in common, items
  are drawn.
- *mean of class means*, *mean of class medians*: the classes are given, not drawn, so groups are drawn within each
  class, and every class keeps its weight.
"""

from collections.abc import Sequence

import numpy as np

from audiosep_jax.evaluation.benchmark import Statistic

_RESAMPLES = 2000
_AT_ONCE = 100  # the counts of 2,000 resamples of a large benchmark fill gigabytes


def aggregate(values: np.ndarray, labels: Sequence[str], statistic: Statistic) -> np.ndarray:
    """Scores [n, M] of items with their classes [n] -> [M] in float64."""
    values = np.asarray(values, np.float64)
    if statistic == 'mean':
        return values.mean(axis=0)
    of_class = np.mean if statistic == 'mean of class means' else np.median
    return np.mean([of_class(values[rows], axis=0) for rows in _rows_of(labels)], axis=0)


def intervals(
    values: np.ndarray, labels: Sequence[str], groups: Sequence[str], statistic: Statistic, seed: int
) -> np.ndarray:
    """Scores [n, M], classes [n] and groups [n] -> [2, M], the lower and upper ends of the 95 % intervals.

    The resamples depend on the seed, the classes and the groups alone: rows of scores of the same items share them.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    classes = [np.arange(len(values))] if statistic == 'mean' else _rows_of(labels)
    groups = np.asarray([group or f'item {i}' for i, group in enumerate(groups)])
    resample = _median_resamples if statistic == 'mean of class medians' else _mean_resamples
    drawn = np.mean([resample(values[rows], groups[rows], rng) for rows in classes], axis=0)
    return np.percentile(drawn, [2.5, 97.5], axis=0)


def bootstrap_interval(values: np.ndarray, labels: Sequence[str] | None, seed: int) -> tuple[float, float]:
    """The interval of the mean of `values` [n]; with labels, of the mean over labels of their means."""
    statistic = 'mean' if labels is None else 'mean of class means'
    none = [''] * len(values)
    low, high = intervals(np.asarray(values)[:, None], labels or none, none, statistic, seed)[:, 0]
    return float(low), float(high)


def _mean_resamples(values: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n, M] and [n] -> [resamples, M]: means over the items of groups drawn with replacement."""
    _, codes = np.unique(groups, return_inverse=True)
    if not codes.any():
        codes = np.arange(len(values))
    count = codes.max() + 1
    sizes = np.bincount(codes).astype(np.float64)
    sums = np.stack([np.bincount(codes, column) for column in values.T], axis=1)  # [groups, M]
    means = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        times = rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE).astype(np.float64)
        means.append((times @ sums) / (times @ sizes)[:, None])
    return np.concatenate(means)


def _median_resamples(values: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[n, M] -> [resamples, M]: medians of items drawn with replacement. Groups would be of unequal sizes: ignored."""
    drawn = rng.integers(len(values), size=(_RESAMPLES, len(values)))
    return np.median(values[drawn], axis=1)


def _rows_of(labels: Sequence[str]) -> list[np.ndarray]:
    """The items of each class, int arrays."""
    _, codes = np.unique(np.asarray(labels), return_inverse=True)
    order = np.argsort(codes, kind='stable')
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])
