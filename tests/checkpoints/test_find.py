"""Opening checkpoints by name, with a local folder in place of the hub."""

import json
import shutil

import jax
import pytest
from support import tiny_clap

import audiosep_jax as asj
from audiosep_jax.checkpoints import convert, find
from audiosep_jax.cli.main import main
from audiosep_jax.errors import CheckpointError, DownloadError
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.torch_names import tensors_from_variables
from audiosep_jax.weights.tensor_files import write_tensors
from audiosep_jax.weights.torch_files import write_torch

MODEL = ModelConfig(widths=(1,) * 6, condition_size=16)  # the official front end with a tiny network


@pytest.fixture(scope='module')
def weights():
    state = tensors_from_variables(jax.device_get(init_variables(MODEL, jax.random.key(0))), MODEL)
    tensors = {f'ss_model.{k}': v for k, v in state.items()}
    return tensors | {f'query_encoder.model.{k}': v for k, v in tiny_clap.laion_tensors().items()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'audiosep_jax' / 'checkpoints'


def test_the_official_weights_are_fetched_and_converted_once(weights, offline, cache, monkeypatch):
    snapshot = offline('Audio-AGI/AudioSep', {'checkpoint/readme': ''}, kind='spaces')
    write_torch(snapshot / 'checkpoint' / 'audiosep_base_4M_steps.ckpt', {'state_dict': weights})
    separator = asj.load()
    assert separator.config == MODEL
    assert separator.encoder.name == 'clap'
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(convert, 'from_torch', None)  # must not be called again
    assert asj.load().info == separator.info


def test_the_offline_remedy_works(weights, offline, cache, tmp_path, capsys):
    with pytest.raises(DownloadError) as error:
        asj.load()
    message = str(error.value)
    assert 'checkpoint/audiosep_base_4M_steps.ckpt of https://huggingface.co/spaces/Audio-AGI/AudioSep' in message
    command = message.split('`')[1].split()
    assert command[:3] == ['audiosep-jax', 'convert', 'FILE']
    write_torch(tmp_path / 'got.ckpt', {'state_dict': weights})
    assert main(['convert', str(tmp_path / 'got.ckpt'), command[3]]) == 0
    assert asj.load().config == MODEL


@pytest.mark.parametrize('reference', ['some/model', 'some/model:model.safetensors'])
def test_a_repository_with_the_original_s_weights(weights, offline, cache, reference):
    snapshot = offline('some/model', {'config.json': '{}'})
    write_tensors(snapshot / 'model.safetensors', weights)
    assert asj.load(reference).config == MODEL
    shutil.rmtree(snapshot)
    assert asj.load(reference).config == MODEL  # from the user's cache


def test_a_repository_with_a_run_folder(weights, offline, cache, tmp_path):
    write_tensors(tmp_path / 'x.safetensors', weights)
    convert.from_torch(tmp_path / 'x.safetensors', tmp_path / 'ours')
    snapshot = offline('some/ours', {'README.md': 'hello'})
    shutil.copytree(tmp_path / 'ours', snapshot, dirs_exist_ok=True)
    separator = asj.load('some/ours')
    assert separator.config == MODEL
    assert separator.encoder.name == 'clap'
    assert not cache.exists()


def test_a_repository_with_several_checkpoints_is_not_guessed(offline, cache):
    offline('some/many', {'a.ckpt': '', 'b/c.pt': ''})
    with pytest.raises(CheckpointError, match=r'several checkpoints \(a.ckpt, b/c.pt\).*some/many:FILE'):
        asj.load('some/many')
    offline('some/none', {'a.txt': ''})
    with pytest.raises(DownloadError, match=r'there is no folder .*some/none either'):
        asj.load('some/none')
    assert not cache.exists() or list(cache.iterdir()) == []


def test_each_reference_has_its_own_folder():
    references = ['a/b:m.ckpt', 'a/b:m.safetensors', 'a/b:x/y.pt', 'a/b:x--y.pt', 'a/b']
    folders = [find._conversion_folder(reference) for reference in references]
    assert len(set(folders)) == 5
    assert not any(folder.suffix for folder in folders)  # .ckpt would be taken for a file for PyTorch


def test_paths(tmp_path, cache):
    (tmp_path / 'x.ckpt').write_bytes(b'')
    (tmp_path / 'notes.txt').write_text(json.dumps({}))
    for path, says in (
        (tmp_path / 'x.ckpt', f'convert it with `audiosep-jax convert {tmp_path}/x.ckpt DIR`'),
        (tmp_path / 'notes.txt', 'it is a file, and a checkpoint is a folder'),
        (tmp_path / 'missing', 'no such checkpoint'),
        ('missing.ckpt', 'no such checkpoint'),
        ('missing/x.ckpt', 'no such checkpoint'),
    ):
        with pytest.raises(CheckpointError, match=says):
            find.find_checkpoint(path)
    assert find.find_checkpoint(tmp_path) == tmp_path
