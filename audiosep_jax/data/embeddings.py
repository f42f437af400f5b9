"""Embedding caches: one query encoder's embeddings of a split, stored beside its shards.

    embeddings/ENCODER/encoder.json                       the encoder's identity, to which embeddings must agree
    embeddings/ENCODER/SPLIT-00000-of-00128.npy           float16 [rows, E], one row per caption, in the shard's order
    embeddings/ENCODER/SPLIT-00000-of-00128.offsets.npy   int64 [clips + 1]: clip n has the rows offsets[n]:offsets[n+1]
    embeddings/ENCODER/SPLIT.json                         written last: the build of the split that this belongs to
    embeddings/ENCODER/audio/SPLIT…                       the same for the audio, one row per clip
    embeddings/ENCODER/image/SPLIT…                       the same for video frames, any number per clip
    embeddings/ENCODER/variants/SPLIT…                    the same for variants of the captions, any number per clip

So a new encoder needs no new shards. Letters: E embedding size.
"""

import functools
import math
import os
import pathlib
import uuid
from collections.abc import Callable
from concurrent import futures
from typing import Any, Literal

import numpy as np

from audiosep_jax.data.caption_variants import variants_digest
from audiosep_jax.data.layout import SplitInfo
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.base import Identity, comparable
from audiosep_jax.errors import DataError, EncoderMismatchError
from audiosep_jax.storage.json_files import read_json
from audiosep_jax.storage.npy_files import read_npy, read_npy_header
from audiosep_jax.storage.system import most_open_files

Modality = Literal['text', 'audio', 'image', 'variants']

# Embeddings that an encoder does not make, so that no command is suggested for them.
_UNAVAILABLE = {('clap', 'image'), ('clip', 'audio')} | {
    (encoder, what) for encoder in ('words', 'wordllama', 'minilm') for what in ('audio', 'image')
}


def cache_directory(directory: str | os.PathLike, encoder_name: str, what: Modality = 'text') -> pathlib.Path:
    """Returns the folder of one encoder's embeddings of a dataset's captions, audio, video frames or variants."""
    folder = pathlib.Path(directory) / 'embeddings' / encoder_name
    return folder if what == 'text' else folder / what


def cache_paths(
    directory: str | os.PathLike, encoder_name: str, info: SplitInfo, shard: int, what: Modality = 'text'
) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the paths of one shard's files: (rows, offsets)."""
    folder = cache_directory(directory, encoder_name, what)
    stem = f'{info.split}-{shard:05d}-of-{info.num_shards:05d}'
    return folder / f'{stem}.npy', folder / f'{stem}.offsets.npy'


def content_id(directory: str | os.PathLike, info: SplitInfo, what: Modality = 'text') -> str:
    """Returns what identifies the inputs of a split's embeddings: its build, and for variants the texts as well.

    Raises:
        DataError: the file with the variants is damaged.
    """
    return f'{info.content}-{variants_digest(directory)}' if what == 'variants' else info.content


def embed_command(directory: str | os.PathLike, encoder_name: str, what: Modality = 'text') -> str:
    """Returns the command that makes the embeddings, for messages."""
    flag = '' if what == 'text' else f' --what {what}'
    return f'`python -m data_prep embed {directory} --encoder {encoder_name}{flag}`'


def cached_encoders(directory: str | os.PathLike) -> list[str]:
    """Returns the names of the encoders with embeddings of a whole split, or if there are none, of those begun."""
    folders = sorted(path.parent for path in pathlib.Path(directory).glob('embeddings/*/encoder.json'))
    return [folder.name for folder in folders if _has_whole_split(folder)] or [folder.name for folder in folders]


def _has_whole_split(folder: pathlib.Path) -> bool:
    for path in folder.rglob('*.json'):
        try:
            state = read_json(path)
        except DataError:  # reported when this encoder is used
            continue
        if isinstance(state, dict) and state.get('complete'):
            return True
    return False


def read_encoder_identity(directory: str | os.PathLike, encoder_name: str) -> dict[str, Any]:
    """Returns the identity in `encoder.json`. Raises DataError, with the command to run, if there is no such cache."""
    path = cache_directory(directory, encoder_name) / 'encoder.json'
    if not path.is_file():
        raise DataError(
            f'{directory}: no embeddings of encoder {encoder_name!r}: run {embed_command(directory, encoder_name)}'
        )
    return read_json(path, Identity, remedy=f'not an encoder identity: delete {path.parent} and embed again')


def check_same_encoder(
    where: str | os.PathLike, found: dict[str, Any], expected: dict[str, Any], of: str, remedy: str = 'embed again'
) -> None:
    """Checks that two places have embeddings of the same encoder.

    Args:
        where: the first place, for the message.
        found: the identity of its encoder.
        expected: the identity of the second place's encoder.
        of: the second place, for the message.
        remedy: what the message tells the user to do.

    Raises:
        EncoderMismatchError: the encoders differ.
    """
    found, expected = comparable(found), comparable(expected)
    if found != expected:
        differences = ', '.join(
            f'{k} {found.get(k)!r} instead of {expected.get(k)!r}'
            for k in sorted({*found, *expected})
            if found.get(k) != expected.get(k)
        )
        raise EncoderMismatchError(f'{where}: embeddings of another encoder than {of} ({differences}): {remedy}')


def are_offsets(offsets: np.ndarray, num_clips: int, num_rows: int) -> bool:
    """Returns whether an array can be the offsets of a shard: it begins at 0, never falls, and ends at `num_rows`."""
    return (
        offsets.shape == (num_clips + 1,)
        and offsets.dtype == np.int64
        and offsets[0] == 0
        and bool((np.diff(offsets) >= 0).all())
        and offsets[-1] == num_rows
    )


class EmbeddingCache:
    """The cache of one split; `rows(n)` reads the embeddings of clip n.

    Args:
        shards: the split.
        encoder_name: the name of the cache, which is the encoder's.
        what: whether to read the embeddings of captions, audio, video frames or variants of the captions.

    Raises:
        DataError: the cache is missing, not complete, from another build of the split, or damaged.
    """

    def __init__(self, shards: Shards, encoder_name: str, what: Modality = 'text'):
        self._shards = shards
        self._folder = cache_directory(shards.directory, encoder_name, what)
        self.identity = read_encoder_identity(shards.directory, encoder_name)
        # For weights from a path, the encoder's name would mean the official ones.
        self._embed = embed_command(shards.directory, self.identity.get('source') or encoder_name, what)
        self._what = what
        # Kept as strings, because to join paths took longer than to read a row.
        paths = [
            cache_paths(shards.directory, encoder_name, shards.info, shard, what)
            for shard in range(len(shards.info.shard_lengths))
        ]
        self._paths = [(str(rows), str(offsets)) for rows, offsets in paths]
        self._owner = uuid.uuid4().hex  # distinguishes this object's files from those that were made again since
        self._check()

    def _check(self) -> None:
        info = self._shards.info
        done = self._folder / f'{info.split}.json'
        if not done.is_file():
            if (self.identity['name'], self._what) in _UNAVAILABLE:
                raise DataError(
                    f'{self._shards.directory}: encoder {self.identity["name"]!r} gives no embeddings of {self._what}: '
                    'use clap (audio) or clip (image) for all of its embeddings'
                )
            raise DataError(f'{self._folder}: no complete embeddings of split {info.split!r}: run {self._embed}')
        content = content_id(self._shards.directory, info, self._what)
        if read_json(done, remedy=f'run {self._embed}') != {'content': content, 'complete': True}:
            inputs = 'other variants' if self._what == 'variants' else 'another build'
            raise DataError(
                f'{self._folder}: unfinished, or embeddings of {inputs} of split {info.split!r}: run {self._embed}'
            )
        with futures.ThreadPoolExecutor(16) as pool:  # thousands of files, perhaps over a network
            for problem in pool.map(self._problem, range(len(info.shard_lengths))):
                if problem:
                    raise DataError(problem)

    def _problem(self, shard: int) -> str | None:
        try:
            rows, offsets = self._open(shard)
        except DataError as error:
            return str(error)
        if len(rows.shape) != 2 or rows.shape[1] != self.identity['embedding_size'] or rows.dtype != np.float16:
            return f'{self._folder}: shard {shard} is {rows.dtype} {rows.shape}: delete it and run {self._embed}'
        # Every clip has captions and audio, and so at least one row; not all have frames or variants.
        least = 0 if self._what in ('image', 'variants') else 1
        length = self._shards.info.shard_lengths[shard]
        if not are_offsets(offsets, length, rows.shape[0]) or (np.diff(offsets) < least).any():
            return f'{self._folder}: shard {shard} does not fit its clips: delete it and run {self._embed}'
        return None

    def _open(self, shard: int) -> tuple['_Rows', np.ndarray]:
        rows, offsets = self._paths[shard]
        try:
            return _shared_files()(rows, offsets, self._owner)
        except (OSError, ValueError) as error:
            raise DataError(
                f'{rows}: embeddings are missing or damaged ({error}): run {self._embed}, which makes them again'
            ) from error

    def rows(self, index: int) -> np.ndarray:
        """Returns the embeddings of clip `index`: float16 [captions, 1, frames or variants, E].

        Raises:
            DataError: the file was cut short after it was opened.
        """
        shard, position = self._shards.locate(index)
        rows, offsets = self._open(shard)
        try:
            return rows.read(int(offsets[position]), int(offsets[position + 1]))
        except (OSError, ValueError) as error:
            raise DataError(f'{self._paths[shard][0]}: cannot be read ({error}): run {self._embed}') from error


class _Rows:
    """The rows of a .npy file, which is read and not memory-mapped.

    All pages of a map that were ever read, and those that the system reads ahead, count as this process's memory: 2 GB
    for an AudioSet.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a .npy file of numbers, or not as long as its header says.
    """

    def __init__(self, path: str):
        self._file = os.open(path, os.O_RDONLY)
        with open(self._file, 'rb', closefd=False) as file:
            header = read_npy_header(file)
        self.shape, self.dtype, self._start = header.shape, header.dtype, header.start
        if header.fortran_order or os.fstat(self._file).st_size != header.start + header.num_bytes:
            raise ValueError('not as long as its header says')
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])

    def read(self, first: int, end: int) -> np.ndarray:
        """Returns rows, [end - first, E]. Raises OSError, or ValueError if the file has become shorter."""
        data = os.pread(self._file, (end - first) * self._row_bytes, self._start + first * self._row_bytes)
        return np.frombuffer(data, self.dtype).reshape(end - first, *self.shape[1:])

    def __del__(self) -> None:
        # Not closed when the cache drops it, because other threads may still be reading.
        if hasattr(self, '_file'):
            os.close(self._file)


@functools.cache
def _shared_files() -> Callable[[str, str, str], tuple[_Rows, np.ndarray]]:
    """Returns the cache of open files, by path, for all embedding caches.

    It takes a quarter of the files that may be open; the shards take half.
    """
    return functools.lru_cache(most_open_files() // 4)(_open_files)


def _open_files(rows: str, offsets: str, owner: str) -> tuple[_Rows, np.ndarray]:
    return _Rows(rows), read_npy(offsets)  # in memory, because every clip needs them: 16 kB a shard
