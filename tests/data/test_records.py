import dataclasses
import os
import subprocess
import sys
import threading
from concurrent import futures

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small_dataset import SAMPLE_RATE, build_small, small_clips, tone

from audiosep_jax.audio.samples import to_int16
from audiosep_jax.data import records
from audiosep_jax.data.records import (
    Record,
    decode_audio,
    encode_audio,
    features,
    record_from_bytes,
    record_to_bytes,
)
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError
from audiosep_jax.storage import memory
from data_prep.build import build_shards


def record_of(waveform: np.ndarray, codec: str = 'flac') -> Record:
    audio = encode_audio(waveform, SAMPLE_RATE, codec)
    return Record('a', audio, codec, SAMPLE_RATE, len(waveform), ('a siren', 'sirène'), (), 'x.wav')


@given(st.binary(), st.lists(st.text(), min_size=1), st.lists(st.text()), st.lists(st.binary()), st.integers(1, 2**31))
def test_record_survives_serialization(audio, captions, labels, frames, rate):
    record = Record('id', audio, 'pcm16', rate, 3, tuple(captions), tuple(labels), '', tuple(frames))
    assert record_from_bytes(record_to_bytes(record)) == record


@pytest.mark.parametrize('frames', [(), (b'\xff\xd8 one', b'\xff\xd8 two')])
def test_record_is_the_example_that_tfds_writes(frames):
    from tensorflow_datasets.proto import tf_example_pb2

    record = dataclasses.replace(record_of(tone(1)), frames=frames)
    schema = features()
    theirs = schema.serialize_example(schema.encode_example(dataclasses.asdict(record)))
    assert record_from_bytes(theirs) == record
    parse = tf_example_pb2.Example.FromString
    assert parse(theirs) == parse(record_to_bytes(record))


def test_record_of_an_earlier_version_has_no_frames():
    record = record_of(tone(1))
    example = records._Example.FromString(record_to_bytes(record))
    del example.features.feature['frames']
    assert record_from_bytes(example.SerializeToString()) == record


@pytest.mark.parametrize('data', [b'', b'\xff\xff\xff', b'\n\x03abc', bytes(100)])
def test_bytes_that_are_no_record_are_an_error(data):
    with pytest.raises(DataError, match='not a record'):
        record_from_bytes(data)


@pytest.mark.parametrize('codec', ['flac', 'pcm16'])
@pytest.mark.parametrize(('start', 'count'), [(0, None), (0, 5), (1234, 700), (1999, 1), (2000, 0), (7, None)])
def test_any_part_decodes_exactly(codec, start, count):
    record = record_of(tone(3))
    whole = to_int16(tone(3))
    stop = len(whole) if count is None else start + count
    part = decode_audio(record, start, count)
    assert part.dtype == np.int16
    np.testing.assert_array_equal(part, whole[start:stop])


@pytest.mark.parametrize('in_memory', [True, False])
def test_clips_of_many_lengths_decode_in_many_threads(in_memory, monkeypatch):
    """Each thread has one file, which holds a long clip and then a short one."""
    if not in_memory:
        monkeypatch.delattr(os, 'memfd_create', raising=False)
    monkeypatch.setattr(memory, '_thread', threading.local())
    lengths = (9000, 1500, 4000, 12000, 700)
    waves = [np.random.default_rng(n).uniform(-1, 1, n) for n in lengths]
    clips = [record_of(wave) for wave in waves]
    expected = [to_int16(wave)[100:600] for wave in waves]
    with futures.ThreadPoolExecutor(4) as pool:
        for n, found in enumerate(pool.map(lambda n: decode_audio(clips[n % 5], 100, 500), range(100))):
            np.testing.assert_array_equal(found, expected[n % 5])


def test_decoding_without_memory_files_is_the_same(monkeypatch):
    def refuse(name):
        raise PermissionError('not allowed here')

    clip = record_of(tone(1))
    expected = decode_audio(clip, 5, 700)
    monkeypatch.setattr(os, 'memfd_create', refuse, raising=False)
    monkeypatch.setattr(memory, '_thread', threading.local())
    np.testing.assert_array_equal(decode_audio(clip, 5, 700), expected)


def test_part_beyond_the_end_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match='samples 1500 to 2001'):
        decode_audio(record_of(tone(0)), 1500, 501)


@pytest.mark.parametrize(
    'damage',
    [
        dict(num_samples=1999),
        dict(audio=b''),
        dict(audio=b'fLaC' + bytes(100)),
        dict(codec='mp3'),
        dict(codec='pcm16'),
    ],
)
def test_audio_unlike_its_record_is_an_error(damage):
    with pytest.raises(DataError, match="clip 'a'"):
        decode_audio(dataclasses.replace(record_of(tone(0)), **damage))


def test_flac_cut_short_is_an_error():
    record = record_of(np.random.default_rng(0).uniform(-1, 1, 20000))
    cut = dataclasses.replace(record, audio=record.audio[: len(record.audio) // 2])
    np.testing.assert_array_equal(decode_audio(cut, 0, 100), decode_audio(record, 0, 100))
    with pytest.raises(DataError, match="clip 'a'"):
        decode_audio(cut, 15000, 1000)


def test_tfds_reads_the_dataset(tmp_path):
    import tensorflow_datasets as tfds

    build_small(tmp_path, 5, captions=3)
    build_small(tmp_path, 3, split='validation', captions=1)
    builder = tfds.builder_from_directory(tmp_path)
    assert builder.info.splits['train'].shard_lengths == [4, 1]
    source = builder.as_data_source(split='train')
    assert len(source) == 5
    assert source[4]['id'] == b'clip-4'
    assert [len(example['captions']) for example in source] == [1, 2, 3, 1, 2]
    assert len(builder.as_data_source(split='validation')) == 3


def test_tfds_reads_frames(tmp_path):
    import tensorflow_datasets as tfds

    clips = [dataclasses.replace(clip, frames=(b'\xff\xd8 jpeg',) * n) for n, clip in enumerate(small_clips(3))]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='small')
    assert [Shards(tmp_path).read(n).frames for n in range(3)] == [clip.frames for clip in clips]
    source = tfds.builder_from_directory(tmp_path).as_data_source(split='train')
    assert [list(example['frames']) for example in source] == [list(clip.frames) for clip in clips]


def test_tfds_reads_a_split_of_an_earlier_version_beside_a_new_one(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def without_frames(record):
        example = records._Example.FromString(record_to_bytes(record))
        del example.features.feature['frames']
        return example.SerializeToString()

    with monkeypatch.context() as patch:
        patch.setattr('data_prep.build.record_to_bytes', without_frames)
        build_small(tmp_path, 3, embed=False)
    build_small(tmp_path, 3, split='validation', embed=False)
    builder = tfds.builder_from_directory(tmp_path)
    for split in ('train', 'validation'):
        assert [example['id'] for example in builder.as_data_source(split=split)] == [b'clip-0', b'clip-1', b'clip-2']


def test_reading_imports_no_tfds_nor_tensorflow(tmp_path):
    build_small(tmp_path, 3)
    code = (
        'import sys; from audiosep_jax.data.batches import *\n'
        f'b = make_batches(DataConfig(data=({str(tmp_path)!r},), segment_seconds=0.1), sample_rate=8000, '
        'batch_size=2, seed=0)\n'
        'next(b); b.close()\n'
        'print([m for m in ("tensorflow_datasets", "tensorflow", "torch", "matplotlib") if m in sys.modules])'
    )
    run = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr, run.returncode) == ('[]', '', 0)
