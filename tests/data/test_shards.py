"""Shards: any clip in any order, from threads and processes, and what is said of damaged files."""

import functools
import pickle
import shutil
from concurrent import futures

import numpy as np
import pytest
from support.small_dataset import build_small, overwrite, shard_files, small_clips

from audiosep_jax.data import shards as shards_module
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError


def test_shards_read_in_any_order(tmp_path):
    build_small(tmp_path, 10)
    shards = Shards(tmp_path)
    assert len(shards) == 10
    assert shards.info.shard_lengths == (4, 4, 2)
    for index in (9, 0, 4, 3, 8):
        record = shards.read(index)
        clip = small_clips(10)[index]
        assert (record.id, record.captions, record.labels) == (clip.id, clip.captions, clip.labels)
        np.testing.assert_array_equal(shards.waveform(index), clip.audio)
    assert [shards.locate(i) for i in (0, 3, 4, 9)] == [(0, 0), (0, 3), (1, 0), (2, 1)]
    for index in (-1, 10):
        with pytest.raises(IndexError):
            shards.read(index)


def test_shards_travel_to_other_processes_and_threads(tmp_path, monkeypatch):
    # Room for 2 of 5: readers are dropped while other threads read from them.
    monkeypatch.setattr(
        shards_module, '_shared_reader', functools.lru_cache(2)(lambda path, owner: shards_module._new_reader(path))
    )
    build_small(tmp_path, 10, clips_per_shard=2)
    shards = pickle.loads(pickle.dumps(Shards(tmp_path)))
    with futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda i: shards.read(i % 10).id, range(200)))
    assert ids == [f'clip-{i % 10}' for i in range(200)]


def test_shards_that_were_built_again_are_read_again(tmp_path):
    build_small(tmp_path, 2)
    before = Shards(tmp_path)
    assert before.read(0).num_samples == 2000
    shutil.rmtree(tmp_path)
    build_small(tmp_path, 2, num_samples=1000)
    assert Shards(tmp_path).read(0).num_samples == 1000


def test_a_bucket_is_not_read_directly():
    with pytest.raises(DataError, match='is in a bucket: bring it here with --stage-dir'):
        Shards('gs://b/d')


@pytest.mark.parametrize('size', [0, 3, 70000])
def test_shard_cut_short_is_found_at_opening(tmp_path, size):
    build_small(tmp_path, 10)
    path = shard_files(tmp_path)[1]
    with open(path, 'r+b') as file:
        file.truncate(size)
    with pytest.raises(DataError, match=f'{path.name}.*damaged or cut short.*delete it'):
        Shards(tmp_path)


def test_missing_shard_is_found_at_opening(tmp_path):
    build_small(tmp_path, 10)
    shard_files(tmp_path)[2].unlink()
    with pytest.raises(DataError, match='-00002-of-00003: shard is missing'):
        Shards(tmp_path)


def test_damaged_record_is_an_error_with_its_place(tmp_path):
    build_small(tmp_path, 4, codec='pcm16')
    path = shard_files(tmp_path)[0]
    overwrite(path, path.read_bytes().index(small_clips(4)[2].id.encode()), b'!')
    shards = Shards(tmp_path)
    with pytest.raises(DataError, match=f'{path.name}: record 2 cannot be read'):
        shards.read(2)
    assert [shards.read(i).id for i in (1, 3)] == ['clip-1', 'clip-3']
