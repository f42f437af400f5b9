"""The equalizer's file: what is written is read, and damage is one line."""

import dataclasses

import numpy as np
import pytest
from support.small_separator import CONFIG, save_small

from audiosep_jax.checkpoints.equalizer_file import FILE, read_equalizer, write_equalizer
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.publish import make_repository
from audiosep_jax.errors import CheckpointError
from audiosep_jax.models.equalizer import Equalizer
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.weights.tensor_files import write_tensors


def equalizer(captions=4, **changes) -> Equalizer:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((captions, CONFIG.condition_size)).astype(np.float32)
    power = rng.uniform(0, 2, (captions, CONFIG.window_size // 2 + 1)).astype(np.float32)
    made = Equalizer(embeddings, power, np.ones(captions, np.float32), 0.125, 0.5)
    return dataclasses.replace(made, **changes)


def assert_same(one, other):
    for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_written_and_read_with_the_checkpoint_of_any_step(tmp_path):
    folder = save_small(tmp_path / 'run')
    assert open_checkpoint(folder).equalizer is None
    write_equalizer(folder, equalizer())
    assert_same(open_checkpoint(folder).equalizer, equalizer())
    assert_same(open_checkpoint(folder / 'checkpoints' / '7').equalizer, equalizer())
    write_equalizer(folder, equalizer(share=0.25))
    assert open_checkpoint(folder).equalizer.share == 0.25


def test_published_with_the_checkpoint(tmp_path):
    folder = save_small(tmp_path / 'run')
    write_equalizer(folder, equalizer())
    written = make_repository(folder, tmp_path / 'repository', 'me/mine')
    assert FILE in {path.name for path in written}
    assert_same(open_checkpoint(tmp_path / 'repository').equalizer, equalizer())


def test_in_a_bucket(bucket):
    folder = as_path('gs://bucket/run')
    write_equalizer(folder, equalizer())
    assert_same(read_equalizer(folder, CONFIG), equalizer())
    assert read_equalizer(as_path('gs://bucket/other'), CONFIG) is None


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'power': np.full((4, 65), np.nan, np.float32)}, 'not finite or negative'),
        ({'power': np.full((4, 65), -1, np.float32)}, 'not finite or negative'),
        ({'counts': np.zeros(4, np.float32)}, 'not finite or negative'),
        ({'temperature': 0.0}, 'not finite or negative'),
        ({'power': np.ones((4, 33), np.float32)}, 'of another network'),
    ],
)
def test_numbers_that_are_none(tmp_path, changes, says):
    write_equalizer(tmp_path, equalizer(**changes))
    with pytest.raises(CheckpointError, match=f'{FILE}: .*{says}.*: remove it'):
        read_equalizer(tmp_path, CONFIG)


def test_arrays_and_numbers_that_do_not_fit_together(tmp_path):
    arrays = {name: getattr(equalizer(), name) for name in ('embeddings', 'power', 'counts')}
    numbers = {'temperature': np.float32(0.1), 'share': np.float32(2)}
    write_tensors(tmp_path / FILE, arrays | numbers)
    with pytest.raises(CheckpointError, match='not an equalizer: the share'):
        read_equalizer(tmp_path, CONFIG)
    write_tensors(tmp_path / FILE, arrays | numbers | {'counts': np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match=r'of another network: its arrays are \[4, 512\], \[4, 65\], \[3\]'):
        read_equalizer(tmp_path, CONFIG)
    write_tensors(tmp_path / FILE, arrays)
    with pytest.raises(CheckpointError, match="not an equalizer: 'temperature'"):
        read_equalizer(tmp_path, CONFIG)


def test_a_file_that_was_cut_short_or_changed(tmp_path):
    write_equalizer(tmp_path, equalizer())
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match='truncated'):
        read_equalizer(tmp_path, CONFIG)
    (tmp_path / FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match='damaged'):
        read_equalizer(tmp_path, CONFIG)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='cannot be written'):
        write_equalizer(tmp_path / 'file', equalizer())
