import functools
import pickle
from concurrent import futures

import numpy as np
import pytest
from support.small_dataset import build_small, small_clips

from audiosep_jax.data import embeddings as embedding_cache
from audiosep_jax.data.embeddings import (
    EmbeddingCache,
    cache_directory,
    cache_paths,
    cached_encoders,
    read_encoder_identity,
)
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import DataError
from audiosep_jax.storage.json_files import write_json


def test_rows_are_the_embeddings_of_the_captions(tmp_path):
    build_small(tmp_path, 10, captions=3)
    encoder = load_encoder('words')
    cache = EmbeddingCache(Shards(tmp_path), 'words')
    assert cache.identity == encoder.identity()
    for index, clip in enumerate(small_clips(10, captions=3)):
        rows = cache.rows(index)
        assert (rows.shape, rows.dtype) == ((index % 3 + 1, 512), np.float16)
        np.testing.assert_array_equal(rows, encoder.encode_text(list(clip.captions)).astype(np.float16))


def test_pickle_carries_paths_not_rows(tmp_path):
    build_small(tmp_path, 10)
    cache = EmbeddingCache(Shards(tmp_path), 'words')
    row = cache.rows(7)
    data = pickle.dumps(cache)
    assert len(data) < 4000
    np.testing.assert_array_equal(pickle.loads(data).rows(7), row)


def test_files_are_dropped_while_threads_read_from_them(tmp_path, monkeypatch):
    files = functools.lru_cache(2)(embedding_cache._open_files)  # room for 2 of 5
    monkeypatch.setattr(embedding_cache, '_shared_files', lambda: files)
    build_small(tmp_path, 10, clips_per_shard=2)
    cache = EmbeddingCache(Shards(tmp_path), 'words')
    expected = [cache.rows(n).tobytes() for n in range(10)]
    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: cache.rows(n % 10).tobytes(), range(200)))
    assert found == 20 * expected


def test_file_cut_short_after_the_opening_is_an_error(tmp_path):
    build_small(tmp_path, 4)
    cache = EmbeddingCache(Shards(tmp_path), 'words')
    with open(cache_paths(tmp_path, 'words', Shards(tmp_path).info, 0)[0], 'r+b') as file:
        file.truncate(2000)
    assert cache.rows(0).shape == (1, 512)
    with pytest.raises(DataError, match='cannot be read'):
        cache.rows(3)


@pytest.mark.parametrize('file', [0, 1])
@pytest.mark.parametrize('damage', ['missing', 'empty', 'short', 'garbage'])
def test_damaged_files_are_found_at_opening(tmp_path, file, damage):
    build_small(tmp_path, 10)
    shards = Shards(tmp_path)
    path = cache_paths(tmp_path, 'words', shards.info, 1)[file]
    data = path.read_bytes()
    if damage == 'missing':
        path.unlink()
    else:
        path.write_bytes({'empty': b'', 'short': data[: len(data) - 8], 'garbage': b'x' * len(data)}[damage])
    with pytest.raises(DataError, match=r'missing or damaged.*data_prep embed'):
        EmbeddingCache(shards, 'words')


@pytest.mark.parametrize('array', [np.zeros((4, 64), np.float16), np.zeros((4, 512)), np.zeros((3, 512), np.float16)])
def test_rows_of_another_shape_are_refused(tmp_path, array):
    build_small(tmp_path, 10)
    shards = Shards(tmp_path)
    np.save(cache_paths(tmp_path, 'words', shards.info, 1)[0], array)
    with pytest.raises(DataError, match='shard 1'):
        EmbeddingCache(shards, 'words')


@pytest.mark.parametrize('offsets', [[0, 1, 1, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4, 4], [0, 1, 2, 3, 5]])
def test_offsets_that_do_not_fit_are_refused(tmp_path, offsets):
    build_small(tmp_path, 10)
    shards = Shards(tmp_path)
    np.save(cache_paths(tmp_path, 'words', shards.info, 1)[1], np.array(offsets))
    with pytest.raises(DataError, match='shard 1 does not fit its clips'):
        EmbeddingCache(shards, 'words')


def test_unfinished_cache_is_refused(tmp_path):
    build_small(tmp_path, 4)
    (cache_directory(tmp_path, 'words') / 'train.json').unlink()
    with pytest.raises(DataError, match=r'no complete embeddings .* run `python -m data_prep embed'):
        EmbeddingCache(Shards(tmp_path), 'words')


def test_cache_of_another_build_is_refused(tmp_path):
    build_small(tmp_path / 'a', 4)
    build_small(tmp_path / 'b', 4, num_samples=1000, embed=False)
    (tmp_path / 'a' / 'embeddings').rename(tmp_path / 'b' / 'embeddings')
    with pytest.raises(DataError, match='another build'):
        EmbeddingCache(Shards(tmp_path / 'b'), 'words')


@pytest.mark.parametrize('text', ['', '3', '{"name": "words"}', '\0\0'])
def test_damaged_identity_is_an_error(tmp_path, text):
    build_small(tmp_path, 2)
    (cache_directory(tmp_path, 'words') / 'encoder.json').write_text(text)
    with pytest.raises(DataError, match=r'encoder\.json'):
        read_encoder_identity(tmp_path, 'words')


def test_what_was_only_begun_does_not_count(tmp_path):
    build_small(tmp_path, 4)
    write_json(cache_directory(tmp_path, 'clap') / 'encoder.json', {'name': 'clap', 'embedding_size': 512})
    write_json(cache_directory(tmp_path, 'clap') / 'train.json', {'content': 'x', 'complete': False})
    assert cached_encoders(tmp_path) == ['words']
    (cache_directory(tmp_path, 'words') / 'train.json').write_text('damaged')
    assert cached_encoders(tmp_path) == ['clap', 'words']  # none is complete, so both are listed


def test_the_command_names_the_weights_not_the_kind(tmp_path):
    build_small(tmp_path, 4, embed=False)
    identity = {'name': 'clap', 'embedding_size': 512, 'source': '/models/clap'}
    write_json(cache_directory(tmp_path, 'clap') / 'encoder.json', identity)
    with pytest.raises(
        DataError, match=f'run `python -m data_prep embed {tmp_path} --encoder /models/clap --what audio`'
    ):
        EmbeddingCache(Shards(tmp_path), 'clap', 'audio')


def test_what_an_encoder_cannot_give_is_not_suggested(tmp_path):
    build_small(tmp_path, 4)
    with pytest.raises(DataError, match="encoder 'words' gives no embeddings of audio: use clap"):
        EmbeddingCache(Shards(tmp_path), 'words', 'audio')
