"""What a clip is on disk: the record schema, its audio codecs, and random access to the shards of a split.

A dataset directory holds (`data_prep build` writes it, `data_prep verify` checks it):

    features.json, dataset_info.json              the TFDS description: `tfds.builder_from_directory(DIR)` reads it
    NAME-SPLIT.array_record-00000-of-00128        ArrayRecord shards of serialized `tf.train.Example`s
    splits/SPLIT.json                             `SplitInfo`: all that training has to know
    splits/SPLIT-00000-of-00128.json              of each shard: its clips' captions, its checksum, the clips left out
    splits/SPLIT-skipped.csv                      all clips left out, in one list
    embeddings/ENCODER/…                          see embeddings.py

Reading needs neither TensorFlow nor a TFDS builder. Letters: T samples.
"""

import dataclasses
import io
from typing import Literal

import numpy as np
import soundfile
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from audiosep_jax.audio.samples import to_int16
from audiosep_jax.errors import DataError
from audiosep_jax.storage.memory import memory_file

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
        with _open_flac(record.audio) as file:
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


def _open_flac(audio: bytes) -> soundfile.SoundFile:
    """Opens FLAC bytes; raises what SoundFile does."""
    try:
        return soundfile.SoundFile(memory_file(audio), closefd=False)
    except OSError:
        return soundfile.SoundFile(io.BytesIO(audio))
