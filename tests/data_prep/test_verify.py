import json
import os
import re

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE, build_small, overwrite, shard_files

from audiosep_jax.data.embeddings import cache_directory, cache_paths
from audiosep_jax.data.layout import summary_path
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError
from audiosep_jax.storage.json_files import write_json
from data_prep.build import build_shards
from data_prep.clips.base import Clip
from data_prep.stats import dataset_stats
from data_prep.verify import verify_dataset


def the_problem(directory) -> str:
    found = verify_dataset(directory)
    assert len(found.problems) == 1, found.problems
    assert '\n' not in found.problems[0]
    return found.problems[0]


@pytest.mark.parametrize('codec', ['flac', 'pcm16'])
def test_a_good_dataset_has_no_problems(tmp_path, codec):
    build_small(tmp_path, 10, captions=3, codec=codec)
    build_small(tmp_path, 5, split='validation', codec=codec)
    calls = []
    found = verify_dataset(tmp_path, jobs=2, progress=lambda *call: calls.append(call))
    assert (found.problems, found.notes) == ([], [])
    assert (found.num_clips, found.num_captions, found.encoders) == (15, 24, ['words'])
    assert found.seconds == pytest.approx(15 * 2000 / SAMPLE_RATE)
    assert calls[-1] == (15, 15)


def test_silent_clips_are_counted(tmp_path):
    clips = [Clip(f'c{n}', np.full(100, n % 2, np.float32), ('x',)) for n in range(5)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='small')
    assert verify_dataset(tmp_path).num_silent == 3


def test_all_damaged_shards_and_records_are_listed(tmp_path):
    build_small(tmp_path, 12, codec='pcm16')
    paths = shard_files(tmp_path)
    os.truncate(paths[0], 1000)
    overwrite(paths[1], paths[1].read_bytes().index(b'clip-6'), b'!')
    problems = verify_dataset(tmp_path).problems
    assert len(problems) == 2
    assert paths[0].name in problems[0]
    assert 'cut short' in problems[0]
    assert f'{paths[1].name}: record 2 cannot be read' in problems[1]
    assert all('delete' in problem for problem in problems)


def test_audio_that_does_not_decode_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr('data_prep.build.encode_audio', lambda *args: b'fLaC and then nothing')
    build_small(tmp_path, 1)
    assert 'record 0' in the_problem(tmp_path)


def test_unfinished_split_is_found(tmp_path):
    build_small(tmp_path, 3)
    path = tmp_path / 'splits' / 'train.json'
    write_json(path, {**json.loads(path.read_text()), 'complete': False})
    assert 'not complete' in the_problem(tmp_path)


@pytest.mark.parametrize(
    ('captions', 'problem'),
    [
        ([['other']], 'its captions are not those that embeddings are made from'),
        ([], '1 clips, but captions of 0'),
        (None, 'not a summary of this build'),
    ],
)
def test_summary_unlike_the_records_is_found(tmp_path, captions, problem):
    info = build_small(tmp_path, 1).info
    path = summary_path(tmp_path, info, 0)
    summary = {**json.loads(path.read_text()), 'captions': captions}
    if captions is None:
        path.write_text('{}')
    else:
        write_json(path, summary)
    assert problem in the_problem(tmp_path)


@pytest.mark.parametrize(
    ('name', 'change', 'problem'),
    [
        ('train.json', {'clips_per_shard': 0}, 'clips_per_shard: 0 is less than 1'),
        ('train.json', {'clips_per_shard': '4'}, "clips_per_shard: expected int, got '4'"),
        ('train.json', {'num_inputs': 10**15}, 'shard_lengths: 2 of 250000000000000 shards'),
        ('train.json', {'shard_lengths': [4, -1]}, 'shard_lengths: not all of them are from 0 to 4'),
        ('train.json', {'shard_lengths': 4}, 'shard_lengths: expected a list, got 4'),
        ('train.json', {'split': 'test'}, "describes the split 'test'"),
        ('train.json', {'name': '../small'}, "name: '../small' cannot be a part of a file name"),
        ('train-00000-of-00002.json', {'captions': ['a', 'b', 'c', 'd']}, "captions[0]: expected a list, got 'a'"),
        ('train-00000-of-00002.json', {'captions': [['a'], ['b'], ['c'], [3]]}, 'captions[3][0]: expected a text'),
        ('train-00000-of-00002.json', {'skipped': 3}, 'skipped: expected a list, got 3'),
        ('train-00000-of-00002.json', {'num_samples': None}, 'num_samples: expected a whole number, got null'),
        ('train-00000-of-00002.json', {'sources': {'files': '4'}}, "sources.files: expected a whole number, got '4'"),
        ('train-00000-of-00002.json', {'labels': []}, 'labels: expected an object, got a list'),
        ('train-00000-of-00002.json', {'ids': ['a']}, '4 clips, but ids of 1'),
        ('train-00000-of-00002.json', {'sha256': 3}, 'sha256: expected a text, got 3'),
    ],
)
def test_damaged_descriptions_are_reported(tmp_path, name, change, problem):
    build_small(tmp_path, 5, embed=False)
    path = tmp_path / 'splits' / name
    write_json(path, {**json.loads(path.read_text()), **change})
    found = the_problem(tmp_path)
    assert found.startswith(f'{path}: ')
    assert problem in found
    assert 'delete it and run the same `data_prep build` again' in found
    with pytest.raises(DataError, match=re.escape(problem)):
        dataset_stats(tmp_path)
    path.unlink()
    build_small(tmp_path, 5, embed=False)  # what the message says to do
    assert not verify_dataset(tmp_path).problems


def test_equal_ids_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr('data_prep.clips.sources.check_unique', lambda ids: None)
    clips = [Clip('same', np.ones(100, np.float32), ('x',)) for _ in range(2)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='small')
    assert 'the id occurs twice' in the_problem(tmp_path)


def test_bytes_that_changed_between_the_records_are_found(tmp_path):
    info = build_small(tmp_path, 4).info
    summary = json.loads(summary_path(tmp_path, info, 0).read_text())
    path = shard_files(tmp_path)[0]
    assert summary['num_bytes'] == path.stat().st_size == info.num_bytes
    # ArrayRecord fills up a file's last block; no record's checksum covers what it is filled with.
    data = path.read_bytes()
    overwrite(path, _padding(data), b'!')
    assert 'not the bytes that were written' in the_problem(tmp_path)
    path.write_bytes(data)
    assert verify_dataset(tmp_path).problems == []


def _padding(data: bytes) -> int:
    """Where the longest run of zeros is in the middle of."""
    start, longest = max(((m.start(), m.end() - m.start()) for m in re.finditer(rb'\0+', data)), key=lambda run: run[1])
    return start + longest // 2


def test_shards_of_earlier_versions_have_no_checksum(tmp_path):
    info = build_small(tmp_path, 4).info
    path = summary_path(tmp_path, info, 0)
    summary = json.loads(path.read_text())
    write_json(path, {key: summary[key] for key in ('fingerprint', 'captions', 'num_samples', 'skipped')})
    assert verify_dataset(tmp_path).problems == []


@pytest.mark.parametrize('what', ['audio', 'image'])
@pytest.mark.parametrize('damage', [None, 'cut', 'nan', 'unfinished'])
def test_caches_of_sounds_and_pictures_are_looked_at(tmp_path, what, damage):
    info = build_small(tmp_path, 4).info
    rows_path, offsets_path = cache_paths(tmp_path, 'words', info, 0, what)
    rows = np.ones((4 if what == 'audio' else 6, 512), np.float16)
    if damage == 'nan':
        rows[3, 3] = np.nan
    rows_path.parent.mkdir()
    np.save(rows_path, rows if damage != 'cut' else rows[1:])
    np.save(offsets_path, np.array([0, 1, 2, 3, 4] if what == 'audio' else [0, 2, 2, 3, 6]))
    state = {'content': info.content, 'complete': damage != 'unfinished'}
    write_json(cache_directory(tmp_path, 'words', what) / 'train.json', state)
    if damage is None:
        found = verify_dataset(tmp_path)
        assert (found.problems, found.encoders) == ([], ['words', f'words ({what})'])
    else:
        expected = {'cut': 'does not fit its clips', 'nan': 'clip 3', 'unfinished': 'unfinished'}[damage]
        assert expected in (problem := the_problem(tmp_path))
        assert f'--what {what}' in problem


@pytest.mark.parametrize('damage', ['cut', 'nan', 'swapped'])
def test_damaged_cache_is_found(tmp_path, damage):
    build_small(tmp_path, 4)
    path = cache_paths(tmp_path, 'words', Shards(tmp_path).info, 0)[0]
    rows = np.load(path)
    if damage == 'cut':
        path.write_bytes(path.read_bytes()[:200])
    elif damage == 'nan':
        rows[2, 5] = np.nan
        np.save(path, rows)
    else:
        np.save(path, rows[::-1])
    expected = {'cut': 'damaged', 'nan': 'clip 2', 'swapped': 'are not those of its captions'}[damage]
    assert expected in the_problem(tmp_path)


def test_cache_of_an_encoder_that_is_not_installed_is_noted(tmp_path):
    build_small(tmp_path, 2)
    cache_directory(tmp_path, 'words').rename(cache_directory(tmp_path, 'clap'))
    write_json(cache_directory(tmp_path, 'clap') / 'encoder.json', {'name': 'clap', 'embedding_size': 512})
    found = verify_dataset(tmp_path)
    assert found.problems == []
    assert "'clap' were not compared" in found.notes[0]


@pytest.mark.parametrize('file', ['features.json', 'dataset_info.json'])
def test_missing_tfds_metadata_is_found_and_mended(tmp_path, file):
    build_small(tmp_path, 4)
    (tmp_path / file).unlink()
    assert file in the_problem(tmp_path)
    build_small(tmp_path, 4)
    assert verify_dataset(tmp_path).problems == []


def test_other_counts_in_the_tfds_metadata_are_found(tmp_path):
    build_small(tmp_path, 4)
    path = tmp_path / 'dataset_info.json'
    path.write_text(path.read_text().replace('"4"', '"5"'))
    assert 'other counts' in the_problem(tmp_path)


def test_no_dataset_is_an_error(tmp_path):
    with pytest.raises(DataError, match='no dataset here'):
        verify_dataset(tmp_path)
