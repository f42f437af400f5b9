"""Random access to the clips of a split."""

import bisect
import functools
import itertools
import os
import pathlib
import uuid
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.data.layout import read_split_info, shard_path
from audiosep_jax.data.records import Record, decode_audio, record_from_bytes
from audiosep_jax.errors import DataError
from audiosep_jax.storage.buckets import is_bucket
from audiosep_jax.storage.system import most_open_files


class Shards:
    """Random access to the clips of one complete split; `len()` is their number.

    Threads may share an instance. A copy made by pickling opens the files again.

    Args:
        directory: the dataset.
        split: the split's name.
        check: whether to check all shard files now; without it, the caller may look for `problem`s.

    Raises:
        DataError: there is no such split, its build is not complete, a shard is missing, cut short or from another
            build, or the dataset is in a bucket.
    """

    def __init__(self, directory: str | os.PathLike, split: str = 'train', *, check: bool = True):
        if is_bucket(directory):
            raise DataError(
                f'{directory}: is in a bucket: bring it here with --stage-dir, or `python -m data_prep stage`'
            )
        self.directory = pathlib.Path(directory)
        self.info = read_split_info(directory, split)
        if not self.info.complete:
            raise DataError(f'{directory}: split {split!r} is not complete: run the same `data_prep build` again')
        self._ends = list(itertools.accumulate(self.info.shard_lengths))
        # Distinguishes this object's readers from those of files that were built again since.
        self._owner = uuid.uuid4().hex
        # Kept as strings, because to join a path took a tenth of the time of reading a record.
        self._files = [str(self.path(shard)) for shard in range(len(self.info.shard_lengths))]
        if check:
            self._check_shards()

    def __len__(self) -> int:
        return self.info.num_clips

    def path(self, shard: int) -> pathlib.Path:
        """Returns the path of a shard file."""
        return shard_path(self.directory, self.info, shard)

    def locate(self, index: int) -> tuple[int, int]:
        """Returns where clip `index` of the split is: (shard, position in it)."""
        if not 0 <= index < len(self):
            raise IndexError(f'clip {index} of {len(self)}')
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self.info.shard_lengths[shard])

    def read(self, index: int) -> Record:
        """Returns the record of clip `index` of the split.

        Raises:
            DataError: the bytes are not a record, or do not match the checksum that ArrayRecord wrote.
            IndexError: there is no such clip.
        """
        shard, position = self.locate(index)
        try:
            return record_from_bytes(_shared_reader(self._files[shard], self._owner).read([position])[0])
        except (RuntimeError, IndexError, DataError) as error:
            reason = ' '.join(str(error).split())
            raise DataError(f'{self.path(shard)}: record {position} cannot be read: {reason}') from error

    def waveform(self, index: int) -> np.ndarray:
        """Returns the whole clip as float32 [T] in [-1, 1), at the split's sample rate. Raises the errors of `read`."""
        return decode_audio(self.read(index)).astype(np.float32) / INT16_SCALE

    def problem(self, shard: int) -> str | None:
        """Returns what is wrong with a shard file as a whole and how to fix it, or None if nothing is."""
        path, expected = self.path(shard), self.info.shard_lengths[shard]
        again = 'run the same `data_prep build` again: it makes only the missing shards'
        if not path.is_file():
            return f'{path}: shard is missing: {again}'
        found = count_records(path)
        if found != expected:
            return f'{path}: shard is damaged or cut short ({found} of {expected} records found): delete it and {again}'
        return None

    def _check_shards(self) -> None:
        with futures.ThreadPoolExecutor(16) as pool:  # on a network mount an open takes tens of milliseconds
            for problem in pool.map(self.problem, range(len(self.info.shard_lengths))):
                if problem:
                    raise DataError(problem)


def count_records(path: pathlib.Path) -> int:
    """Returns the number of records in a shard file; 0 if it is missing, cut short or not a shard file.

    ArrayRecord opens such a file silently, as one of 0 records, and raises only when it is closed.
    """
    reader = _new_reader(str(path))
    count = reader.num_records()
    try:
        reader.close()
    except RuntimeError:
        return 0
    return count


def _new_reader(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    # Grain's own settings for random access, in which reading ahead would fetch neighbors that are not needed.
    return ArrayRecordReader(path, 'readahead_buffer_size:0', file_reader_buffer_size=32768)


def _shared_reader(path: str, owner: str) -> Any:
    """Returns a reader that threads share. When the cache drops it, it is closed after its last user."""
    return _readers()(path, owner)


@functools.cache
def _readers() -> Callable[[str, str], Any]:
    """Returns the cache of readers for all datasets.

    An AudioSet alone has 1,000 shards, and to open one takes longer than to read from it.
    """
    return functools.lru_cache(most_open_files() // 2)(lambda path, owner: _new_reader(path))
