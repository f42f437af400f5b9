"""The equalizer's file: what is written is read, and damage is one line."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from support.evaluation_results import RESULTS
from support.small_separator import CONFIG, save_small

from audiosep_jax.checkpoints.equalizer_file import FILE, read_equalizer, remove_equalizer
from audiosep_jax.checkpoints.equalizer_file import write_equalizer as write
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.publish import make_repository
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import CheckpointError, DataError
from audiosep_jax.models.equalizer import Equalizer
from audiosep_jax.storage.buckets import as_path
from audiosep_jax.weights.tensor_files import write_tensors

ENCODER = load_encoder('words').identity()


def write_equalizer(folder, equalizer):
    write(folder, equalizer, ENCODER)


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
    card = (tmp_path / 'repository' / 'README.md').read_text()
    assert 'mixes in an equalizer (`equalizer.safetensors`), as 50% of the result' in card
    remove_equalizer(folder)
    make_repository(folder, tmp_path / 'later', 'me/mine')
    shutil.copy(tmp_path / 'repository' / FILE, tmp_path / 'later')  # as an upload leaves it
    assert open_checkpoint(tmp_path / 'later').equalizer is None
    assert_same(open_checkpoint(tmp_path / 'repository').equalizer, equalizer())


def test_in_a_bucket(bucket):
    folder = as_path('gs://bucket/run')
    write_equalizer(folder, equalizer())
    assert_same(read_equalizer(folder, CONFIG, ENCODER), equalizer())
    assert read_equalizer(as_path('gs://bucket/other'), CONFIG, ENCODER) is None


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'power': np.full((4, 65), np.nan, np.float32)}, 'negative or not finite'),
        ({'power': np.full((4, 65), -1, np.float32)}, 'negative or not finite'),
        ({'counts': np.zeros(4, np.float32)}, 'negative or not finite'),
        ({'temperature': 0.0}, 'negative or not finite'),
        ({'power': np.ones((4, 33), np.float32)}, 'of another network'),
    ],
)
def test_numbers_that_are_none(tmp_path, changes, says):
    write_equalizer(tmp_path, equalizer(**changes))
    with pytest.raises(CheckpointError, match=f'{FILE}: .*{says}.*: remove it'):
        read_equalizer(tmp_path, CONFIG, ENCODER)


def test_arrays_and_numbers_that_do_not_fit_together(tmp_path):
    arrays = {name: getattr(equalizer(), name) for name in ('embeddings', 'power', 'counts')}
    numbers = {'temperature': np.float32(0.1), 'share': np.float32(2)}
    encoder = {'encoder': json.dumps(ENCODER, sort_keys=True)}
    write_tensors(tmp_path / FILE, arrays | numbers, encoder)
    with pytest.raises(CheckpointError, match='cannot be used: the share'):
        read_equalizer(tmp_path, CONFIG, ENCODER)
    write_tensors(tmp_path / FILE, arrays | numbers | {'counts': np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match=r'of another network: its arrays are \[4, 512\], \[4, 65\], \[3\]'):
        read_equalizer(tmp_path, CONFIG, ENCODER)
    write_tensors(tmp_path / FILE, arrays)
    with pytest.raises(CheckpointError, match="it is not one: 'temperature'"):
        read_equalizer(tmp_path, CONFIG, ENCODER)


def test_a_file_that_was_cut_short_or_changed(tmp_path):
    write_equalizer(tmp_path, equalizer())
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match='truncated'):
        read_equalizer(tmp_path, CONFIG, ENCODER)
    (tmp_path / FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match='damaged'):
        read_equalizer(tmp_path, CONFIG, ENCODER)


def test_of_another_encoder(tmp_path):
    write_equalizer(tmp_path, equalizer())
    with pytest.raises(CheckpointError, match=f'{FILE}: .*it is of another query encoder: remove it'):
        read_equalizer(tmp_path, CONFIG, {**ENCODER, 'version': 99})
    # Where the weights came from does not matter.
    assert_same(read_equalizer(tmp_path, CONFIG, {**ENCODER, 'source': 'here'}), equalizer())


def test_removed(tmp_path):
    assert not remove_equalizer(tmp_path)
    write_equalizer(tmp_path, equalizer())
    assert remove_equalizer(tmp_path)
    assert read_equalizer(tmp_path, CONFIG, ENCODER) is None


def test_scores_of_another_share_are_not_published(tmp_path):
    folder = save_small(tmp_path / 'run')
    write_equalizer(folder, equalizer())
    made_up = {**RESULTS, 'checkpoint': {**RESULTS['checkpoint'], 'step': 7, 'equalizer': 0.0}}
    (tmp_path / 'scores.json').write_text(json.dumps(made_up))
    says = r'scores with an equalizer of 0, but that of the checkpoint is 0\.5'
    with pytest.raises(DataError, match=says):
        make_repository(folder, tmp_path / 'repository', 'me/mine', results=[tmp_path / 'scores.json'])


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='cannot be written'):
        write_equalizer(tmp_path / 'file', equalizer())
