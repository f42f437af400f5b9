"""What a clip is on disk: the record schema, its audio codecs, and random access to the shards of a split.

A dataset directory holds (`data_prep build` writes it, `data_prep verify` checks it):

    features.json, dataset_info.json              the TFDS description: `tfds.builder_from_directory(DIR)` reads it
    NAME-SPLIT.array_record-00000-of-00128        ArrayRecord shards of serialized `tf.train.Example`s
    splits/SPLIT.json                             `SplitInfo`: all that training has to know
    splits/SPLIT-00000-of-00128.json              of each shard: its clips' captions, its checksum, the clips left out
    splits/SPLIT-skipped.csv                      all clips left out, in one list
    embeddings/ENCODER/…                          see embedding_cache.py

Reading needs neither TensorFlow nor a TFDS builder. Letters: T samples.
"""

import bisect
import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import threading
import uuid
from concurrent import futures
from typing import Any, Literal

import numpy as np
import soundfile
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from audiosep_jax.config import from_dict, to_dict
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.buckets import as_path, is_bucket, write_bytes
from audiosep_jax.storage.system import most_open_files

FORMAT_VERSION = 1
INT16_SCALE = 32768  # float audio in [-1, 1] is int16 / INT16_SCALE, as libsndfile has it: 16-bit files pass unchanged.
Codec = Literal['flac', 'pcm16']


def _example_message():
    """The message class of `tf.train.Example`, whose wire format is fixed (tensorflow/core/example/feature.proto).

    TFDS has it too, but loads its modules lazily under locks: two threads that decode their first records at the same
    moment can wait for each other for ever (seen with TFDS 4.9.10), and each worker process would spend 0.3 s.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name='audiosep_example.proto', package='audiosep', syntax='proto3')

    def message(name: str, *fields: tuple, into=file.message_type):
        added = into.add(name=name)
        for number, (field_name, kind, repeated) in enumerate(fields, start=1):
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.field.add(name=field_name, number=number, label=label, type=field.TYPE_MESSAGE, type_name=kind)
            else:
                added.field.add(name=field_name, number=number, label=label, type=kind)
        return added

    message('BytesList', ('value', field.TYPE_BYTES, True))
    message('FloatList', ('value', field.TYPE_FLOAT, True))
    message('Int64List', ('value', field.TYPE_INT64, True))
    lists = [(f'{kind.lower()}_list', f'.audiosep.{kind}List', False) for kind in ('Bytes', 'Float', 'Int64')]
    feature = message('Feature', *lists)
    feature.oneof_decl.add(name='kind')
    for one in feature.field:
        one.oneof_index = 0
    features = message('Features', ('feature', '.audiosep.Features.FeatureEntry', True))
    entry = message(
        'FeatureEntry',
        ('key', field.TYPE_STRING, False),
        ('value', '.audiosep.Feature', False),
        into=features.nested_type,
    )
    entry.options.map_entry = True
    message('Example', ('features', '.audiosep.Features', False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('audiosep.Example'))


_Example = _example_message()


@dataclasses.dataclass(frozen=True)
class Record:
    """One clip. `audio` is a whole mono FLAC file, or little-endian 16-bit samples, as `codec` says."""

    id: str
    audio: bytes
    codec: Codec
    sample_rate: int  # Hz
    num_samples: int
    captions: tuple[str, ...]  # at least one; training draws one of them per example
    labels: tuple[str, ...] = ()
    source: str = ''  # where the clip came from: a file, a corpus
    frames: tuple[bytes, ...] = ()  # pictures of its video, evenly spaced, as JPEG


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """`splits/SPLIT.json`. Written with `complete=False` when a build begins: then it is the plan that a resumed build
    must agree with; the counts are filled in when the last shard is there."""

    name: str  # of the dataset, in TFDS's sense
    split: str
    sample_rate: int  # Hz
    codec: Codec
    clips_per_shard: int  # input clips; unreadable ones are left out, so a shard may hold fewer
    num_inputs: int
    fingerprint: str  # of the inputs and settings that decide the shards' bytes
    complete: bool = False
    shard_lengths: tuple[int, ...] = ()
    num_captions: int = 0
    num_samples: int = 0
    num_skipped: int = 0
    num_bytes: int = 0  # of the shard files
    content: str = ''  # of the finished split: the fingerprint, and which clips were left out
    format_version: int = FORMAT_VERSION

    @property
    def num_shards(self) -> int:
        """Of the finished split, also where the last shards hold no clip."""
        return -(-self.num_inputs // self.clips_per_shard)

    @property
    def num_clips(self) -> int:
        """Without those that were left out; 0 before the split is complete."""
        return sum(self.shard_lengths)


def features():
    """The TFDS features of a record. Audio is plain bytes: `tfds.features.Audio` would need TensorFlow."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            'id': text(),
            'audio': tfds.features.Tensor(shape=(), dtype=np.object_),
            'codec': text(),
            'sample_rate': tfds.features.Scalar(dtype=np.int64),
            'num_samples': tfds.features.Scalar(dtype=np.int64),
            'captions': tfds.features.Sequence(text()),
            'labels': tfds.features.Sequence(text()),
            'source': text(),
            # No `Sequence`: of a split that was built before there were frames, TFDS could read nothing then.
            'frames': tfds.features.Tensor(shape=(None,), dtype=np.object_),
        }
    )


def record_to_bytes(record: Record) -> bytes:
    """The record as a serialized `tf.train.Example`, the same bytes every time."""
    example = _Example()
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        feature = example.features.feature[field.name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            values = value if isinstance(value, tuple) else (value,)
            feature.bytes_list.value.extend(v if isinstance(v, bytes) else v.encode() for v in values)
            feature.bytes_list.SetInParent()  # an empty list is still a list of bytes
    # Without this, protobuf orders the map by a hash that is salted per process: equal inputs, different shards.
    return example.SerializeToString(deterministic=True)


def record_from_bytes(data: bytes) -> Record:
    """The inverse of `record_to_bytes`. Raises DataError for bytes that are no record of ours."""
    try:
        found = _Example.FromString(data).features.feature
        many = {k: tuple(v.decode() for v in found[k].bytes_list.value) for k in ('captions', 'labels')}
        one = {k: found[k].bytes_list.value[0].decode() for k in ('id', 'codec', 'source')}
        numbers = {k: found[k].int64_list.value[0] for k in ('sample_rate', 'num_samples')}
        # Shards of earlier versions have no frames; asked for what it lacks, a map gives an empty feature.
        frames = tuple(found['frames'].bytes_list.value)
        return Record(audio=found['audio'].bytes_list.value[0], frames=frames, **one, **many, **numbers)
    except (DecodeError, IndexError, UnicodeDecodeError) as error:
        raise DataError(f'not a record of this format: {error}') from error


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """int16 [T] of a float waveform [T] in [-1, 1]; a louder one is attenuated as a whole, never wrapped or clipped."""
    scale = INT16_SCALE / max(float(np.abs(waveform).max(initial=0.0)), 1.0)
    return np.clip(np.rint(waveform * scale), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)


def encode_audio(waveform: np.ndarray, sample_rate: int, codec: Codec) -> bytes:
    """The audio bytes of a record from a float waveform [T]; see `to_int16`."""
    samples = to_int16(waveform)
    if codec == 'pcm16':
        return samples.astype('<i2').tobytes()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format='FLAC', subtype='PCM_16')
    return buffer.getvalue()


def decode_audio(record: Record, start: int = 0, count: int | None = None) -> np.ndarray:
    """int16 [count]: `count` samples from `start` on (all, by default), decoding little more than those.

    Raises:
        DataError: audio that does not decode, or is not as long as the record says.
    """
    count = record.num_samples - start if count is None else count
    if start < 0 or count < 0 or start + count > record.num_samples:
        raise ValueError(f'samples {start} to {start + count} of a clip of {record.num_samples}')
    if record.codec == 'pcm16':
        if len(record.audio) != 2 * record.num_samples:
            raise DataError(f'clip {record.id!r}: {len(record.audio)} bytes for {record.num_samples} 16-bit samples')
        return np.frombuffer(record.audio, '<i2', count, 2 * start).astype(np.int16)
    if record.codec != 'flac':
        raise DataError(f'clip {record.id!r}: unknown codec {record.codec!r}')
    try:
        with _opened(record.audio) as file:
            if (file.frames, file.channels) != (record.num_samples, 1):
                raise DataError(
                    f'clip {record.id!r}: its FLAC holds {file.frames} samples of {file.channels} channels, '
                    f'its record says {record.num_samples} of 1'
                )
            file.seek(start)
            samples = file.read(count, dtype='int16')
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(f'clip {record.id!r}: its FLAC does not decode: {error}') from error
    if len(samples) != count:
        raise DataError(f'clip {record.id!r}: its FLAC ends after {start + len(samples)} samples')
    return samples


def _opened(audio: bytes) -> soundfile.SoundFile:
    """As a file of the thread's own that lives in memory, which libsndfile reads by itself. Out of a BytesIO it asks
    Python a hundred times for a crop, and each time waits for the other threads: two threads read a tenth faster from
    a file, eight a fifth or more. Raises what SoundFile does."""
    if hasattr(os, 'memfd_create'):  # Linux
        try:
            return soundfile.SoundFile(_memory_file().holding(audio), closefd=False)
        except OSError:  # forbidden, or no memory left for it
            pass
    return soundfile.SoundFile(io.BytesIO(audio))


class _MemoryFile:
    """A file without a name, used again for one clip after the other: fresh memory would cost more than the copy."""

    def __init__(self):
        self.process = os.getpid()
        self._descriptor = os.memfd_create('audiosep-clip')
        self._size = 0

    def holding(self, data: bytes) -> int:
        """The descriptor, at the beginning of `data` alone. Raises OSError."""
        if len(data) < self._size:
            os.ftruncate(self._descriptor, len(data))
        self._size = os.pwrite(self._descriptor, data, 0)
        if self._size != len(data):
            raise OSError('no room in memory')
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        return self._descriptor

    def __del__(self):
        if hasattr(self, '_descriptor'):
            os.close(self._descriptor)


_of_thread = threading.local()


def _memory_file() -> _MemoryFile:
    file = getattr(_of_thread, 'file', None)
    if file is None or file.process != os.getpid():  # a forked process would share its parent's
        file = _of_thread.file = _MemoryFile()
    return file


def shard_path(directory: str | os.PathLike, info: SplitInfo, shard: int) -> pathlib.Path:
    """TFDS's name for a shard file."""
    file = f'{info.name}-{info.split}.array_record-{shard:05d}-of-{info.num_shards:05d}'
    return as_path(directory) / file


def summary_path(directory: str | os.PathLike, info: SplitInfo, shard: int) -> pathlib.Path:
    """JSON: `captions` (a list per clip, so that embedding need not read the audio), `skipped`, `num_samples`. Earlier
    versions lack: `ids`; `num_bytes` and `sha256` of the file; `labels` and `sources`, names with their numbers of
    clips."""
    return as_path(directory) / 'splits' / f'{info.split}-{shard:05d}-of-{info.num_shards:05d}.json'


def read_summary(directory: str | os.PathLike, info: SplitInfo, shard: int) -> dict[str, Any]:
    """Raises DataError for a summary that is missing, damaged or of another build."""
    path = summary_path(directory, info, shard)
    summary = read_json(path)
    if not isinstance(summary, dict) or summary.get('fingerprint') != info.fingerprint or 'captions' not in summary:
        raise DataError(f'{path}: not a summary of this build: delete it and run the same `data_prep build` again')
    return summary


def split_info_path(directory: str | os.PathLike, split: str) -> pathlib.Path:
    """JSON: the `SplitInfo`."""
    return as_path(directory) / 'splits' / f'{split}.json'


def split_names(directory: str | os.PathLike) -> list[str]:
    """The splits that a dataset directory has, complete or not."""
    found = (as_path(directory) / 'splits').glob('*.json')
    return sorted(p.stem for p in found if '-of-' not in p.stem)


def read_split_info(directory: str | os.PathLike, split: str) -> SplitInfo:
    """Raises DataError: no such dataset or split, or one written by a later version of this project."""
    path = split_info_path(directory, split)
    if not path.exists():
        if not as_path(directory).is_dir():
            raise DataError(f'{directory}: no such dataset directory (make one with `python -m data_prep build`)')
        names = split_names(directory)
        has = f'it has the splits {", ".join(names)}' if names else 'it was not made by `python -m data_prep build`'
        raise DataError(f'{directory}: no split {split!r} here: {has}')
    values = read_json(path)
    if not isinstance(values, dict) or values.get('format_version') != FORMAT_VERSION:
        raise DataError(f'{path}: not a split description of format {FORMAT_VERSION}: use the version that built it')
    try:
        return from_dict(SplitInfo, values)
    except ConfigError as error:
        raise DataError(f'{path}: damaged split description: {error}') from error


def write_split_info(directory: str | os.PathLike, info: SplitInfo) -> None:
    """Atomically; raises OSError."""
    write_json(split_info_path(directory, info.split), to_dict(info))


def read_json(path: pathlib.Path) -> Any:
    """Raises DataError for a file that is missing or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: cannot be read as JSON: {error}') from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Atomically: a reader, or a build killed here, sees the old file or the new one. Raises OSError."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + '\n').encode())


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
