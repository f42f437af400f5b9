"""Embedding caches: the captions of a split through one query encoder, beside the shards they belong to.

    embeddings/ENCODER/encoder.json                       the encoder's identity: what may be mixed with what
    embeddings/ENCODER/SPLIT-00000-of-00128.npy           float16 [rows, E], one row per caption, in the shard's order
    embeddings/ENCODER/SPLIT-00000-of-00128.offsets.npy   int64 [clips + 1]: clip n has the rows offsets[n]:offsets[n+1]
    embeddings/ENCODER/SPLIT.json                         written last: which build of the split this was made from

A new encoder never rewrites audio. Letters: E embedding size.
"""

import functools
import os
import pathlib
import uuid
from typing import Any

import numpy as np

from audiosep_jax.encoders import comparable
from audiosep_jax.errors import DataError, EncoderMismatchError
from audiosep_jax.records import Shards, SplitInfo, read_json

_MAX_OPEN_MAPS = 256  # of all datasets together: each holds a file open, of which 1,024 is the usual limit


def cache_directory(directory: str | os.PathLike, encoder_name: str) -> pathlib.Path:
    """The folder of one encoder's embeddings of a dataset."""
    return pathlib.Path(directory) / 'embeddings' / encoder_name


def cache_paths(directory: str | os.PathLike, encoder_name: str, info: SplitInfo, shard: int):
    """(rows, offsets) files of one shard."""
    stem = cache_directory(directory, encoder_name) / f'{info.split}-{shard:05d}-of-{info.num_shards:05d}'
    return stem.with_suffix('.npy'), stem.with_suffix('.offsets.npy')


def cached_encoders(directory: str | os.PathLike) -> list[str]:
    """The names of the encoders that a dataset has embeddings of."""
    return sorted(path.parent.name for path in pathlib.Path(directory).glob('embeddings/*/encoder.json'))


def read_encoder_identity(directory: str | os.PathLike, encoder_name: str) -> dict[str, Any]:
    """What `encoder.json` records. Raises DataError, with the command to run, where there is no such cache."""
    path = cache_directory(directory, encoder_name) / 'encoder.json'
    if not path.is_file():
        raise DataError(
            f'{directory}: no embeddings of encoder {encoder_name!r}: '
            f'run `python -m data_prep embed {directory} --encoder {encoder_name}`'
        )
    identity = read_json(path)
    if not isinstance(identity, dict) or not isinstance(identity.get('embedding_size'), int) or 'name' not in identity:
        raise DataError(f'{path}: not an encoder identity: delete {path.parent} and embed again')
    return identity


def check_same_encoder(
    where: str | os.PathLike, found: dict[str, Any], expected: dict[str, Any], of: str, remedy: str = 'embed again'
) -> None:
    """Raises EncoderMismatchError when the embeddings in `where` were made with another encoder than `of` has."""
    found, expected = comparable(found), comparable(expected)
    if found != expected:
        differences = ', '.join(
            f'{k} {found.get(k)!r} instead of {expected.get(k)!r}'
            for k in sorted({*found, *expected})
            if found.get(k) != expected.get(k)
        )
        raise EncoderMismatchError(f'{where}: embeddings of another encoder than {of} ({differences}): {remedy}')


class EmbeddingCache:
    """The cache of one split, memory-mapped; `rows(n)` are the embeddings of clip n's captions.

    Raises:
        DataError: no cache, an unfinished one, one of another build, damaged or of another size than the shards.
    """

    def __init__(self, shards: Shards, encoder_name: str):
        self._shards = shards
        self._name = encoder_name
        self.identity = read_encoder_identity(shards.directory, encoder_name)
        self._owner = uuid.uuid4().hex  # as in Shards
        self._check()

    def _check(self) -> None:
        directory, info = self._shards.directory, self._shards.info
        folder = cache_directory(directory, self._name)
        embed = f'`python -m data_prep embed {directory} --encoder {self._name}`'
        done = folder / f'{info.split}.json'
        if not done.is_file():
            raise DataError(f'{folder}: no complete embeddings of split {info.split!r}: run {embed}')
        if read_json(done) != {'content': info.content, 'complete': True}:
            raise DataError(
                f'{folder}: unfinished, or embeddings of another build of split {info.split!r}: run {embed}'
            )
        for shard, length in enumerate(info.shard_lengths):
            rows, offsets = self._open(shard)
            if rows.ndim != 2 or rows.shape[1] != self.identity['embedding_size'] or rows.dtype != np.float16:
                raise DataError(f'{folder}: shard {shard} is {rows.dtype} {rows.shape}: delete it and run {embed}')
            # Every clip has a caption, so every clip has a row.
            if len(offsets) != length + 1 or offsets[0] or offsets[-1] != len(rows) or (np.diff(offsets) < 1).any():
                raise DataError(f'{folder}: shard {shard} does not fit its clips: delete it and run {embed}')

    def _open(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        rows, offsets = cache_paths(self._shards.directory, self._name, self._shards.info, shard)
        try:
            return _shared_map(str(rows), str(offsets), self._owner)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f'{rows}: embeddings are missing or damaged ({error}): delete {rows.parent} and run '
                f'`python -m data_prep embed {self._shards.directory} --encoder {self._name}`'
            ) from error

    def rows(self, index: int) -> np.ndarray:
        """float16 [captions of clip `index`, E], a view of the file."""
        shard, position = self._shards.locate(index)
        rows, offsets = self._open(shard)
        return rows[offsets[position] : offsets[position + 1]]


@functools.lru_cache(_MAX_OPEN_MAPS)
def _shared_map(rows: str, offsets: str, owner: str) -> tuple[np.ndarray, np.ndarray]:
    """Kept by path, not in the object: a pickled memmap copies the whole file into the other process."""
    # offsets are small (16 kB a shard) and looked up for every clip: read, not mapped.
    return np.load(rows, mmap_mode='r'), np.load(offsets)
