import os
import threading

import numpy as np
import pytest
from support.small_dataset import SAMPLE_RATE, build_small, shard_files, small_clips

from audiosep_jax.data import staging
from audiosep_jax.data.embeddings import EmbeddingCache
from audiosep_jax.data.shards import Shards
from audiosep_jax.data.staging import stage, staged_directory
from audiosep_jax.errors import ConfigError, DataError
from data_prep.build import build_shards
from data_prep.verify import verify_dataset


def contents(directory) -> dict[str, bytes]:
    files = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob('*') if p.is_file()}
    return {name: data for name, data in files.items() if name != '.staged.json'}


def times(directory) -> dict:
    return {p: p.stat().st_mtime_ns for p in directory.rglob('*') if p.is_file() and p.name != '.staged.json'}


@pytest.fixture
def dataset(tmp_path):
    build_small(tmp_path / 'small', 10)
    build_small(tmp_path / 'small', 3, split='validation')
    return tmp_path / 'small'


def test_a_copy_is_the_dataset(tmp_path, dataset):
    calls = []
    copy = stage(dataset, tmp_path / 'disk' / 'stage', progress=lambda *call: calls.append(call))
    assert copy == staged_directory(dataset, tmp_path / 'disk' / 'stage')
    assert contents(copy) == contents(dataset)
    assert verify_dataset(copy).problems == []
    assert calls[-1][0] == calls[-1][1]


def test_what_is_there_is_not_copied_again(tmp_path, dataset):
    before = times(stage(dataset, tmp_path / 'stage'))
    copy = stage(dataset, tmp_path / 'stage')
    assert times(copy) == before
    shard_files(copy)[0].unlink()
    os.truncate(shard_files(copy)[1], 10)
    stage(dataset, tmp_path / 'stage')
    assert contents(copy) == contents(dataset)
    assert sum(times(copy)[path] != before[path] for path in before) == 2


def test_a_copy_that_was_interrupted_is_no_dataset_and_goes_on(tmp_path, dataset, monkeypatch):
    copied = []

    def interrupted(source, target, *rest):
        if len(copied) == 5:
            raise KeyboardInterrupt
        copied.append(target)
        return copy_file(source, target, *rest)

    copy_file = staging._copy
    monkeypatch.setattr(staging, '_REQUESTS', 1)
    with monkeypatch.context() as patch:
        patch.setattr(staging, '_copy', interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage(dataset, tmp_path / 'stage')
    copy = staged_directory(dataset, tmp_path / 'stage')
    (copy / '.small-train.array_record-00001-of-00003.tmp-1').write_bytes(b'left by a copy that was killed')
    with pytest.raises(DataError, match='no split'):
        Shards(copy)
    before = {path: path.stat().st_mtime_ns for path in copied}
    stage(dataset, tmp_path / 'stage')
    assert contents(copy) == contents(dataset)
    assert {path: path.stat().st_mtime_ns for path in copied} == before


def test_a_dataset_that_was_built_again_is_copied_again(tmp_path, dataset):
    copy = stage(dataset, tmp_path / 'stage')
    before = times(copy)
    sizes = [path.stat().st_size for path in shard_files(dataset)]
    for path in (*dataset.glob('*train*'), *dataset.glob('splits/train*')):
        path.unlink()
    clips = [*small_clips(11)[1:]]
    build_shards(clips, dataset, sample_rate=SAMPLE_RATE, name='small', clips_per_shard=4)
    assert [path.stat().st_size for path in shard_files(dataset)] == sizes  # lengths do not tell
    stage(dataset, tmp_path / 'stage')
    assert contents(copy) == contents(dataset)
    same = [path.name for path in before if path in times(copy) and times(copy)[path] == before[path]]
    assert 'small-validation.array_record-00000-of-00001' in same
    assert 'small-train.array_record-00000-of-00003' not in same


def test_one_split_and_one_encoder(tmp_path, dataset):
    (dataset / 'embeddings' / 'other').mkdir()
    (dataset / 'embeddings' / 'other' / 'encoder.json').write_text('{}')
    copy = stage(dataset, tmp_path / 'stage', splits=['validation'], encoders=['words'])
    assert len(EmbeddingCache(Shards(copy, 'validation'), 'words').rows(2)) == 1
    assert not [name for name in contents(copy) if 'train' in name or 'other' in name]
    before = times(copy)
    stage(dataset, tmp_path / 'stage')
    assert contents(copy) == contents(dataset)
    assert {path: times(copy)[path] for path in before} == before  # what was there is not copied again


def test_rows_of_another_encoder_with_the_same_name_are_copied_again(tmp_path, dataset):
    copy = stage(dataset, tmp_path / 'stage')
    folder = dataset / 'embeddings' / 'words'
    for path in folder.glob('*-of-*[0-9].npy'):
        np.save(path, -np.load(path))
    (folder / 'encoder.json').write_text((folder / 'encoder.json').read_text() + ' ')
    stage(dataset, tmp_path / 'stage')
    assert contents(copy) == contents(dataset)


def test_embeddings_of_sounds_and_pictures_come_along(tmp_path, dataset):
    for what in ('audio', 'image'):
        (dataset / 'embeddings' / 'words' / what).mkdir()
        (dataset / 'embeddings' / 'words' / what / 'train-00000-of-00003.npy').write_bytes(b'rows')
    assert contents(stage(dataset, tmp_path / 'stage')) == contents(dataset)


def test_processes_of_a_host_wait_for_one_another(tmp_path, dataset, monkeypatch):
    copied = []
    copy_file = staging._copy
    monkeypatch.setattr(staging, '_copy', lambda *a: (copied.append(a[1]), copy_file(*a)))
    threads = [threading.Thread(target=stage, args=(dataset, tmp_path / 'stage')) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copied) == len(set(copied)) > 5
    assert contents(staged_directory(dataset, tmp_path / 'stage')) == contents(dataset)


def test_datasets_of_the_same_name_do_not_meet(tmp_path, dataset):
    build_small(tmp_path / 'other' / 'small', 2)
    a, b = (stage(directory, tmp_path / 'stage') for directory in (dataset, tmp_path / 'other' / 'small'))
    assert (len(Shards(a)), len(Shards(b))) == (10, 2)


def test_from_a_bucket(tmp_path, bucket):
    build_small('gs://b/data/small', 10, embed=False)
    copy = stage('gs://b/data/small', tmp_path / 'stage')
    assert copy.name.startswith('small-')
    assert contents(copy) == bucket.contents('b/data/small')
    assert verify_dataset(copy).problems == []


def test_what_cannot_be_staged_is_one_line(tmp_path, dataset, monkeypatch):
    with pytest.raises(ConfigError, match='a folder on a local disk'):
        stage(dataset, 'gs://b/stage')
    with pytest.raises(DataError, match='no dataset with a complete split here'):
        stage(tmp_path / 'nowhere', tmp_path / 'stage')
    with pytest.raises(DataError, match="no split 'test'"):
        stage(dataset, tmp_path / 'stage', splits=['test'])
    (tmp_path / 'file').write_text('no folder')
    with pytest.raises(DataError, match='cannot be copied'):
        stage(dataset, tmp_path / 'file')
    staged_directory(dataset, tmp_path / 'mine').mkdir(parents=True)
    (staged_directory(dataset, tmp_path / 'mine') / 'diary.txt').write_text('dear diary')
    with pytest.raises(DataError, match='not a copy of a dataset'):
        stage(dataset, tmp_path / 'mine')
    usage = staging.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(staging.shutil, 'disk_usage', lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r'0\.0 GB are free'):
        stage(dataset, tmp_path / 'stage')
    assert not (tmp_path / 'nowhere').exists()
