"""Embedding caches: the captions of a split through one query encoder, beside the shards they belong to.

    embeddings/ENCODER/encoder.json                       the encoder's identity: what may be mixed with what
    embeddings/ENCODER/SPLIT-00000-of-00128.npy           float16 [rows, E], one row per caption, in the shard's order
    embeddings/ENCODER/SPLIT-00000-of-00128.offsets.npy   int64 [clips + 1]: clip n has the rows offsets[n]:offsets[n+1]
    embeddings/ENCODER/SPLIT.json                         written last: which build of the split this was made from
    embeddings/ENCODER/audio/SPLIT…                       the same of the sounds: a row per clip
    embeddings/ENCODER/image/SPLIT…                       the same of the pictures: a row per frame, of some clips none

A new encoder never rewrites audio. Letters: E embedding size.
"""

import functools
import os
import pathlib
import uuid
from concurrent import futures
from typing import Any, Literal

import numpy as np

from audiosep_jax.data.layout import SplitInfo, read_json
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.base import comparable
from audiosep_jax.errors import DataError, EncoderMismatchError
from audiosep_jax.storage.system import most_open_files

Modality = Literal['text', 'audio', 'image']


_CANNOT = {('words', 'audio'), ('words', 'image'), ('clap', 'image'), ('clip', 'audio')}


def cache_directory(directory: str | os.PathLike, encoder_name: str, what: Modality = 'text') -> pathlib.Path:
    """The folder of one encoder's embeddings of a dataset, of its captions, sounds or pictures."""
    folder = pathlib.Path(directory) / 'embeddings' / encoder_name
    return folder if what == 'text' else folder / what


def cache_paths(
    directory: str | os.PathLike, encoder_name: str, info: SplitInfo, shard: int, what: Modality = 'text'
) -> tuple[pathlib.Path, pathlib.Path]:
    """(rows, offsets) files of one shard."""
    folder = cache_directory(directory, encoder_name, what)
    stem = f'{info.split}-{shard:05d}-of-{info.num_shards:05d}'
    return folder / f'{stem}.npy', folder / f'{stem}.offsets.npy'


def embed_command(directory: str | os.PathLike, encoder_name: str, what: Modality = 'text') -> str:
    """What the user is told to run."""
    flag = '' if what == 'text' else f' --what {what}'
    return f'`python -m data_prep embed {directory} --encoder {encoder_name}{flag}`'


def cached_encoders(directory: str | os.PathLike) -> list[str]:
    """The names of the encoders that a dataset has embeddings of: of a whole split; where none has, what was begun."""
    folders = sorted(path.parent for path in pathlib.Path(directory).glob('embeddings/*/encoder.json'))
    return [folder.name for folder in folders if _has_whole_split(folder)] or [folder.name for folder in folders]


def _has_whole_split(folder: pathlib.Path) -> bool:
    for path in folder.rglob('*.json'):
        try:
            state = read_json(path)
        except DataError:  # of another encoder, perhaps: whoever asks for it is told
            continue
        if isinstance(state, dict) and state.get('complete'):
            return True
    return False


def read_encoder_identity(directory: str | os.PathLike, encoder_name: str) -> dict[str, Any]:
    """What `encoder.json` records. Raises DataError, with the command to run, where there is no such cache."""
    path = cache_directory(directory, encoder_name) / 'encoder.json'
    if not path.is_file():
        raise DataError(
            f'{directory}: no embeddings of encoder {encoder_name!r}: run {embed_command(directory, encoder_name)}'
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
    """The cache of one split; `rows(n)` reads the embeddings of clip n's captions, sound or pictures.

    Raises:
        DataError: no cache, an unfinished one, one of another build, damaged or of another size than the shards.
    """

    def __init__(self, shards: Shards, encoder_name: str, what: Modality = 'text'):
        self._shards = shards
        self._folder = cache_directory(shards.directory, encoder_name, what)
        self.identity = read_encoder_identity(shards.directory, encoder_name)
        # Of weights from a path the name alone would mean others.
        self._embed = embed_command(shards.directory, self.identity.get('source') or encoder_name, what)
        self._what = what
        # Kept as text: to put paths together took longer than to read a row.
        self._paths = [
            tuple(map(str, cache_paths(shards.directory, encoder_name, shards.info, shard, what)))
            for shard in range(len(shards.info.shard_lengths))
        ]
        self._owner = uuid.uuid4().hex  # as in Shards
        self._check()

    def _check(self) -> None:
        info = self._shards.info
        done = self._folder / f'{info.split}.json'
        if not done.is_file():
            if (self.identity['name'], self._what) in _CANNOT:
                raise DataError(
                    f'{self._shards.directory}: encoder {self.identity["name"]!r} gives no embeddings of {self._what}: '
                    'use clap (audio) or clip (image) for all of its embeddings'
                )
            raise DataError(f'{self._folder}: no complete embeddings of split {info.split!r}: run {self._embed}')
        if read_json(done) != {'content': info.content, 'complete': True}:
            raise DataError(
                f'{self._folder}: unfinished, or embeddings of another build of split {info.split!r}: run {self._embed}'
            )
        with futures.ThreadPoolExecutor(16) as pool:  # as for shards: thousands of files, perhaps over a network
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
        # Every clip has a caption and a sound, so every clip has a row; a picture only those of videos.
        least = 0 if self._what == 'image' else 1
        length = self._shards.info.shard_lengths[shard]
        if len(offsets) != length + 1 or offsets[0] or offsets[-1] != rows.shape[0] or (np.diff(offsets) < least).any():
            return f'{self._folder}: shard {shard} does not fit its clips: delete it and run {self._embed}'
        return None

    def _open(self, shard: int) -> tuple['_Rows', np.ndarray]:
        rows, offsets = self._paths[shard]
        try:
            return _shared_files()(rows, offsets, self._owner)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f'{rows}: embeddings are missing or damaged ({error}): run {self._embed}, which makes them again'
            ) from error

    def rows(self, index: int) -> np.ndarray:
        """float16 [captions, 1 or frames of clip `index`, E]. Raises DataError for a file cut short meanwhile."""
        shard, position = self._shards.locate(index)
        rows, offsets = self._open(shard)
        try:
            return rows.read(int(offsets[position]), int(offsets[position + 1]))
        except (OSError, ValueError) as error:
            raise DataError(f'{self._paths[shard][0]}: cannot be read ({error}): run {self._embed}') from error


class _Rows:
    """The rows of a .npy file, read and not mapped: of a map all that was ever touched, and what the system reads with
    it, counts as this process's memory, 2 GB for an AudioSet."""

    def __init__(self, path: str):
        self._file = os.open(path, os.O_RDONLY)
        with open(self._file, 'rb', closefd=False) as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read_header:
                raise ValueError(f'format {version} of .npy')
            self.shape, fortran_order, self.dtype = read_header[version](file)
            self._start = file.tell()
            self._row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
            if fortran_order or os.fstat(self._file).st_size != self._start + self._row_bytes * self.shape[0]:
                raise ValueError('not as long as its header says')

    def read(self, first: int, end: int) -> np.ndarray:
        """[end - first, E]. Raises OSError, or ValueError for a file that has become shorter."""
        data = os.pread(self._file, (end - first) * self._row_bytes, self._start + first * self._row_bytes)
        return np.frombuffer(data, self.dtype).reshape(end - first, *self.shape[1:])

    def __del__(self):
        # Not closed by whoever drops it: other threads may be reading.
        if hasattr(self, '_file'):
            os.close(self._file)


@functools.cache
def _shared_files():
    """The open files of all caches, kept by path: a pickled cache opens its files anew. A quarter of those that may be
    open; the shards have half."""
    return functools.lru_cache(most_open_files() // 4)(_open_files)


def _open_files(rows: str, offsets: str, owner: str) -> tuple[_Rows, np.ndarray]:
    return _Rows(rows), np.load(offsets)  # 16 kB of offsets a shard, looked up for every clip
