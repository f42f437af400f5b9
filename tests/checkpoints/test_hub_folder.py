"""Checkpoints in the hub's format: what is written is read again, and damage is one line."""

import json

import jax
import numpy as np
import pytest
from support.small_separator import save_small

import audiosep_jax as asj
from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.checkpoints.convert import to_torch
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.hub_folder import is_hub_folder, read_hub_folder
from audiosep_jax.checkpoints.publish import make_repository
from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.tensor_files import open_tensors

SOUND = (0.1 * np.random.default_rng(0).standard_normal(1500)).astype(np.float32)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp('run'))


def test_a_hub_folder_holds_the_whole_checkpoint(checkpoint, tmp_path):
    files = make_repository(checkpoint, tmp_path / 'repo', 'me/small')
    assert [path.name for path in files] == ['README.md', 'config.json', 'model.safetensors']
    written, original = read_hub_folder(tmp_path / 'repo'), open_checkpoint(checkpoint)
    jax.tree.map(np.testing.assert_array_equal, written.variables, original.variables)
    assert (written.model, written.encoder, written.step) == (original.model, original.encoder, original.step)
    before, after = asj.load(checkpoint), asj.load(tmp_path / 'repo')
    for out in ('targets', 'residual'):
        expected = getattr(before.separate(SOUND, 'rain', sample_rate=8000), out)
        np.testing.assert_array_equal(getattr(after.separate(SOUND, 'rain', sample_rate=8000), out), expected)
    assert after.info['step'] == 7
    assert open_checkpoint(tmp_path / 'repo', step=7).step == 7
    with pytest.raises(CheckpointError, match='no step 8; it has 7'):
        open_checkpoint(tmp_path / 'repo', step=8)


def test_the_level_of_the_training_comes_along(checkpoint, tmp_path):
    level = Level(-40.0, -30.0, -20.0, 256)
    make_repository(save_small(tmp_path / 'run', level=level), tmp_path / 'repo', 'me/small')
    assert open_checkpoint(tmp_path / 'run').level == read_hub_folder(tmp_path / 'repo').level == level
    assert asj.load(tmp_path / 'repo').level == 'auto'
    make_repository(checkpoint, tmp_path / 'without', 'me/small')
    assert 'level' not in json.loads((tmp_path / 'without' / 'config.json').read_text())
    assert open_checkpoint(checkpoint).level is read_hub_folder(tmp_path / 'without').level is None
    assert asj.load(tmp_path / 'without').level == 'off'
    settings = json.loads((tmp_path / 'repo' / 'config.json').read_text())
    del settings['sha256']
    for damage, says in (({**settings['level'], 'high_db': -90.0}, 'no level has'), ({'low_db': 1.0}, 'no key')):
        (tmp_path / 'repo' / 'config.json').write_text(json.dumps({**settings, 'level': damage}))
        with pytest.raises(CheckpointError, match=rf'config\.json: .*{says}') as refused:
            asj.load(tmp_path / 'repo')
        assert '\n' not in str(refused.value)


def test_other_folders_are_not_hub_folders(checkpoint, tmp_path):
    make_repository(checkpoint, tmp_path / 'repo', 'me/small')
    assert is_hub_folder(tmp_path / 'repo')
    assert not is_hub_folder(checkpoint)
    settings = tmp_path / 'repo' / 'config.json'
    for text in ('{"model_type": "clap"}', '[]', '{', '[' * 100_000):
        settings.write_text(text)
        assert not is_hub_folder(tmp_path / 'repo')
    settings.write_text('[]')
    with pytest.raises(CheckpointError, match=r'config\.json: expected an object, got a list: download it again'):
        open_checkpoint(tmp_path / 'repo')


def test_the_tensors_have_their_original_names(checkpoint, tmp_path):
    make_repository(checkpoint, tmp_path / 'repo', 'me/small')
    to_torch(open_checkpoint(checkpoint), tmp_path / 'as_converted.safetensors')
    expected = open_tensors(tmp_path / 'as_converted.safetensors')
    found = open_tensors(tmp_path / 'repo' / 'model.safetensors')
    assert set(found) == {name for name in expected if name.startswith('ss_model.')}
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def test_damaged_folders_are_one_line(checkpoint, tmp_path):
    make_repository(checkpoint, tmp_path / 'repo', 'me/small')
    config, weights = tmp_path / 'repo' / 'config.json', tmp_path / 'repo' / 'model.safetensors'
    good, data = json.loads(config.read_text()), weights.read_bytes()
    config.write_text(json.dumps({**good, 'step': 3}))
    with pytest.raises(CheckpointError, match=r'config\.json: damaged: its checksum differs'):
        asj.load(tmp_path / 'repo')
    del good['sha256']  # as older versions wrote it
    for change, message in (
        ({'format_version': 9}, 'has format 9'),
        ({'step': 'x'}, "step: expected a whole number, got 'x'"),
        ({'step': -1}, 'the step -1 is negative'),
        ({'encoder': 3}, 'encoder: expected an object or null, got 3'),
        ({'encoder': {'name': ['words'], 'embedding_size': 8}}, 'encoder.name: expected a text, got a list'),
        ({'model': {**good['model'], 'hop_sise': 3}}, 'hop_size'),
        ({'model': {**good['model'], 'widths': [4] * 6}}, 'model.safetensors: '),
        ({'model': 3}, 'model: expected an object, got 3'),
    ):
        config.write_text(json.dumps({**good, **change}))
        with pytest.raises(CheckpointError, match=message) as error:
            asj.load(tmp_path / 'repo')
        assert '\n' not in str(error.value)
    config.write_text(json.dumps(good))
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match='truncated'):
        asj.load(tmp_path / 'repo')
