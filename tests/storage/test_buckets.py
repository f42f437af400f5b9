import pathlib

import pytest
from support.small_dataset import build_small, small_clips

from audiosep_jax.data.layout import read_split_info, split_names
from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.storage.buckets import as_path, is_bucket, reaching, size, write_bytes
from data_prep.__main__ import main
from data_prep.build import _write_shard
from data_prep.clips.sources import ClipsInMemory


def contents(directory) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob('*') if p.is_file()}


def test_addresses_are_distinguished_from_paths(tmp_path):
    assert isinstance(as_path(tmp_path), pathlib.Path)
    assert str(as_path('gs://b/a') / 'x.json') == 'gs://b/a/x.json'
    assert [is_bucket(p) for p in ('gs://b', 's3://b/c', as_path('gs://b/c'), tmp_path, 'gs:/b')] == [1, 1, 1, 0, 0]
    with pytest.raises(ConfigError, match='ftp://b: unknown kind of address'):
        as_path('ftp://b')


def test_a_build_into_a_bucket_is_the_local_one(tmp_path, bucket):
    build_small(tmp_path / 'small', 10, embed=False)
    result = build_small('gs://b/data/small', 10, embed=False)
    assert result.info.complete
    assert bucket.contents('b/data/small') == contents(tmp_path / 'small')
    assert split_names('gs://b/data/small') == ['train']
    assert read_split_info('gs://b/data/small', 'train') == result.info


def test_a_build_into_a_bucket_resumes_where_it_stopped(tmp_path, bucket):
    build_small(tmp_path / 'small', 10, embed=False)
    assert not build_small('gs://b/small', 10, embed=False, shard_range=(0, 2)).info.complete
    shard = next(path for path in bucket.store if '-00001-of-' in path and 'array_record' in path)
    bucket.store[shard].truncate(100)  # as an upload that was cut off
    assert build_small('gs://b/small', 10, embed=False).num_shards_made == 2
    assert bucket.contents('b/small') == contents(tmp_path / 'small')
    assert build_small('gs://b/small', 10, embed=False).num_shards_made == 0


def test_splits_share_a_bucket(tmp_path, bucket):
    for directory in (tmp_path / 'small', 'gs://b/small'):
        build_small(directory, 10, embed=False)
        build_small(directory, 3, embed=False, split='validation')
    assert bucket.contents('b/small') == contents(tmp_path / 'small')
    with pytest.raises(DataError, match="holds the dataset 'small'"):
        build_small('gs://b/small', 10, embed=False, name='other')


def test_a_bucket_that_refuses_is_one_line_and_holds_no_half_shard(bucket, monkeypatch):
    monkeypatch.setattr(bucket, 'refused', ('array_record-00001',))
    with pytest.raises(DataError, match=r'00001-of-00003: cannot be written: .*no permission') as caught:
        build_small('gs://b/small', 10, embed=False)
    assert '\n' not in str(caught.value)
    assert not [name for name in bucket.contents('b/small') if 'array_record-00001' in name]
    monkeypatch.setattr(bucket, 'refused', ())
    assert build_small('gs://b/small', 10, embed=False).num_shards_made == 2


class _Strange(Exception):
    """As cloud libraries have them: it cannot be pickled, so no worker could hand it on."""

    def __reduce__(self):
        raise TypeError('cannot be pickled')


def test_strange_errors_of_a_worker_are_one_line(bucket, monkeypatch):
    def refuse(source, destination):
        raise _Strange('403: no billing')

    build_small('gs://b/small', 4, embed=False)
    bucket.store.pop(next(path for path in bucket.store if 'array_record' in path))
    monkeypatch.setattr('audiosep_jax.storage.buckets._copy', refuse)
    clips = ClipsInMemory(small_clips(4))
    plan = read_split_info('gs://b/small', 'train')
    with pytest.raises(DataError, match='cannot be read or written: _Strange: 403: no billing'):
        _write_shard(clips, as_path('gs://b/small'), plan, 0, lambda: None)


def test_an_upload_that_arrives_in_part_is_an_error_and_removed(bucket, monkeypatch):
    def cut(source, destination):
        destination.write_bytes(source.read_bytes()[:-1])

    monkeypatch.setattr('audiosep_jax.storage.buckets._copy', cut)
    with pytest.raises(OSError, match='4 of 5 bytes arrived'):
        write_bytes(as_path('gs://b/x'), b'12345')
    assert bucket.contents('b') == {}


def test_sizes_of_files_and_objects(tmp_path, bucket):
    for path in (tmp_path / 'x', as_path('gs://b/x')):
        write_bytes(path, b'12345')
        assert size(path) == 5


def test_what_buckets_libraries_raise_is_one_line(monkeypatch, capsys):
    def missing(self, name):
        raise ImportError('Install gcsfs to access Google Cloud Storage')

    monkeypatch.setattr('etils.epath.backend._FileSystemSpecBackend._get_filesystem', missing)
    monkeypatch.setenv('EPATH_USE_TF', 'false')
    flags = ['--clips', '3', '--seconds', '0.5', '--sample-rate', '8000', '--jobs', '1']
    assert main(['build', 'synthetic', *flags, '--out', 'gs://b/d']) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert 'gs://b/d: cannot be read or written: ImportError' in lines[0]
    assert 'pip install gcsfs' in lines[0]


def test_bugs_are_not_taken_for_a_bucket_that_cannot_be_reached(tmp_path):
    with pytest.raises(ZeroDivisionError), reaching(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(DataError, match='ZeroDivisionError'), reaching('gs://b'):
        raise ZeroDivisionError
    with pytest.raises(PermissionError), reaching('gs://b'):
        raise PermissionError
