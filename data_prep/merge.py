"""Merges several datasets: their records are copied into new shards without being decoded or encoded.

A merge is a build whose clips are the records of other datasets, so it can be interrupted and continued like any build.
Embeddings are copied too if all the datasets have them from the same encoder.
"""

import bisect
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from audiosep_jax.data.embeddings import EmbeddingCache, Modality, cache_directory, cache_paths, cached_encoders
from audiosep_jax.data.layout import SplitInfo, read_split_info, read_summary, split_names
from audiosep_jax.data.records import Record
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.base import comparable
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.buckets import is_bucket
from audiosep_jax.storage.json_files import read_json, write_json
from audiosep_jax.storage.npy_files import write_npy
from data_prep.build import BuildResult, build_shards
from data_prep.caption_variants import merge_variants
from data_prep.clips.base import Clip


@dataclasses.dataclass(frozen=True)
class _Part:
    """Clips `first` to `stop` - 1 of one split of a dataset."""

    shards: Shards
    first: int
    stop: int
    prefix: str  # added before the ids of the clips


class MergedRecords:
    """The clips of several datasets in succession, as a `ClipSource`; `ids` holds the ids of all clips."""

    def __init__(self, parts: Sequence[_Part], ids: Sequence[str]):
        self._parts, self._ids = list(parts), list(ids)
        self._ends = list(itertools.accumulate(part.stop - part.first for part in self._parts))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def shards(self) -> list[Shards]:
        """The splits that are merged."""
        return [part.shards for part in self._parts]

    @property
    def info(self) -> SplitInfo:
        """The split info of the first dataset; all of them share its sample rate and codec."""
        return self._parts[0].shards.info

    def check(self, sample_rate: int) -> None:
        """Raises ConfigError if `sample_rate` is not that of the records."""
        if self.info.sample_rate != sample_rate:
            raise ConfigError(f'--sample-rate {sample_rate}: records are copied, at {self.info.sample_rate} Hz')

    def clip_id(self, index: int) -> str:
        return self._ids[index]

    def record(self, index: int) -> Record:
        """Returns the stored clip. Raises DataError if it cannot be read."""
        number, position = self.locate(index)
        part = self._parts[number]
        record = part.shards.read(position)
        return dataclasses.replace(record, id=part.prefix + record.id) if part.prefix else record

    def read(self, index: int, sample_rate: int) -> Clip:
        """Returns the decoded clip, like any source; a build uses `record` instead."""
        number, position = self.locate(index)
        record = self.record(index)
        audio = self._parts[number].shards.waveform(position)
        return Clip(record.id, audio, record.captions, record.labels, record.source, record.frames)

    def locate(self, index: int) -> tuple[int, int]:
        """Returns which of `shards` a clip is in, and its number there."""
        number = bisect.bisect_right(self._ends, index)
        return number, self._parts[number].stop - (self._ends[number] - index)

    def part(self, start: int, stop: int) -> 'MergedRecords':
        parts, before = [], 0
        for part, end in zip(self._parts, self._ends, strict=True):
            first, last = max(start, before), min(stop, end)
            if first < last:
                parts.append(
                    dataclasses.replace(part, first=part.first + first - before, stop=part.first + last - before)
                )
            before = end
        return MergedRecords(parts, self._ids[start:stop])

    def description(self) -> Any:
        return {'kind': 'merged', 'of': [[p.shards.info.content, p.first, p.stop, p.prefix] for p in self._parts]}


def merge_datasets(
    directories: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    name: str | None = None,
    splits: Sequence[str] = (),
    clips_per_shard: int = 2000,
    prefix_ids: bool = False,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[BuildResult]:
    """Merges several datasets into one: each split holds the clips of all datasets that have a split of that name.

    Args:
        directories: the datasets to merge.
        out: directory of the new dataset.
        name: name of the new dataset; by default it is made from the last part of `out`.
        splits: the splits to merge; by default all complete ones.
        clips_per_shard: number of clips in a new shard.
        prefix_ids: put the name of its dataset and a '/' before each id, for datasets that share ids.
        jobs: number of processes that copy.
        progress: called with (clips done, clips in total).

    Raises:
        ConfigError: there are fewer than two datasets, or two have the same name and `prefix_ids` is set.
        DataError: the datasets differ in sample rate or codec, or share ids; or `build_shards` fails.
    """
    if len(directories) < 2:
        raise ConfigError('merge: give at least two datasets')
    for directory in directories:
        if not is_bucket(out) and pathlib.Path(directory).resolve() == pathlib.Path(out).resolve():
            raise ConfigError(f'--out {out}: is one of the datasets to merge: give another directory')
    sources = {}
    for split in splits or sorted({split for directory in directories for split in split_names(directory)}):
        shards = [
            Shards(directory, split)
            for directory in directories
            if split in split_names(directory) and (splits or read_split_info(directory, split).complete)
        ]
        if shards:
            sources[split] = _merge_shards(shards, prefix_ids)
        elif splits:
            raise DataError(f'no dataset has a split {split!r}')
    if not sources:
        raise DataError(f'{directories[0]}: no dataset with a complete split here')
    total, before, results = sum(map(len, sources.values())), 0, []
    for split, source in sources.items():
        results.append(
            build_shards(
                source,
                out,
                sample_rate=source.info.sample_rate,
                name=name,
                split=split,
                clips_per_shard=clips_per_shard,
                codec=source.info.codec,
                jobs=jobs,
                progress=_progress_after(before, total, progress),
            )
        )
        before += len(source)
        if not is_bucket(out):
            _merge_caches(source, out, results[-1])
    if not is_bucket(out):
        merge_variants(directories, out)
    return results


def _progress_after(
    before: int, total: int, progress: Callable[[int, int], None] | None
) -> Callable[[int, int], None] | None:
    """Returns the callback of one split, which adds the clips of the splits before it and reports to `progress`."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def _merge_caches(source: MergedRecords, out: str | os.PathLike, result: BuildResult) -> None:
    """Copies the rows of each cache that all the datasets have for the split, in the order of the merged clips."""
    info, left_out = result.info, {skipped.id for skipped in result.skipped}
    for encoder in cached_encoders(source.shards[0].directory):
        for what in get_args(Modality):
            if what == 'variants':
                continue  # the merged dataset has the variants of all, so that a clip may have more of them
            try:
                caches = [EmbeddingCache(shards, encoder, what) for shards in source.shards]
            except DataError:
                continue  # one of them lacks it, so the merged dataset has to be embedded again
            if any(comparable(cache.identity) != comparable(caches[0].identity) for cache in caches):
                continue
            done = cache_directory(out, encoder, what) / f'{info.split}.json'
            note = {'content': info.content, 'complete': True}
            if done.is_file() and read_json(done) == note:
                continue
            done.unlink(missing_ok=True)
            write_json(cache_directory(out, encoder) / 'encoder.json', caches[0].identity)
            for shard in range(info.num_shards):
                first = shard * info.clips_per_shard
                clips = range(first, min(first + info.clips_per_shard, len(source)))
                places = [source.locate(clip) for clip in clips if source.clip_id(clip) not in left_out]
                rows = [caches[number].rows(position) for number, position in places]
                empty = np.zeros((0, caches[0].identity['embedding_size']), np.float16)
                rows_path, offsets_path = cache_paths(out, encoder, info, shard, what)
                write_npy(offsets_path, np.cumsum([0, *map(len, rows)], dtype=np.int64))
                write_npy(rows_path, np.concatenate([empty, *rows]))
            write_json(done, note)


def _merge_shards(shards: list[Shards], prefix_ids: bool) -> MergedRecords:
    first = shards[0]
    for other in shards[1:]:
        for what in ('sample_rate', 'codec'):
            here, there = getattr(first.info, what), getattr(other.info, what)
            if here != there:
                raise DataError(
                    f'{other.directory}: {what} {there}, but {here} in {first.directory}: records are copied as they '
                    'are; rebuild one of them'
                )
    prefixes = [f'{s.info.name}/' if prefix_ids else '' for s in shards]
    if prefix_ids and len(set(prefixes)) < len(prefixes):
        raise ConfigError('--prefix-ids: two of the datasets have the same name: build one of them with another --name')
    parts = [_Part(s, 0, len(s), prefix) for s, prefix in zip(shards, prefixes, strict=True)]
    owner: dict[str, pathlib.Path] = {}
    for part in parts:
        for clip_id in _ids(part.shards):
            clip_id = part.prefix + clip_id
            if clip_id in owner:
                raise DataError(
                    f'the id {clip_id!r} occurs in {owner[clip_id]} and in {part.shards.directory}: '
                    'tell them apart with --prefix-ids'
                )
            owner[clip_id] = part.shards.directory
    return MergedRecords(parts, list(owner))


def _ids(shards: Shards) -> list[str]:
    ids: list[str] = []
    for shard, length in enumerate(shards.info.shard_lengths):
        found = read_summary(shards.directory, shards.info, shard).get('ids')
        if found is None:  # a shard of an earlier version
            found = [shards.read(index).id for index in range(len(ids), len(ids) + length)]
        ids += found
    return ids
