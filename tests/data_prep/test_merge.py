import dataclasses
import json
import pickle

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE, build_small, overwrite, shard_files, small_clips, tone

from audiosep_jax.data.embeddings import EmbeddingCache, cache_directory, cache_paths
from audiosep_jax.data.layout import summary_path
from audiosep_jax.data.shards import Shards
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.json_files import write_json
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.embed import embed_captions
from data_prep.merge import merge_datasets
from data_prep.verify import verify_dataset


@pytest.fixture
def two(tmp_path):
    """Datasets a, of 10 and 3 clips, and b, of 5 with frames, in shards of 4."""
    build_small(tmp_path / 'a', 10, name='a', embed=False)
    build_small(tmp_path / 'a', 3, name='a', split='validation', embed=False)
    clips = [Clip(f'b-{n}', tone(50 + n), ('x',), ('l',), f'b:{n}', (b'\xff\xd8',) * n) for n in range(5)]
    build_shards(clips, tmp_path / 'b', sample_rate=SAMPLE_RATE, name='b', clips_per_shard=4)
    return tmp_path / 'a', tmp_path / 'b'


def records(directory, split='train'):
    shards = Shards(directory, split)
    return [shards.read(index) for index in range(len(shards))]


@pytest.mark.parametrize('clips_per_shard', [1, 6, 100])
def test_records_are_copied_in_order(tmp_path, two, clips_per_shard):
    calls = []
    results = merge_datasets(
        two, tmp_path / 'out', clips_per_shard=clips_per_shard, progress=lambda *call: calls.append(call)
    )
    assert [(r.info.split, r.info.num_clips) for r in results] == [('train', 15), ('validation', 3)]
    assert records(tmp_path / 'out') == [*records(two[0]), *records(two[1])]
    assert records(tmp_path / 'out', 'validation') == records(two[0], 'validation')
    assert verify_dataset(tmp_path / 'out').problems == []
    assert calls[-1] == (18, 18)


def test_nothing_is_encoded_again(tmp_path, two, monkeypatch):
    monkeypatch.setattr('data_prep.build.encode_audio', None)
    monkeypatch.setattr('audiosep_jax.data.records.decode_audio', None)
    merge_datasets(two, tmp_path / 'out')
    assert len(Shards(tmp_path / 'out')) == 15


def test_a_merge_goes_on_where_it_stopped(tmp_path, two):
    merge_datasets(two, tmp_path / 'out', clips_per_shard=4, splits=['train'])
    shard_files(tmp_path / 'out')[1].unlink()
    (result,) = merge_datasets(two, tmp_path / 'out', clips_per_shard=4, splits=['train'])
    assert result.num_shards_made == 1
    with pytest.raises(DataError, match='the list of clips differs'):
        merge_datasets(two[::-1], tmp_path / 'out', clips_per_shard=4, splits=['train'])


def test_processes_copy_the_same(tmp_path, two):
    for jobs, out in ((1, 'one'), (2, 'two')):
        merge_datasets(two, tmp_path / out, name='both', clips_per_shard=8, jobs=jobs)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / d).rglob('*') if p.is_file()} for d in ('one', 'two'))
    assert one == two


def test_ids_that_meet_can_be_told_apart(tmp_path, two):
    build_small(tmp_path / 'c', 2, name='c', embed=False)
    with pytest.raises(DataError, match=r"the id 'clip-0' occurs in .*--prefix-ids"):
        merge_datasets([two[0], tmp_path / 'c'], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    merge_datasets([two[0], tmp_path / 'c'], tmp_path / 'out', prefix_ids=True, splits=['train'])
    found = records(tmp_path / 'out')
    assert [r.id for r in found][-3:] == ['a/clip-9', 'c/clip-0', 'c/clip-1']
    assert [dataclasses.replace(r, id=r.id[2:]) for r in found] == [*records(two[0]), *records(tmp_path / 'c')]
    build_small(tmp_path / 'other', 2, name='a', embed=False)
    with pytest.raises(ConfigError, match='two of the datasets have the same name'):
        merge_datasets([two[0], tmp_path / 'other'], tmp_path / 'x', prefix_ids=True)


def test_shards_of_earlier_versions_have_ids_in_their_records_alone(tmp_path, two):
    info = Shards(two[0]).info
    path = summary_path(two[0], info, 1)
    write_json(path, {key: value for key, value in json.loads(path.read_text()).items() if key != 'ids'})
    merge_datasets(two, tmp_path / 'out')
    assert records(tmp_path / 'out') == [*records(two[0]), *records(two[1])]


def test_a_damaged_record_is_left_out_and_reported(tmp_path, two):
    path = shard_files(two[0])[0]
    overwrite(path, path.read_bytes().index(b'clip-2'), b'!')
    result = merge_datasets(two, tmp_path / 'out')[0]
    assert result.info.num_clips == 14
    assert [(s.id, s.reason) for s in result.skipped] == [('clip-2', 'unreadable')]


@pytest.mark.parametrize('damaged', [False, True])
def test_embeddings_that_all_have_are_taken_along(tmp_path, damaged):
    for name, first in (('a', 0), ('b', 20)):
        clips = [
            dataclasses.replace(clip, id=f'{name}-{clip.id}') for clip in small_clips(first + 6, captions=3)[first:]
        ]
        build_shards(clips, tmp_path / name, sample_rate=SAMPLE_RATE, name=name, clips_per_shard=4)
        embed_captions(tmp_path / name, load_encoder('words'))
    shards = [Shards(tmp_path / name) for name in 'ab']
    for s in shards:  # of sounds: a row per clip, that names it
        for shard, length in enumerate(s.info.shard_lengths):
            rows_path, offsets_path = cache_paths(s.directory, 'words', s.info, shard, 'audio')
            rows_path.parent.mkdir(exist_ok=True)
            np.save(rows_path, np.arange(1, length + 1, dtype=np.float16)[:, None] + np.zeros((1, 512), np.float16))
            np.save(offsets_path, np.arange(length + 1))
        done = cache_directory(s.directory, 'words', 'audio') / 'train.json'
        write_json(done, {'content': s.info.content, 'complete': True})
    if damaged:
        path = shard_files(tmp_path / 'a')[0]
        overwrite(path, path.read_bytes().index(b'a-clip-2'), b'!')
    for _ in range(2):
        merge_datasets([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'out', clips_per_shard=5)
        merged = Shards(tmp_path / 'out')
        places = [(s, n) for s in shards for n in range(len(s)) if not (damaged and s is shards[0] and n == 2)]
        for what in ('text', 'audio'):
            expected = [EmbeddingCache(s, 'words', what).rows(n) for s, n in places]
            found = EmbeddingCache(merged, 'words', what)
            for index, rows in enumerate(expected):
                np.testing.assert_array_equal(found.rows(index), rows)
    assert verify_dataset(tmp_path / 'out').problems == []


def test_embeddings_that_one_lacks_are_not(tmp_path, two):
    embed_captions(two[0], load_encoder('words'))
    merge_datasets(two, tmp_path / 'out')
    with pytest.raises(DataError, match='no complete embeddings'):
        EmbeddingCache(Shards(tmp_path / 'out'), 'words')
    # Of the split that only the other dataset has, there they are.
    assert len(EmbeddingCache(Shards(tmp_path / 'out', 'validation'), 'words').rows(2)) == 1


def test_a_part_of_a_merge_is_that_part(two):
    from data_prep.merge import _merge_shards

    merged = _merge_shards([Shards(d) for d in two], prefix_ids=True)
    ids = [merged.clip_id(n) for n in range(15)]
    for start, stop in ((0, 15), (3, 12), (9, 11), (10, 15), (14, 15)):
        part = pickle.loads(pickle.dumps(merged.part(start, stop)))
        assert [part.record(n).id for n in range(len(part))] == ids[start:stop]
    clip = merged.read(11, SAMPLE_RATE)
    assert (clip.id, clip.frames) == ('b/b-1', (b'\xff\xd8',))
    np.testing.assert_array_equal(clip.audio, tone(51))


@pytest.mark.parametrize(
    ('settings', 'message'), [(dict(codec='pcm16'), 'codec pcm16, but flac'), (dict(sample_rate=16000), 'sample_rate')]
)
def test_datasets_that_do_not_fit_are_refused(tmp_path, two, settings, message):
    settings = {'sample_rate': SAMPLE_RATE, 'name': 'c', **settings}
    build_shards(small_clips(1), tmp_path / 'c', **settings)
    with pytest.raises(DataError, match=message):
        merge_datasets([two[1], tmp_path / 'c'], tmp_path / 'out')


def test_mistakes(tmp_path, two):
    with pytest.raises(ConfigError, match='at least two'):
        merge_datasets(two[:1], tmp_path / 'out')
    with pytest.raises(ConfigError, match='is one of the datasets'):
        merge_datasets(two, two[0])
    with pytest.raises(DataError, match="no dataset has a split 'test'"):
        merge_datasets(two, tmp_path / 'out', splits=['test'])
    with pytest.raises(DataError, match='no dataset with a complete split'):
        merge_datasets([tmp_path / 'x', tmp_path / 'y'], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
