import io

import numpy as np
import PIL.Image
import pytest
from support.small_dataset import SAMPLE_RATE, build_small, overwrite, shard_files, small_clips, tone

from audiosep_jax.data.embeddings import EmbeddingCache, cache_directory, cache_paths
from audiosep_jax.data.layout import write_split_info
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import ConfigError, DataError, DownloadError, EncoderMismatchError
from data_prep import embed
from data_prep.__main__ import main
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions, embed_dataset


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


class Listening(Counting):
    """Also embeds sounds and pictures, by numbers that tell which one it was."""

    def encode_audio(self, waveforms, *, sample_rate):
        assert sample_rate == SAMPLE_RATE
        return np.stack([np.full(512, len(wave) + 2000 * wave.max(), np.float32) for wave in waveforms])

    def encode_image(self, images):
        return np.stack([np.full(512, np.asarray(image).mean(), np.float32) for image in images])


def picture(grey: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new('RGB', (8, 8), (grey, grey, grey)).save(file, 'JPEG')
    return file.getvalue()


def clip_with_frames(n: int, frames) -> Clip:
    return Clip(f'clip-{n}', tone(n, 100), (f'sound {n}',), frames=frames)


def test_a_caption_met_in_an_earlier_shard_is_not_encoded_again(tmp_path):
    clips = [Clip(f'c{n}', np.ones(10, np.float32), ('rain', f'rain {n % 3}')) for n in range(9)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='rain', clips_per_shard=2)
    encoder = Counting()
    done = embed_dataset(tmp_path, encoder)
    assert (done.num_rows, done.num_encoded, done.num_missing) == (18, 4, 0)
    assert encoder.texts == ['rain', 'rain 0', 'rain 1', 'rain 2']
    cache = EmbeddingCache(Shards(tmp_path), 'words')
    for n in (0, 5, 8):
        np.testing.assert_array_equal(cache.rows(n), encoder.encode_text(list(clips[n].captions)).astype(np.float16))


def test_what_is_kept_of_earlier_captions_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(embed, '_CAPTIONS_KEPT', 2)
    clips = [Clip(f'c{n}', np.ones(10, np.float32), ('rain', f'rain {n}')) for n in range(4)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='rain', clips_per_shard=1)
    encoder = Counting()
    embed_dataset(tmp_path, encoder)
    assert encoder.texts == ['rain', 'rain 0', 'rain 1', 'rain 2', 'rain 3']  # the frequent one stays
    source = embed._Captions(tmp_path, encoder)
    for shard in range(4):
        source.embed(Shards(tmp_path).info, shard, lambda clips: None)
    assert len(source._known) == 2


def test_sounds_have_a_row_each(tmp_path):
    build_small(tmp_path, 10)
    shown = []
    done = embed_dataset(tmp_path, Listening(), what='audio', progress=lambda *counts: shown.append(counts))
    assert (done.num_rows, done.num_encoded) == (10, 10)
    assert shown == [(n, 10) for n in range(1, 11)]
    cache = EmbeddingCache(Shards(tmp_path), 'words', 'audio')
    for n in (0, 3, 9):
        expected = np.float16(2000 + 2000 * tone(n).max())
        np.testing.assert_array_equal(cache.rows(n), np.full((1, 512), expected))
    assert embed_dataset(tmp_path, Listening(), what='audio').num_rows == 0
    # The captions' embeddings are others, and still there.
    np.testing.assert_array_equal(EmbeddingCache(Shards(tmp_path), 'words').rows(3).shape, (1, 512))


def test_pictures_have_a_row_each_and_clips_may_have_none(tmp_path):
    frames = [(picture(40), picture(200)), (), (picture(120),), ()]
    clips = [clip_with_frames(n, some) for n, some in enumerate(frames)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='video', clips_per_shard=2)
    assert embed_dataset(tmp_path, Listening(), what='image').num_rows == 3
    cache = EmbeddingCache(Shards(tmp_path), 'words', 'image')
    found = [cache.rows(n)[:, 0].round().tolist() for n in range(4)]
    assert found == [[40, 200], [], [120], []]
    assert embed_dataset(tmp_path, Listening(), what='image').num_rows == 0


def test_sounds_and_pictures_that_cannot_be_read_are_named(tmp_path):
    build_small(tmp_path / 'none', 3)
    with pytest.raises(DataError, match='no clip has a picture'):
        embed_dataset(tmp_path / 'none', Listening(), what='image')
    with pytest.raises(DataError, match='unfinished'):
        EmbeddingCache(Shards(tmp_path / 'none'), 'words', 'image')
    clips = [clip_with_frames(0, (picture(9),)), clip_with_frames(1, (b'no picture',))]
    build_shards(clips, tmp_path / 'bad', sample_rate=SAMPLE_RATE, name='video', codec='pcm16')
    with pytest.raises(DataError, match="'clip-1': one of its pictures does not decode"):
        embed_dataset(tmp_path / 'bad', Listening(), what='image')
    path = shard_files(tmp_path / 'bad')[0]
    overwrite(path, path.read_bytes().index(b'clip-1'), b'!')
    with pytest.raises(DataError, match='record 1 cannot be read'):
        embed_dataset(tmp_path / 'bad', Listening(), what='audio')


def test_encoder_without_the_modality_is_refused(tmp_path, capsys):
    build_small(tmp_path, 3)
    with pytest.raises(ConfigError, match="encoder 'words' has no embeddings of audio"):
        embed_dataset(tmp_path, load_encoder('words'), what='audio')
    assert main(['embed', str(tmp_path), '--what', 'image']) == 2
    assert "encoder 'words' has no embeddings of image" in capsys.readouterr().err


def test_hosts_share_the_shards_and_the_last_completes(tmp_path, capsys):
    build_small(tmp_path / 'shared', 10, embed=False)
    build_small(tmp_path / 'alone', 10)
    command = ['embed', str(tmp_path / 'shared')]
    assert main([*command, '--process-index', '1', '--process-count', '2']) == 0
    assert '4 captions embedded now' in (said := capsys.readouterr().out)
    assert '2 shards of other calls are missing' in said
    with pytest.raises(DataError, match='unfinished'):
        EmbeddingCache(Shards(tmp_path / 'shared'), 'words')
    assert main([*command, '--shard-range', '0:1']) == 0
    assert main([*command, '--shard-range', '1:9']) == 0
    assert '2 captions embedded now' in (said := capsys.readouterr().out)
    assert said.strip().endswith('complete')
    files = sorted(p.relative_to(tmp_path / 'alone') for p in (tmp_path / 'alone').glob('embeddings/**/*'))
    assert files == sorted(p.relative_to(tmp_path / 'shared') for p in (tmp_path / 'shared').glob('embeddings/**/*'))
    for file in files:
        if file.suffix:
            assert (tmp_path / 'shared' / file).read_bytes() == (tmp_path / 'alone' / file).read_bytes()


def test_one_host_after_the_other_replaces_rows_of_an_earlier_build(tmp_path):
    """The second host must not take for done what the first has not got to yet."""
    build_small(tmp_path, 10)
    info = Shards(tmp_path).info
    other = cache_directory(tmp_path, 'words') / 'train.json'
    other.write_text(other.read_text().replace(info.content, 'another build'))
    for path in cache_directory(tmp_path, 'words').glob('*-of-00003.npy'):
        np.save(path, np.zeros_like(np.load(path)))
    for index in range(2):
        embed_dataset(tmp_path, load_encoder('words'), process_index=index, process_count=2)
    cache = EmbeddingCache(Shards(tmp_path), 'words')
    assert all(cache.rows(n).any() for n in range(10))


@pytest.mark.parametrize(
    'settings',
    [
        dict(shard_range=(2, 2)),
        dict(shard_range=(-1, 2)),
        dict(process_count=0),
        dict(process_index=2, process_count=2),
    ],
)
def test_shares_that_are_none_are_refused(tmp_path, settings):
    build_small(tmp_path, 3, embed=False)
    with pytest.raises(ConfigError, match=r'--shard-range|--process-index'):
        embed_dataset(tmp_path, load_encoder('words'), **settings)


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


@pytest.mark.parametrize(
    'header',
    [
        "{'descr': '<f2', 'fortran_order': False, 'shape': (4, 512), ",  # NumPy raises TokenError
        "{'descr': '<f2', 'fortran_order': True, 'shape': (4, 512), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 256), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (4, 512), }",
        "{'descr': '<f2', 'fortran_order': False, 'shape': (400000000000, 512), }",
        '(' * 100,
    ],
)
def test_a_damaged_header_is_repaired(tmp_path, header):
    info = build_small(tmp_path, 10).info
    path = cache_paths(tmp_path, 'words', info, 0)[0]
    data = path.read_bytes()
    path.write_bytes(data[:10] + header.ljust(117).encode() + b'\n' + data[128:])
    with pytest.raises(DataError, match='run `python -m data_prep embed') as caught:
        EmbeddingCache(Shards(tmp_path), 'words')
    assert len(str(caught.value).splitlines()) == 1
    assert embed_captions(tmp_path, load_encoder('words')) == 4
    assert path.read_bytes() == data
    EmbeddingCache(Shards(tmp_path), 'words')


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


def test_a_tokenizer_that_cannot_be_had_leaves_nothing_behind(tmp_path):
    class Bare:
        name, embedding_size = 'clap', 16

        @property
        def tokenizer(self):
            raise DownloadError('offline')

        def encode_text(self, texts):
            raise AssertionError

        def identity(self):
            return {'name': 'clap', 'embedding_size': 16}

    build_small(tmp_path, 4)
    with pytest.raises(DownloadError):
        embed_captions(tmp_path, Bare())
    assert not cache_directory(tmp_path, 'clap').exists()
