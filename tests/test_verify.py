import json
import os

import numpy as np
import pytest
from small_dataset import SAMPLE_RATE, build_small, overwrite, shard_files

from audiosep_jax.embedding_cache import cache_directory, cache_paths
from audiosep_jax.errors import DataError
from audiosep_jax.records import Shards, summary_path, write_json
from data_prep.build import build_shards
from data_prep.datasets import Clip
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


def test_equal_ids_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr('data_prep.datasets.check_unique', lambda ids: None)
    clips = [Clip('same', np.ones(100, np.float32), ('x',)) for _ in range(2)]
    build_shards(clips, tmp_path, sample_rate=SAMPLE_RATE, name='small')
    assert 'the id occurs twice' in the_problem(tmp_path)


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
