"""Tests that CLAP and CLIP are found by path, by repository and by recorded identity."""

import json
import os
import shutil

import numpy as np
import pytest
from support import tiny_clap

from audiosep_jax.encoders.base import same_encoder
from audiosep_jax.encoders.pretrained import kind_of, locate, store
from audiosep_jax.encoders.registry import encoder_names, load_encoder
from audiosep_jax.errors import CheckpointError, ConfigError, DownloadError, EncoderMismatchError, QueryError
from audiosep_jax.weights.tensor_files import write_tensors


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A folder as CLAP's repositories are."""
    folder = tmp_path_factory.mktemp('published')
    write_tensors(folder / 'model.safetensors', tiny_clap.hugging_face_tensors())
    (folder / 'config.json').write_text(json.dumps(tiny_clap.CONFIG))
    tiny_clap.write_tokenizer(folder)
    return folder


def test_by_path(published):
    encoder = load_encoder(published)
    assert encoder.name == 'clap'
    assert encoder.name in encoder_names()
    assert encoder.encode_text(['dog', 'rain']).shape == (2, 16)
    assert encoder.identity()['source'] == str(published)


def test_an_identity_finds_its_weights_again(published, tmp_path):
    encoder = load_encoder(published)
    identity = json.loads(json.dumps(encoder.identity()))
    again = load_encoder(identity)
    np.testing.assert_array_equal(again.encode_text(['dog']), encoder.encode_text(['dog']))

    shutil.copytree(published, tmp_path / 'moved')
    elsewhere = identity | {'source': 'nowhere/at all'}
    moved = load_encoder(elsewhere, folders=[tmp_path / 'missing', tmp_path / 'moved'])
    assert same_encoder(moved.identity(), identity)
    with pytest.raises(ConfigError, match='no query encoder at nowhere/at all'):
        load_encoder(elsewhere)


def test_a_relative_path_is_recorded_in_full(published, tmp_path, monkeypatch):
    monkeypatch.chdir(published.parent)
    identity = load_encoder(published.name).identity()
    assert identity['source'] == str(published)
    monkeypatch.chdir(tmp_path)
    assert same_encoder(load_encoder(identity).identity(), identity)


def test_both_namings_are_one_encoder(published, tmp_path):
    write_tensors(tmp_path / 'laion.safetensors', tiny_clap.laion_tensors())
    tiny_clap.write_tokenizer(tmp_path)
    laion, hugging_face = load_encoder(tmp_path / 'laion.safetensors'), load_encoder(published)
    assert same_encoder(laion.identity(), hugging_face.identity())
    assert laion.identity() != hugging_face.identity()  # their sources differ


def test_other_weights_or_versions_are_refused(published, tmp_path):
    identity = load_encoder(published).identity()
    with pytest.raises(EncoderMismatchError, match='version 99'):
        load_encoder(identity | {'version': 99})
    with pytest.raises(EncoderMismatchError, match='are not those that were recorded'):
        load_encoder(identity | {'weights': '0' * 16})
    with pytest.raises(EncoderMismatchError, match='settings'):
        load_encoder(identity | {'temperature': 1})


def test_of_the_hub(published, offline):
    files = {name: (published / name).read_text() for name in ('config.json', 'vocab.json', 'merges.txt')}
    folder = offline('some/clap', files)
    shutil.copyfile(published / 'model.safetensors', folder / 'model.safetensors')
    encoder = load_encoder('some/clap')
    assert encoder.identity()['source'] == 'some/clap'
    assert same_encoder(encoder.identity(), load_encoder(published).identity())
    assert same_encoder(load_encoder('some/clap:model.safetensors').identity(), encoder.identity())


@pytest.mark.parametrize(('name', 'repository'), [('clap', 'laion/larger_clap_general'), ('clip', 'openai/clip-vit-b')])
def test_offline_a_name_says_what_to_put_where(offline, name, repository):
    with pytest.raises(DownloadError, match=f'https://huggingface.co/{repository}.* put it at a folder of your choice'):
        load_encoder(name)


def test_without_a_tokenizer(published, offline, tmp_path):
    shutil.copytree(published, tmp_path / 'bare')
    for name in ('vocab.json', 'merges.txt'):
        os.remove(tmp_path / 'bare' / name)
    encoder = load_encoder(tmp_path / 'bare')
    assert encoder.encode_token_ids(np.array([[0, 5, 2]])).shape == (1, 16)
    with pytest.raises(DownloadError, match=r'FacebookAI/roberta-base.*put it at .*bare/tokenizer\.json'):
        encoder.encode_text(['dog'])
    with pytest.raises(QueryError):  # the empty query is reported first
        encoder.encode_text([' '])


@pytest.mark.parametrize(
    ('files', 'says'),
    [
        ({}, 'no model.safetensors'),
        ({'config.json': '{"model_type": "bert"}'}, 'no model.safetensors'),
        ({'config.json': 'nonsense'}, 'config.json: not valid JSON: Expecting value'),
        ({'config.json': '[]'}, 'config.json: expected an object, got a list: not the settings of a model'),
    ],
)
def test_folders_without_weights_or_with_damaged_settings(files, says, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=says):
        load_encoder(tmp_path)


def test_weights_of_other_models(tmp_path):
    for tensors, says in (
        ({'x': np.zeros(1)}, 'no CLAP or CLIP weights'),
        ({'vision_model.x': np.zeros(1)}, 'without their config.json'),
    ):
        write_tensors(tmp_path / 'x.safetensors', tensors)
        with pytest.raises(CheckpointError, match=says):
            kind_of(tmp_path / 'x.safetensors')


def test_settings_of_another_model_beside_the_weights(tmp_path):
    """A repository of AudioSep's whole module has its own config.json, and a downloads folder may have any."""
    tiny_clap.write_tokenizer(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "bert"}')
    tensors = {f'query_encoder.model.{k}': v for k, v in tiny_clap.laion_tensors().items()}
    write_tensors(tmp_path / 'model.safetensors', tensors)
    assert load_encoder(tmp_path).name == 'clap'
    store(tmp_path / 'model.safetensors', tmp_path / 'stored')
    assert sorted(os.listdir(tmp_path / 'stored')) == ['merges.txt', 'model.safetensors', 'vocab.json']
    write_tensors(tmp_path / 'model.safetensors', {'x': np.zeros(1)})
    with pytest.raises(CheckpointError, match=r"no CLAP or CLIP weights.*'bert'"):
        load_encoder(tmp_path)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'clap'"):
        load_encoder('clapp')
    with pytest.raises(ConfigError, match=r'no query encoder at \./weights'):
        load_encoder('./weights')


def test_the_encoder_in_a_checkpoint(published, tmp_path):
    store(published, tmp_path / 'run' / 'encoder')
    assert locate(str(tmp_path / 'run')) == tmp_path / 'run' / 'encoder'
    assert sorted(os.listdir(tmp_path / 'run' / 'encoder')) == sorted(os.listdir(published))
    assert same_encoder(load_encoder(tmp_path / 'run').identity(), load_encoder(published).identity())
