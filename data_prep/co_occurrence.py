"""Counts which labels the clips of datasets have together, as a table for the mixtures of training."""

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

from audiosep_jax.data.co_occurrence import write_co_occurrence
from audiosep_jax.data.layout import read_split_info, split_names
from audiosep_jax.data.segments import label_number
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class CountedTable:
    """The result of `count_together`.

    Attributes:
        num_clips: clips that were read.
        num_several: how many of them have several labels.
        num_labels: labels in the table.
        num_pairs: pairs in the table.
        alone: labels in the table that meet no other.
    """

    num_clips: int
    num_several: int
    num_labels: int
    num_pairs: int
    alone: tuple[str, ...]


def count_together(
    directories: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    splits: Sequence[str] = (),
    min_clips: int = 1,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> CountedTable:
    """Writes the table of the labels that clips have together.

    Labels that differ in case and spaces only are one. Clips without labels are passed over, because several captions
    of a clip describe the same sound.

    Args:
        directories: the datasets.
        out: the `.json` file to write.
        splits: only these splits; empty: all complete ones.
        min_clips: pairs that fewer clips have are left out.
        jobs: number of threads that read.
        progress: called with (clips read, clips to read).

    Raises:
        ConfigError: a number is out of range, or the file is no `.json`.
        DataError: there is no such split, shards cannot be read, or the table would hold no pair.
        OSError: the table cannot be written.
    """
    for name, number in (('min-clips', min_clips), ('jobs', jobs)):
        if number < 1:
            raise ConfigError(f'--{name} {number}: must be at least 1')
    if not str(out).lower().endswith('.json'):
        raise ConfigError(f'{out}: give a name that ends in .json')
    opened = [Shards(directory, split) for directory in directories for split in _splits(directory, splits)]
    total = sum(map(len, opened))
    names: dict[int, str] = {}
    pairs: collections.Counter[tuple[int, int]] = collections.Counter()
    several = done = 0
    with futures.ThreadPoolExecutor(jobs) as pool:
        for shards in opened:
            for labels in _labels(shards, pool):
                numbers = {label_number(label) for label in labels}
                for label in labels:
                    names.setdefault(label_number(label), ' '.join(label.split()))
                pairs.update(itertools.combinations(sorted(numbers), 2))
                several += len(numbers) > 1
                done += 1
                if progress:
                    progress(done, total)
    kept = [pair for pair, count in pairs.items() if count >= min_clips]
    if not kept:
        found = f'no pair of labels is in {min_clips} clips' if min_clips > 1 else 'no clip has several labels'
        raise DataError(f'{", ".join(map(str, directories))}: {found}, so the table would hold no pair')
    others: dict[int, set[int]] = {number: set() for number in names}
    for a, b in kept:
        others[a].add(b)
        others[b].add(a)
    by_name = sorted(names, key=lambda number: (names[number].casefold(), number))
    write_co_occurrence(out, {names[n]: sorted((names[m] for m in others[n]), key=str.casefold) for n in by_name})
    alone = tuple(names[number] for number in by_name if not others[number])
    return CountedTable(total, several, len(names), len(kept), alone)


def _labels(shards: Shards, pool: futures.Executor) -> Iterator[tuple[str, ...]]:
    """Yields the labels of each clip. One shard at a time is in the queue, because millions of tasks would fill it."""

    def read(index: int) -> tuple[str, ...]:
        return shards.read(index).labels

    first = 0
    for length in shards.info.shard_lengths:
        yield from pool.map(read, range(first, first + length))
        first += length


def _splits(directory: str | os.PathLike, chosen: Sequence[str]) -> list[str]:
    found = list(chosen) or [name for name in split_names(directory) if read_split_info(directory, name).complete]
    if not found:
        raise DataError(f'{directory}: no dataset with a complete split here: run `python -m data_prep build` first')
    return found
