"""Publishing: to a folder, and to a hub that this process serves."""

import base64
import http.server
import json
import shutil
import threading

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import constants
from support import tiny_clap
from support.evaluation_results import RESULTS
from support.small_separator import save_small

import audiosep_jax as asj
from audiosep_jax.checkpoints.convert import from_torch
from audiosep_jax.checkpoints.find import open_checkpoint
from audiosep_jax.checkpoints.publish import make_repository
from audiosep_jax.checkpoints.run_folder import save_for_inference
from audiosep_jax.cli.main import main
from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.torch_names import tensors_from_variables
from audiosep_jax.weights.tensor_files import write_tensors


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp('run'))


@pytest.fixture
def results(tmp_path):
    (tmp_path / 'results.json').write_text(json.dumps(RESULTS))
    return tmp_path / 'results.json'


def test_no_path_of_this_machine_is_published(checkpoint, results, tmp_path):
    for path in make_repository(checkpoint, tmp_path / 'repo', 'me/small', results=[results]):
        for private in (str(tmp_path), str(checkpoint), '/home/me'):
            assert private.encode() not in path.read_bytes()


@pytest.fixture(scope='module')
def with_clap(tmp_path_factory):
    """A converted checkpoint with a tiny CLAP, and examples."""
    folder = tmp_path_factory.mktemp('clap')
    model = ModelConfig(widths=(1,) * 6, condition_size=16)
    state = tensors_from_variables(jax.device_get(init_variables(model, jax.random.key(0))), model)
    tensors = {f'ss_model.{k}': v for k, v in state.items()}
    tensors |= {f'query_encoder.model.{k}': v for k, v in tiny_clap.laion_tensors().items()}
    write_tensors(folder / 'x.safetensors', tensors)
    from_torch(folder / 'x.safetensors', folder / 'ours')
    (folder / 'ours' / 'examples').mkdir()
    (folder / 'ours' / 'examples' / 'a.txt').write_text('rain')
    return folder / 'ours'


def test_the_encoder_is_published_too(with_clap, tmp_path):
    files = make_repository(with_clap, tmp_path / 'repo', 'me/clap')
    assert tmp_path / 'repo' / 'encoder' / 'model.safetensors' in files
    assert tmp_path / 'repo' / 'examples' / 'a.txt' in files
    card = (tmp_path / 'repo' / 'README.md').read_text()
    assert "separate(audio, ['rain']" in card
    assert 'separate street.wav --query "rain" --checkpoint' in card
    assert 'x.safetensors' not in (tmp_path / 'repo' / 'config.json').read_text()
    shutil.move(tmp_path / 'repo', tmp_path / 'elsewhere')
    before, after = asj.load(with_clap).encoder, asj.load(tmp_path / 'elsewhere').encoder
    ids, mask = np.array([[0, 5, 6, 2]]), np.ones((1, 4), int)
    np.testing.assert_array_equal(after.encode_token_ids(ids, mask), before.encode_token_ids(ids, mask))


def test_an_encoder_that_only_this_machine_has(with_clap, tmp_path, offline):
    """A run trained with --encoder PATH records the path: the encoder is copied, or reported as missing."""
    shutil.copytree(with_clap, tmp_path / 'run')
    shutil.move(tmp_path / 'run' / 'encoder', tmp_path / 'weights')
    change_encoder(tmp_path / 'run', source=str(tmp_path / 'weights'))
    make_repository(tmp_path / 'run', tmp_path / 'repo', 'me/clap')
    assert asj.load(tmp_path / 'repo').encoder.name == 'clap'
    assert str(tmp_path) not in (tmp_path / 'repo' / 'config.json').read_text()
    shutil.rmtree(tmp_path / 'weights')
    with pytest.raises(CheckpointError, match=r'put it into .*run/encoder'):
        make_repository(tmp_path / 'run', tmp_path / 'again', 'me/clap')
    change_encoder(tmp_path / 'run', source='laion/larger_clap_general')  # the hub has it, so it is not copied
    files = make_repository(tmp_path / 'run', tmp_path / 'again', 'me/clap')
    assert not any(path.parent.name == 'encoder' for path in files)
    assert open_checkpoint(tmp_path / 'again').encoder['source'] == 'laion/larger_clap_general'


def change_encoder(run, **changes):
    was = open_checkpoint(run)
    shutil.rmtree(run / 'checkpoints')
    record = {**was.record, 'encoder': {**was.encoder, **changes}}
    save_for_inference(run / 'checkpoints' / '0', variables=was.variables, record=record, step=0)


# ---- a hub in this process -------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's API that an upload needs: create, validate-yaml, preupload, commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        server = self.server
        if self.headers.get('Authorization') != 'Bearer hf_good':
            return self.reply({'error': 'Invalid credentials'}, 401)
        if server.forbids:
            return self.reply({'error': 'Forbidden'}, 403)
        if self.path == '/api/repos/create':
            server.created.append(json.loads(body))
            return self.reply({'url': f'{server.address}/me/small', 'name': 'me/small'})
        if self.path == '/api/validate-yaml':
            server.cards.append(json.loads(body)['content'])
            return self.reply({'errors': [], 'warnings': []})
        if '/preupload/' in self.path:
            files = [{'path': f['path'], 'uploadMode': 'regular'} for f in json.loads(body)['files']]
            return self.reply({'files': [{**f, 'shouldIgnore': False} for f in files]})
        if '/commit/' in self.path:
            for line in map(json.loads, body.splitlines()):
                if line['key'] == 'file':
                    server.files[line['value']['path']] = base64.b64decode(line['value']['content'])
            commit = {
                'commitUrl': f'{server.address}/me/small/commit/{"0" * 40}',
                'commitOid': '0' * 40,
                'success': True,
            }
            return self.reply(commit)
        return self.reply({}, 404)

    def do_GET(self):
        self.reply({'error': 'Forbidden'}, 403) if self.server.forbids else self.reply({'name': 'me', 'id': 'me/small'})

    def reply(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def local_hub(monkeypatch):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub) as server:
        server.address = f'http://127.0.0.1:{server.server_port}'
        server.created, server.cards, server.files, server.forbids = [], [], {}, False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, 'ENDPOINT', server.address)
        monkeypatch.setattr(huggingface_hub.HfApi, '__init__', endpoint(server.address))
        monkeypatch.setenv('HF_TOKEN', 'hf_good')
        yield server
        server.shutdown()
        thread.join()


def endpoint(address):
    original = huggingface_hub.HfApi.__init__

    def init(self, *arguments, **options):
        original(self, *arguments, **{**options, 'endpoint': address})

    return init


def test_upload(checkpoint, results, local_hub, tmp_path, capsys):
    assert main(['push', str(checkpoint), 'me/small', '--private', '--results', str(results)]) == 0
    assert capsys.readouterr().out == f'{local_hub.address}/me/small\n'
    assert (local_hub.created[0]['organization'], local_hub.created[0]['name']) == ('me', 'small')
    assert 'private' in (local_hub.created[0].get('visibility'), *local_hub.created[0])
    make_repository(checkpoint, tmp_path / 'repo', 'me/small', results=[results])
    assert local_hub.files == {path.name: path.read_bytes() for path in (tmp_path / 'repo').iterdir()}


def test_download(checkpoint, offline, tmp_path):
    make_repository(checkpoint, tmp_path / 'repo', 'me/small')
    shutil.copytree(tmp_path / 'repo', offline('me/small', {'.gitattributes': ''}), dirs_exist_ok=True)
    found = asj.load('me/small')
    downloaded, original = open_checkpoint(found.info['path']), open_checkpoint(checkpoint)
    jax.tree.map(np.testing.assert_array_equal, downloaded.variables, original.variables)
    assert (downloaded.model, downloaded.encoder, downloaded.step) == (original.model, original.encoder, original.step)
    for source in ('me/small', tmp_path / 'repo'):  # converting would take the preset's rate and hop
        with pytest.raises(CheckpointError, match='is already a checkpoint of this project'):
            from_torch(source, tmp_path / 'converted')
    assert not (tmp_path / 'converted').exists()


def test_what_the_hub_refuses_is_one_line(checkpoint, local_hub, monkeypatch, capsys):
    local_hub.forbids = True
    assert main(['push', str(checkpoint), 'me/small']) == 1
    assert 'the token has no permission' in one_line(capsys)
    for token in ('hf_bad', None):
        monkeypatch.setenv('HF_TOKEN', token) if token else monkeypatch.delenv('HF_TOKEN')
        assert main(['push', str(checkpoint), 'me/small']) == 1
        assert 'no valid token: run `hf auth login`' in one_line(capsys)


def test_offline_is_one_line_with_a_remedy(checkpoint, offline, tmp_path, capsys):
    assert main(['push', str(checkpoint), 'me/small']) == 1
    assert '--folder DIR makes the folder without uploading it' in one_line(capsys)
    assert main(['push', str(checkpoint), 'me/small', '--folder', str(tmp_path / 'repo')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(path) for path in sorted((tmp_path / 'repo').iterdir())]
    assert main(['push', str(checkpoint), 'me/small', '--folder', str(tmp_path / 'repo')]) == 1
    assert 'already exists: choose another name' in one_line(capsys)
    assert main(['push', str(checkpoint), 'me/small', '--folder', str(tmp_path / 'a' / 'b')]) == 1
    one_line(capsys)


@pytest.mark.parametrize('name', ['small', 'a/b/c', '../x', 'me/', 'me/a b', 'spaces/me/x', 'me/x:y'])
def test_malformed_names_are_refused(checkpoint, name, tmp_path):
    with pytest.raises(ConfigError, match='organisation/name'):
        make_repository(checkpoint, tmp_path / 'repo', name)


def test_a_folder_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match='not a checkpoint'):
        make_repository(tmp_path, tmp_path / 'repo', 'me/small')
    assert not (tmp_path / 'repo').exists()


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]
