"""Checks a dataset: every record must decode, the shards must hold the bytes that were written, and the counts of
shards, metadata and caches must agree."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from concurrent import futures
from typing import TypedDict, get_args

import numpy as np

from audiosep_jax.data.embeddings import EmbeddingCache, Modality, cache_directory, embed_command
from audiosep_jax.data.layout import Summary, read_summary, split_names
from audiosep_jax.data.records import Record, decode_audio
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import AudioSepError, ConfigError, DataError
from audiosep_jax.storage.json_files import read_json
from data_prep.build import checksum

# Rows are float16, with a relative error of 2^-11, and encoders on an accelerator differ in the last digits.
_SAME_COSINE = 0.99
_TEXTS_COMPARED = 32


class _SplitLengths(TypedDict):
    name: str
    shardLengths: list[str | int]  # in protobuf's JSON, integers of 64 bits are texts


class _DatasetInfo(TypedDict):
    """What is checked of TFDS's `dataset_info.json`."""

    splits: list[_SplitLengths]


@dataclasses.dataclass
class Verification:
    """The result of a check. Each of the `problems` is one line with its remedy; a sound dataset has none."""

    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    num_clips: int = 0
    num_captions: int = 0
    seconds: float = 0.0
    num_silent: int = 0
    encoders: list[str] = dataclasses.field(default_factory=list)


def verify_dataset(
    directory: str | os.PathLike, *, jobs: int = 1, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Reads and decodes a whole dataset.

    Args:
        directory: directory of the dataset.
        jobs: number of threads.
        progress: called with (clips done, clips in total).

    Raises:
        ConfigError: `jobs` is less than one.
        DataError: there is no dataset. All other problems are reported in the result.
    """
    if jobs < 1:
        raise ConfigError(f'--jobs {jobs}: must be at least 1')
    directory = pathlib.Path(directory)
    names = split_names(directory)
    if not names:
        raise DataError(f'{directory}: no dataset here: make one with `python -m data_prep build`')
    result = Verification()
    splits = []
    for name in names:
        try:
            splits.append(Shards(directory, name, check=False))
        except DataError as error:
            result.problems.append(str(error))
    total = sum(map(len, splits))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    ids: dict[tuple[str, str], str] = {}
    for shards in splits:
        with futures.ThreadPoolExecutor(jobs) as pool:
            _verify_records(shards, pool, result, ids, tick)
        for folder in sorted(directory.glob('embeddings/*/')):
            for what in _modalities(folder, shards.info.split):
                _verify_cache(shards, folder.name, what, result)
    _verify_tfds_metadata(directory, splits, result)
    return result


def _verify_records(
    shards: Shards,
    pool: futures.Executor,
    result: Verification,
    ids: dict[tuple[str, str], str],
    tick: Callable[[], None],
) -> None:
    first = 0
    for shard, length in enumerate(shards.info.shard_lengths):
        indices = range(first, first + length)
        first += length
        problem = shards.problem(shard)
        if problem:
            result.problems.append(problem)
            continue
        known = len(result.problems)
        summary: Summary | None = None
        try:
            summary = read_summary(shards.directory, shards.info, shard)
        except DataError as error:
            result.problems.append(str(error))
        captions = None if summary is None else summary['captions']
        for index, found in zip(indices, pool.map(lambda i: _read(shards, i), indices), strict=True):
            tick()
            if isinstance(found, str):
                result.problems.append(found)
                continue
            record, silent = found
            where = f'{shards.path(shard)}: record {index - indices[0]} ({record.id!r})'
            if (record.sample_rate, record.codec) != (shards.info.sample_rate, shards.info.codec):
                result.problems.append(f'{where}: {record.codec} at {record.sample_rate} Hz, unlike its split')
            if captions is not None and list(record.captions) != captions[index - indices[0]]:
                result.problems.append(f'{where}: its captions are not those that embeddings are made from')
            if (shards.info.split, record.id) in ids:
                result.problems.append(f'{where}: the id occurs twice, also in {ids[shards.info.split, record.id]}')
            ids[shards.info.split, record.id] = shards.path(shard).name
            result.num_clips += 1
            result.num_captions += len(record.captions)
            result.seconds += record.num_samples / record.sample_rate
            result.num_silent += silent
        # The checksum is compared last, and only if all is well: a record that cannot be read is a clearer problem.
        written = summary.get('sha256') if summary is not None and len(result.problems) == known else None
        if written is not None and (actual := checksum(shards.path(shard))) != written:
            result.problems.append(
                f'{shards.path(shard)}: not the bytes that were written (SHA-256 {actual[:12]}… instead of '
                f'{written[:12]}…): delete the shard and run the same `data_prep build` again'
            )


def _read(shards: Shards, index: int) -> tuple[Record, bool] | str:
    """Returns a record and whether it is silent, or else a message about what is wrong with it."""
    try:
        record = shards.read(index)
        return record, not bool(decode_audio(record).any())
    except DataError as error:
        shard, position = shards.locate(index)
        text = str(error)
        where = '' if str(shards.path(shard)) in text else f'{shards.path(shard)}: record {position}: '
        return f'{where}{text}; delete the shard and run the same `data_prep build` again'


def _modalities(folder: pathlib.Path, split: str) -> list[Modality]:
    """Returns the modalities of which an encoder has embeddings; if there are none, text, so that it is reported."""
    found = [
        what for what in get_args(Modality) if (folder / ('' if what == 'text' else what) / f'{split}.json').is_file()
    ]
    return found or ['text']


def _verify_cache(shards: Shards, encoder_name: str, what: Modality, result: Verification) -> None:
    try:
        cache = EmbeddingCache(shards, encoder_name, what)
    except DataError as error:
        result.problems.append(str(error))
        return
    name = encoder_name if what == 'text' else f'{encoder_name} ({what})'
    if name not in result.encoders:
        result.encoders.append(name)
    folder = cache_directory(shards.directory, encoder_name, what)
    for index in range(len(shards)):
        rows = cache.rows(index).astype(np.float32)
        # A clip without a picture has no row. Opening the cache has already compared the numbers of rows.
        if not np.isfinite(rows).all() or not np.linalg.norm(rows, axis=-1).all():
            result.problems.append(
                f'{folder}: the embeddings of clip {index} of {shards.info.split!r} are damaged: delete it and run '
                f'{embed_command(shards.directory, encoder_name, what)}'
            )
            return
    if what == 'text':
        _compare_with_encoder(shards, cache, encoder_name, result)


def _compare_with_encoder(shards: Shards, cache: EmbeddingCache, encoder_name: str, result: Verification) -> None:
    """Compares the rows of some clips, spread over the split, with what the encoder computes."""
    try:
        encoder = load_encoder(cache.identity)
    except AudioSepError as error:
        result.notes.append(f'embeddings {encoder_name!r} were not compared with the encoder itself: {error}')
        return
    for index in np.unique(np.linspace(0, len(shards) - 1, min(_TEXTS_COMPARED, len(shards))).astype(int)):
        try:
            texts = list(shards.read(int(index)).captions)
        except DataError:
            continue  # reported with the records
        rows, fresh = cache.rows(int(index)).astype(np.float32), encoder.encode_text(texts)
        cosine = (rows * fresh).sum(-1) / (np.linalg.norm(rows, axis=-1) * np.linalg.norm(fresh, axis=-1))
        if not (cosine > _SAME_COSINE).all():
            result.problems.append(
                f'{shards.directory}: embeddings {encoder_name!r} of clip {index} of {shards.info.split!r} are not '
                f'those of its captions: delete embeddings/{encoder_name} and embed again'
            )
            return


def _verify_tfds_metadata(directory: pathlib.Path, splits: list[Shards], result: Verification) -> None:
    again = 'run the same `data_prep build` again'
    if not (directory / 'features.json').is_file():
        result.problems.append(f'{directory}/features.json: missing: {again}')
    try:
        listed = read_json(directory / 'dataset_info.json', _DatasetInfo, remedy=again)['splits']
    except DataError as error:
        result.problems.append(str(error))
        return
    lengths = {split['name']: [str(number) for number in split['shardLengths']] for split in listed}
    for shards in splits:
        if lengths.get(shards.info.split) != list(map(str, shards.info.shard_lengths)):
            result.problems.append(
                f'{directory}/dataset_info.json: other counts than split {shards.info.split!r}: {again}'
            )
