"""Random access to the clips of a split."""

import bisect
import functools
import itertools
import os
import pathlib
import uuid
from concurrent import futures

import numpy as np

from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.data.layout import read_split_info, shard_path
from audiosep_jax.data.records import Record, decode_audio, record_from_bytes
from audiosep_jax.errors import DataError
from audiosep_jax.storage.buckets import is_bucket
from audiosep_jax.storage.system import most_open_files


class Shards:
    """Random access to the clips of one complete split; `len()` is their number. Threads may share one, and a pickled
    one opens its files anew. `check=False` leaves it to the caller to look for `problem`s.

    Raises:
        DataError: no such split, an unfinished build, a shard that is missing, cut short or of another build; one that
            is in a bucket.
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
        # Keeps the readers of files that were made anew since apart from those of this object.
        self._owner = uuid.uuid4().hex
        # Kept as text: to put a path together took a tenth of the time of reading a record.
        self._files = [str(self.path(shard)) for shard in range(len(self.info.shard_lengths))]
        if check:
            self._check_shards()

    def __len__(self) -> int:
        return self.info.num_clips

    def path(self, shard: int) -> pathlib.Path:
        """The file of a shard."""
        return shard_path(self.directory, self.info, shard)

    def locate(self, index: int) -> tuple[int, int]:
        """Clip `index` of the split as (shard, position in it)."""
        if not 0 <= index < len(self):
            raise IndexError(f'clip {index} of {len(self)}')
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self.info.shard_lengths[shard])

    def read(self, index: int) -> Record:
        """Raises DataError for a record whose bytes were damaged after they were written (ArrayRecord checksums them)
        or are not a record."""
        shard, position = self.locate(index)
        try:
            return record_from_bytes(_shared_reader(self._files[shard], self._owner).read([position])[0])
        except (RuntimeError, IndexError, DataError) as error:
            reason = ' '.join(str(error).split())
            raise DataError(f'{self.path(shard)}: record {position} cannot be read: {reason}') from error

    def waveform(self, index: int) -> np.ndarray:
        """float32 [T] in [-1, 1): the whole clip, at the split's sample rate. Raises DataError as `read`."""
        return decode_audio(self.read(index)).astype(np.float32) / INT16_SCALE

    def problem(self, shard: int) -> str | None:
        """What is wrong with a shard file as a whole, and what to do about it; None if nothing is."""
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
    """The records of a shard file; 0 where it is missing, cut short or garbage: ArrayRecord opens such a file without a
    word, as one of 0 records, and complains when it is closed."""
    reader = _new_reader(str(path))
    count = reader.num_records()
    try:
        reader.close()
    except RuntimeError:
        return 0
    return count


def _new_reader(path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    # Grain's own settings for random access: reading ahead would fetch the neighbours, which nobody asked for.
    return ArrayRecordReader(path, 'readahead_buffer_size:0', file_reader_buffer_size=32768)


def _shared_reader(path: str, owner: str):
    """One that threads share. Dropped from here, it closes when the last of them is done with it."""
    return _readers()(path, owner)


@functools.cache
def _readers():
    # Of all datasets together: an AudioSet alone has 1,000 shards, and to open one takes longer than to read from it.
    return functools.lru_cache(most_open_files() // 2)(lambda path, owner: _new_reader(path))
