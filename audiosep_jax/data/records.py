"""Clips on disk: the schema of their records, and the codecs of their audio.

A dataset directory, which `data_prep build` writes and `data_prep verify` checks, contains:

    features.json, dataset_info.json              the TFDS description: `tfds.builder_from_directory(DIR)` reads it
    NAME-SPLIT.array_record-00000-of-00128        ArrayRecord shards of serialized `tf.train.Example`s
    splits/SPLIT.json                             `SplitInfo`: everything that training has to know
    splits/SPLIT-00000-of-00128.json              for each shard: its clips' captions, its checksum, the clips left out
    splits/SPLIT-skipped.csv                      the list of all clips left out
    embeddings/ENCODER/…                          see embeddings.py

Reading needs neither TensorFlow nor a TFDS builder. Letters: T samples.
"""

import dataclasses
import io
from typing import Any, Literal

import numpy as np
import soundfile
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from audiosep_jax.audio.samples import to_int16
from audiosep_jax.errors import DataError
from audiosep_jax.storage.memory import memory_file

Codec = Literal['flac', 'pcm16']

# The schema of `tf.train.Example` (tensorflow/core/example/feature.proto), whose wire format is fixed. Generated code
# (example_pb2.py) works with two major versions of protobuf only, and this project allows more. TFDS has
# the schema too, but loads its modules lazily under locks: two threads that decode their first records at the same
# moment can deadlock (seen with TFDS 4.9.10), and each worker process would take 0.3 s longer to start.
_EXAMPLE_SCHEMA = """
name: "audiosep_example.proto" package: "audiosep" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature"
  oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 oneof_index: 0 type: TYPE_MESSAGE type_name: ".audiosep.BytesList" }
  field { name: "float_list" number: 2 oneof_index: 0 type: TYPE_MESSAGE type_name: ".audiosep.FloatList" }
  field { name: "int64_list" number: 3 oneof_index: 0 type: TYPE_MESSAGE type_name: ".audiosep.Int64List" }
}
message_type {
  name: "Features"  # map<string, Feature> feature = 1
  field {
    name: "feature" number: 1 label: LABEL_REPEATED
    type: TYPE_MESSAGE type_name: ".audiosep.Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry"
    options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".audiosep.Feature" }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 type: TYPE_MESSAGE type_name: ".audiosep.Features" }
}
"""


def _example_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_EXAMPLE_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('audiosep.Example'))


_Example = _example_class()


@dataclasses.dataclass(frozen=True)
class Record:
    """One clip. Depending on `codec`, `audio` is a complete mono FLAC file or little-endian 16-bit samples."""

    id: str
    audio: bytes
    codec: Codec
    sample_rate: int  # Hz
    num_samples: int
    captions: tuple[str, ...]  # at least one; training draws one of them for each example
    labels: tuple[str, ...] = ()
    source: str = ''  # where the clip is from: a file, a corpus
    frames: tuple[bytes, ...] = ()  # evenly spaced frames of its video, as JPEG


def features() -> Any:
    """Returns the TFDS features of a record. Audio is plain bytes, because `tfds.features.Audio` needs TensorFlow."""
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
            # With `Sequence`, TFDS could not read splits that were built before there were frames.
            'frames': tfds.features.Tensor(shape=(None,), dtype=np.object_),
        }
    )


def record_to_bytes(record: Record) -> bytes:
    """Returns the record as a serialized `tf.train.Example`, with the same bytes every time."""
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
    # Otherwise protobuf orders the map by a hash that differs between processes, and shards would not be reproducible.
    return example.SerializeToString(deterministic=True)


def record_from_bytes(data: bytes) -> Record:
    """Returns the record that `record_to_bytes` serialized. Raises DataError if the bytes are not such a record."""
    try:
        found = _Example.FromString(data).features.feature
        return Record(
            id=found['id'].bytes_list.value[0].decode(),
            audio=found['audio'].bytes_list.value[0],
            codec=found['codec'].bytes_list.value[0].decode(),
            sample_rate=found['sample_rate'].int64_list.value[0],
            num_samples=found['num_samples'].int64_list.value[0],
            captions=tuple(v.decode() for v in found['captions'].bytes_list.value),
            labels=tuple(v.decode() for v in found['labels'].bytes_list.value),
            source=found['source'].bytes_list.value[0].decode(),
            # Shards of earlier versions have no frames; a protobuf map gives an empty feature for a missing key.
            frames=tuple(found['frames'].bytes_list.value),
        )
    except (DecodeError, IndexError, UnicodeDecodeError) as error:
        raise DataError(f'not a record of this format: {error}') from error


def encode_audio(waveform: np.ndarray, sample_rate: int, codec: Codec) -> bytes:
    """Encodes a float waveform [T] as the audio of a record; see `to_int16`."""
    samples = to_int16(waveform)
    if codec == 'pcm16':
        return samples.astype('<i2').tobytes()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format='FLAC', subtype='PCM_16')
    return buffer.getvalue()


def decode_audio(record: Record, start: int = 0, count: int | None = None) -> np.ndarray:
    """Decodes `count` samples from `start` on, by default all, and little more than those; returns int16 [count].

    Raises:
        DataError: the audio does not decode, or is not as long as the record says.
        ValueError: the clip has no such samples.
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
