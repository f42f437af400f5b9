import numpy as np
import pytest
from small_dataset import SAMPLE_RATE, build_small, shard_files, small_clips

from audiosep_jax.embedding_cache import EmbeddingCache, cache_directory, cache_paths
from audiosep_jax.encoders import load_encoder
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import DataError, EncoderMismatchError
from audiosep_jax.records import Shards, write_split_info
from data_prep.build import build_shards
from data_prep.datasets import Clip
from data_prep.embed import embed_captions


class Counting(WordsEncoder):
    """Counts the texts it is asked for, and can be told to stop."""

    def __init__(self, stop_after=10**9):
        super().__init__()
        self.texts, self.stop_after = [], stop_after

    def encode_text(self, texts):
        if len(self.texts) + len(texts) > self.stop_after:
            raise KeyboardInterrupt
        self.texts += texts
        return super().encode_text(texts)


def test_each_distinct_caption_of_a_shard_is_encoded_once(tmp_path):
    clips = [Clip(f'c{n}', np.ones(10, np.float32), ('rain', f'rain {n % 2}')) for n in range(6)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='rain', clips_per_shard=6)
    encoder = Counting()
    assert embed_captions(tmp_path, encoder) == 12
    assert encoder.texts == ['rain', 'rain 0', 'rain 1']
    assert len(EmbeddingCache(Shards(tmp_path), 'words').rows(5)) == 2


def test_again_does_nothing(tmp_path):
    build_small(tmp_path, 10)
    encoder = Counting()
    assert embed_captions(tmp_path, encoder) == 0
    assert encoder.texts == []


def test_an_interrupted_run_is_not_used_and_goes_on(tmp_path):
    build_small(tmp_path, 10, embed=False)
    with pytest.raises(KeyboardInterrupt):
        embed_captions(tmp_path, Counting(stop_after=5))
    with pytest.raises(DataError, match='unfinished'):
        EmbeddingCache(Shards(tmp_path), 'words')
    (cache_directory(tmp_path, 'words') / '.train-00001-of-00003.npy.tmp-1').write_bytes(
        b'left by a run that was killed'
    )
    encoder = Counting()
    assert embed_captions(tmp_path, encoder) == 6
    assert len(encoder.texts) == 6
    assert len(EmbeddingCache(Shards(tmp_path), 'words').rows(9)) == 1
    assert not list(cache_directory(tmp_path, 'words').glob('.*'))


@pytest.mark.parametrize('file', [0, 1])
def test_a_damaged_shard_alone_is_embedded_again(tmp_path, file):
    build_small(tmp_path, 10)
    path = cache_paths(tmp_path, 'words', Shards(tmp_path).info, 1)[file]
    data = path.read_bytes()
    path.write_bytes(data[:100])
    assert embed_captions(tmp_path, load_encoder('words')) == 4
    assert path.read_bytes() == data


@pytest.mark.parametrize('text', ['', '[]', '{}', '3'])
def test_a_damaged_note_of_what_is_done_costs_a_second_run_alone(tmp_path, text):
    build_small(tmp_path, 4)
    (cache_directory(tmp_path, 'words') / 'train.json').write_text(text)
    assert embed_captions(tmp_path, load_encoder('words')) == 4
    assert len(EmbeddingCache(Shards(tmp_path), 'words').rows(3)) == 1


def test_a_shard_without_clips_has_an_empty_cache(tmp_path):
    silent = Clip('bad', np.zeros(0, np.float32), ('x',))
    build_shards([*small_clips(2), silent], tmp_path, sample_rate=SAMPLE_RATE, name='small', clips_per_shard=2)
    assert embed_captions(tmp_path, load_encoder('words')) == 2
    assert len(EmbeddingCache(Shards(tmp_path), 'words').rows(1)) == 1
    assert embed_captions(tmp_path, load_encoder('words')) == 0


def test_embedding_reads_no_audio(tmp_path):
    build_small(tmp_path, 10, embed=False)
    for path in shard_files(tmp_path):
        path.unlink()
    assert embed_captions(tmp_path, load_encoder('words')) == 10


def test_another_setting_of_the_encoder_is_refused(tmp_path):
    build_small(tmp_path, 4)
    with pytest.raises(EncoderMismatchError, match=r'embedding_size 512 instead of 64.*delete .*embeddings/words'):
        embed_captions(tmp_path, WordsEncoder(embedding_size=64))


def test_splits_can_be_chosen(tmp_path):
    build_small(tmp_path, 4, embed=False)
    build_small(tmp_path, 3, split='validation', embed=False)
    assert embed_captions(tmp_path, load_encoder('words'), splits=['validation']) == 3
    assert embed_captions(tmp_path, load_encoder('words')) == 4


def test_what_cannot_be_embedded_is_told(tmp_path):
    with pytest.raises(DataError, match='no dataset'):
        embed_captions(tmp_path, load_encoder('words'))
    info = build_small(tmp_path, 4, embed=False).info
    with pytest.raises(DataError, match="no split 'test'"):
        embed_captions(tmp_path, load_encoder('words'), splits=['test'])
    import dataclasses

    write_split_info(tmp_path, dataclasses.replace(info, complete=False))
    with pytest.raises(DataError, match='split train is not complete'):
        embed_captions(tmp_path, load_encoder('words'), splits=['train'])


def test_encoder_that_gives_nan_is_an_error(tmp_path):
    class Broken(WordsEncoder):
        def encode_text(self, texts):
            return super().encode_text(texts) * np.array([[1], [np.nan], [1], [1]])[: len(texts)]

    build_small(tmp_path, 4, embed=False)
    with pytest.raises(DataError, match="non-finite embeddings for 'sound 1 take 0'"):
        embed_captions(tmp_path, Broken())
