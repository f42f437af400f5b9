"""Opening checkpoints by name, with a local folder, or a server on this machine, in place of the hub and of Zenodo."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from support import tiny_clap
from support.file_server import serving
from support.paths import ROOT

import audiosep_jax as asj
from audiosep_jax.checkpoints import convert, find
from audiosep_jax.checkpoints.named import NAMED, conversion_folder
from audiosep_jax.cli.main import main
from audiosep_jax.encoders.tokenizer import open_tokenizer
from audiosep_jax.errors import CheckpointError, DownloadError
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.torch_names import tensors_from_variables
from audiosep_jax.weights import download as downloads
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


@pytest.mark.slow
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
    folders = [conversion_folder(reference) for reference in references]
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


# ---- published checkpoints by name -----------------------------------------------------------------------------------

MODEL_16K = ModelConfig(sample_rate=16000, window_size=1024, hop_size=160, widths=(1,) * 6, condition_size=16)
HIVE = '/AlayaLab/AudioSep-hive/resolve/main/audiosep_hive.ckpt'
CLAP = '/lukewys/laion_clap/resolve/main/music_speech_audioset_epoch_15_esc_89.98.pt'
OFFICIAL = '/spaces/Audio-AGI/AudioSep/resolve/main/checkpoint/audiosep_base_4M_steps.ckpt'
DCASE = '/records/10887460/files/audiosep_16k,baseline,step=200000.ckpt'


def as_file(folder, tree):
    write_torch(folder / 'x.pt', tree)
    return (folder / 'x.pt').read_bytes()


@pytest.fixture(scope='module')
def files(weights, tmp_path_factory):
    """The published files, in their layouts, with few and random weights."""
    folder = tmp_path_factory.mktemp('files')
    separator = {name: value for name, value in weights.items() if name.startswith('ss_model.')}
    state_16k = tensors_from_variables(jax.device_get(init_variables(MODEL_16K, jax.random.key(1))), MODEL_16K)
    lightning = {f'ss_model.{name}': value for name, value in state_16k.items()}
    lightning |= {name: value for name, value in weights.items() if name.startswith('query_encoder.')}
    laion = {f'module.{name}': value for name, value in tiny_clap.laion_tensors().items()}
    tiny_clap.write_tokenizer(folder)
    open_tokenizer(folder, 'roberta')._backend.save(str(folder / 'tokenizer.json'))
    return {
        OFFICIAL: as_file(folder, {'state_dict': weights}),
        HIVE: as_file(folder, {'state_dict': separator}),
        CLAP: as_file(folder, {'epoch': 15, 'name': 'x', 'state_dict': laion, 'optimizer': {'state': {}}}),
        DCASE: as_file(folder, {'epoch': 0, 'global_step': 200000, 'state_dict': lightning, 'optimizer_states': []}),
        '/FacebookAI/roberta-base/resolve/main/tokenizer.json': (folder / 'tokenizer.json').read_bytes(),
    }


@pytest.fixture
def web(files, cache, tmp_path, monkeypatch):
    """The published files on a server of this machine, in place of the hub and of Zenodo."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(downloads, '_PAUSE', 0.01)
    with serving() as served:
        served.files |= files
        monkeypatch.setattr(constants, 'ENDPOINT', served.url)
        template = served.url + '/{repo_id}/resolve/{revision}/{filename}'
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
        dcase = NAMED['audiosep-dcase2024']
        address = dcase.separator.address.replace('https://zenodo.org', served.url)
        moved = dataclasses.replace(dcase, separator=dataclasses.replace(dcase.separator, address=address))
        monkeypatch.setitem(NAMED, dcase.name, moved)
        yield served


def fetched(web):
    """The large files that the server has sent, in order."""
    return [path for method, path, _ in web.requests if method == 'GET' and path in (OFFICIAL, HIVE, CLAP, DCASE)]


def command_in(error):
    """The words of the command that a message offers."""
    return str(error.value).split('`')[1].split()


@pytest.mark.slow
def test_the_default_has_a_name_and_keeps_its_place(web, cache):
    folder = find.find_checkpoint('audiosep')
    assert folder == cache / 'spaces-Audio-AGI-AudioSep-checkpoint-audiosep_base_4M_steps-ckpt-fe1e505d'
    assert find.find_checkpoint(None) == folder
    assert find.find_checkpoint('spaces/Audio-AGI/AudioSep:checkpoint/audiosep_base_4M_steps.ckpt') == folder
    assert fetched(web) == [OFFICIAL]  # it contains its CLAP


def test_the_query_encoder_comes_from_a_second_file(web):
    separator = asj.load('audiosep-hive')
    assert separator.config == MODEL
    assert separator.embed('a dog').shape == (1, 16)
    assert separator.info['encoder']['source'] == 'lukewys/laion_clap:music_speech_audioset_epoch_15_esc_89.98.pt'
    assert fetched(web) == [HIVE, CLAP]
    assert find.find_checkpoint('AlayaLab/AudioSep-hive:audiosep_hive.ckpt') == NAMED['audiosep-hive'].kept
    assert asj.load('audiosep-hive').info == separator.info
    assert fetched(web) == [HIVE, CLAP]


def test_a_query_encoder_in_the_file_itself_is_the_one(web):
    web.files[HIVE] = web.files[OFFICIAL]
    assert asj.load('audiosep-hive').embed('a dog').shape == (1, 16)
    assert fetched(web) == [HIVE]


def test_a_file_outside_the_hub(web, cache, caplog):
    separator = asj.load('audiosep-dcase2024')
    assert separator.config == MODEL_16K
    assert separator.info['step'] == 200000
    sound = np.random.default_rng(0).uniform(-0.1, 0.1, 2000).astype(np.float32)
    assert separator.separate(sound, 'a dog', sample_rate=16000).targets.shape == (1, 1, 2000)
    assert list((cache.parent / 'downloads').iterdir()) == []  # everything in it has been converted
    asj.load('audiosep-dcase2024')
    assert fetched(web) == [DCASE]
    assert not caplog.records


def test_a_cut_download_goes_on(web):
    web.cuts[OFFICIAL] = [1000]
    assert asj.load().config == MODEL
    web.cuts[DCASE] = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match='run the same again to fetch the rest'):
        asj.load('audiosep-dcase2024')
    assert asj.load('audiosep-dcase2024').config == MODEL_16K
    assert ('GET', DCASE, 'bytes=1000-') in web.requests


def test_another_file_than_the_published_one_is_refused(web, monkeypatch, cache):
    named = NAMED['audiosep-dcase2024']
    expected = dataclasses.replace(named.separator, checksum=f'md5:{"0" * 32}')
    monkeypatch.setitem(NAMED, named.name, dataclasses.replace(named, separator=expected))
    with pytest.raises(DownloadError, match=r'audiosep_16k,baseline,step=200000\.ckpt .* \(its MD5 is'):
        find.find_checkpoint('audiosep-dcase2024')
    assert named.kept is None
    web.files[DCASE] = b'not a checkpoint'
    monkeypatch.setitem(NAMED, named.name, named)
    with pytest.raises(CheckpointError, match=r'to fetch the file again, remove it') as error:
        find.find_checkpoint('audiosep-dcase2024')
    path = Path(str(error.value).partition(':')[0])
    assert path.read_bytes() == b'not a checkpoint'
    path.unlink()
    web.files[DCASE] = web.files[OFFICIAL]  # its window is another one
    with pytest.raises(CheckpointError, match='window 2048 and not 1024'):
        find.find_checkpoint('audiosep-dcase2024')
    assert named.kept is None


@pytest.mark.parametrize('name', ['audiosep-hive', 'audiosep-dcase2024'])
def test_the_remedy_without_a_network_works(web, name, tmp_path, capsys):
    path = HIVE if name == 'audiosep-hive' else DCASE
    (tmp_path / 'got.ckpt').write_bytes(web.files.pop(path))
    with pytest.raises(DownloadError, match='put it at any path FILE, and run') as error:
        asj.load(name)
    command = command_in(error)
    assert command[:3] == ['audiosep-jax', 'convert', 'FILE']
    assert main(['convert', str(tmp_path / 'got.ckpt'), *command[3:]]) == 0
    assert asj.load(name).config == (MODEL if name == 'audiosep-hive' else MODEL_16K)


def test_the_remedy_for_the_query_encoder_works(web, tmp_path, capsys):
    (tmp_path / 'got.pt').write_bytes(web.files.pop(CLAP))
    with pytest.raises(DownloadError, match=r'esc_89\.98\.pt of .* put it at any path CLAP') as error:
        asj.load('audiosep-hive')
    command = command_in(error)
    assert command[:3] == ['audiosep-jax', 'convert', 'audiosep-hive']
    assert command[-2:] == ['--encoder', 'CLAP']
    assert main([*command[1:-1], str(tmp_path / 'got.pt')]) == 0
    assert asj.load('audiosep-hive').embed('a dog').shape == (1, 16)
    assert fetched(web) == [HIVE]


def test_convert_takes_names(web, tmp_path, capsys):
    for name, rate in (('audiosep-hive', 32000), ('audiosep-dcase2024', 16000)):
        assert main(['convert', name, str(tmp_path / name)]) == 0
        printed = capsys.readouterr().out
        assert f'separator at {rate} Hz' in printed
        assert 'query encoder: clap, 16 numbers' in printed
    assert main(['convert', 'audiosep', str(tmp_path / 'back.pt')]) == 0
    assert main(['inspect', 'audiosep']) == 0


def test_a_folder_of_that_name_wins_and_one_line_says_so(web, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(['convert', 'audiosep-dcase2024', 'audiosep-hive']) == 0
    assert asj.load('audiosep-hive').config == MODEL_16K
    (record,) = caplog.records
    line = f'audiosep-hive is the folder {tmp_path}/audiosep-hive, not the published checkpoint; rename it to get that'
    assert record.getMessage() == line
    caplog.clear()
    capsys.readouterr()
    assert main(['inspect', 'audiosep-hive']) == 0
    assert capsys.readouterr().err == f'audiosep-jax: note: {line}\n'
    assert not caplog.records
    asj.load(tmp_path / 'audiosep-hive')
    assert not caplog.records
    assert HIVE not in fetched(web)


def test_a_path_is_no_name_and_a_mistyped_name_is_recognised(offline, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r'no such checkpoint: .*/audiosep; did you mean audiosep, of'):
        find.find_checkpoint(Path('audiosep'))
    for mistyped in ('audiosep-hiv', 'AudioSep-Hive', 'audiosep_hive'):
        with pytest.raises(CheckpointError, match=r'did you mean audiosep-hive, of `audiosep-jax models`\?$'):
            find.find_checkpoint(mistyped)
    with pytest.raises(CheckpointError, match=r'no such checkpoint: .*/runs$'):
        find.find_checkpoint('runs')


def test_two_at_once_fetch_it_once(web):
    found = []
    threads = [threading.Thread(target=lambda: found.append(find.find_checkpoint('audiosep'))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [NAMED['audiosep'].kept] * 2
    assert fetched(web) == [OFFICIAL]


@pytest.mark.slow
def test_a_conversion_that_was_killed_starts_again_and_leaves_nothing(web, cache, tmp_path):
    code = (
        'import os, signal\n'
        'from audiosep_jax.checkpoints import convert, find\n'
        'convert.save_for_inference = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n'
        'find.find_checkpoint(None)\n'
    )
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'HF_ENDPOINT': web.url, 'HF_HUB_CACHE': str(tmp_path / 'hub')}
    ended = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert any('.tmp-' in path.name for path in cache.iterdir())
    working = cache / f'.{conversion_folder(OFFICIAL).name}.tmp-{os.getpid()}-0'
    working.mkdir()  # of another reference
    assert find.find_checkpoint(None) == NAMED['audiosep'].kept
    assert sorted(path.name for path in cache.iterdir()) == sorted([working.name, NAMED['audiosep'].kept.name])
    assert fetched(web) == [OFFICIAL]
