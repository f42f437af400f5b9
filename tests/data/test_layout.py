"""The layout of a dataset: names of files, and what is said of a folder that is not a dataset."""

import pytest
from support.small_dataset import build_small

from audiosep_jax.data.layout import (
    read_split_info,
    read_summary,
    shard_path,
    split_info_path,
    split_names,
    summary_path,
)
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError


def test_files_are_named_by_split_and_shard(tmp_path):
    build_small(tmp_path, 10)
    build_small(tmp_path, 3, split='validation')
    info = read_split_info(tmp_path, 'train')
    assert (info.num_shards, info.num_clips, info.complete) == (3, 10, True)
    assert split_names(tmp_path) == ['train', 'validation']
    assert shard_path(tmp_path, info, 1).name == 'small-train.array_record-00001-of-00003'
    assert all(shard_path(tmp_path, info, shard).is_file() for shard in range(3))
    assert [len(read_summary(tmp_path, info, shard)['captions']) for shard in range(3)] == [4, 4, 2]


def test_a_summary_of_another_build_is_refused(tmp_path):
    build_small(tmp_path, 2)
    info = read_split_info(tmp_path, 'train')
    path = summary_path(tmp_path, info, 0)
    path.write_text(path.read_text().replace(info.fingerprint, 'x' * len(info.fingerprint)))
    with pytest.raises(DataError, match='not a summary of this build'):
        read_summary(tmp_path, info, 0)
    path.unlink()
    with pytest.raises(DataError, match='cannot be read as JSON'):
        read_summary(tmp_path, info, 0)


def test_what_is_no_dataset_is_told_apart(tmp_path):
    with pytest.raises(DataError, match='no such dataset directory'):
        Shards(tmp_path / 'nowhere')
    with pytest.raises(DataError, match='was not made by'):
        Shards(tmp_path)
    build_small(tmp_path / 'd', 2)
    with pytest.raises(DataError, match="no split 'test' here: it has the splits train"):
        Shards(tmp_path / 'd', 'test')


@pytest.mark.parametrize('text', ['', '[]', '{"format_version": 2}', '{"format_version": 1, "nmae": "x"}', '\0'])
def test_damaged_split_description_is_an_error(tmp_path, text):
    build_small(tmp_path, 2)
    split_info_path(tmp_path, 'train').write_text(text)
    with pytest.raises(DataError, match=r'splits/train\.json'):
        read_split_info(tmp_path, 'train')
