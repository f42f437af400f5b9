"""The endpoints for programs, with Gradio's client and with plain HTTP. `test_locked.py` has MCP and the token."""

import concurrent.futures
import io
import json
import shutil
import subprocess
import time
import types

import httpx
import numpy as np
import pytest
import soundfile
from support.calls import CALL, RATE, ask, read, result_of, uploaded, wav
from support.documents import blocks
from support.paths import ROOT
from support.served_page import get, post, served
from support.small_separator import save_small

import audiosep_jax as asj
from audiosep_jax.web.api import reporter

gradio_client = pytest.importorskip('gradio_client', reason='the extra demo is not installed')

STEP = 2**-23  # of the 24 bits of the files


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp('checkpoints') / 'harbour')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('home')
    soundfile.write(home / 'secret.wav', np.full(4000, 0.25), RATE)
    return home


@pytest.fixture(scope='module')
def address(checkpoint, home):
    """A page that programs use, too."""
    with served(checkpoint, home, '--max-megabytes', '1', '--max-seconds', '60') as address:
        yield address


@pytest.fixture(scope='module')
def client(address, tmp_path_factory):
    return gradio_client.Client(address, verbose=False, download_files=tmp_path_factory.mktemp('downloads'))


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp('sounds') / 'street.wav'
    path.write_bytes(wav())
    return path


def complaints(home):
    return [line for line in (home / 'stderr.txt').read_text().splitlines() if line and not line.startswith('Note: ')]


def test_the_api_is_what_the_manual_says(client):
    """Its names are a promise; what the page itself calls is not part of it."""
    info = client.view_api(return_format='dict', print_info=False)
    assert info['unnamed_endpoints'] == {}
    named = info['named_endpoints']
    assert sorted(named) == ['/health', '/models', '/separate']
    types = {p['parameter_name']: p['python_type']['type'] for p in named['/separate']['parameters']}
    assert types == {
        'recording': 'filepath',
        'queries': 'list[str]',
        'exclude': 'None | list[str]',
        'strength': 'float',
        'residual': 'bool',
    }
    required = [p['parameter_name'] for p in named['/separate']['parameters'] if not p['parameter_has_default']]
    assert required == ['recording', 'queries']
    returns = {r['label']: r['python_type']['type'] for r in named['/separate']['returns']}
    assert returns == {'targets': 'list[filepath]', 'residual': 'None | filepath', 'note': 'str'}
    for name in ('/models', '/health'):
        assert (named[name]['parameters'], len(named[name]['returns'])) == ([], 1)
    assert all(endpoint['description'] for endpoint in named.values())


def test_the_files_are_what_the_separator_gives(client, checkpoint, recording):
    targets, residual, note = client.predict(
        recording=gradio_client.handle_file(recording),
        queries=['rain', ' a dog '],
        exclude=['wind'],
        api_name='/separate',
    )
    queries = [asj.Query.text(text).without('wind') for text in ('rain', 'a dog')]
    expected = asj.load(checkpoint).separate(read(recording), queries, sample_rate=RATE)
    assert [path.rpartition('/')[2] for path in targets] == ['street__rain.wav', 'street__a_dog.wav']
    for path, sound in zip([*targets, residual], [*expected.targets, expected.residual], strict=True):
        np.testing.assert_allclose(read(path), sound, atol=STEP)
    assert note == ''


def test_strength_and_no_residual(client, recording):
    file = gradio_client.handle_file(recording)
    (target,), residual, _ = client.predict(file, ['rain'], None, 0, False, api_name='/separate')
    np.testing.assert_array_equal(read(target), read(recording))
    assert residual is None


def test_models_and_health(client, address):
    from audiosep_jax import __version__

    (model,) = client.predict(api_name='/models')
    assert model == {'name': 'harbour', 'sample_rate': RATE, 'encoder': 'words', 'step': 7, 'level': 'off'}
    health = client.predict(api_name='/health')
    assert (health['status'], health['version'], health['waiting']) == ('ok', __version__, 0)
    assert health['limits'] == {'seconds': 60, 'megabytes': 1, 'queries': 6, 'characters': 500}
    status, body, _ = post(f'{address}/gradio_api/run/health', {'data': []})  # in one step, past the queue
    assert (status, json.loads(body)['data']) == (200, [health])
    assert ask(address, 'models') == ('complete', [[model]])


def test_plain_http_in_two_steps(address):
    file = uploaded(address)
    kind, (targets, residual, note) = ask(address, recording=file, queries=['a dog', 'a dog', 'rain'])
    assert (kind, len(targets), note) == ('complete', 3, '')
    assert targets[0]['path'] == targets[1]['path'] != targets[2]['path']
    sounds = [get(file['url'])[1] for file in (targets[0], targets[2], residual)]
    total = sum(read(io.BytesIO(sound)) for sound in sounds)
    np.testing.assert_allclose(total, read(io.BytesIO(wav())), atol=4 * STEP)
    status, body, _ = post(f'{address}{CALL}/separate', {'data': [file, ['rain'], None, 1, False]})  # in order
    assert status == 200
    assert result_of(address, 'separate', json.loads(body)['event_id'])[1][1] is None
    assert ask(address, recording=targets[2], queries=['a dog'])[0] == 'complete'  # a result may be asked about


def test_a_job_says_how_far_it_is(address):
    asked = {'data': [uploaded(address, wav(45)), ['rain'], None, 1, True], 'session_hash': 'progress'}
    _, config, _ = get(f'{address}/config')
    (index,) = [d['id'] for d in json.loads(config)['dependencies'] if d['api_name'] == 'separate']
    assert post(f'{address}/gradio_api/queue/join', {**asked, 'fn_index': index})[0] == 200
    _, stream, _ = get(f'{address}/gradio_api/queue/data?session_hash=progress')
    messages = [json.loads(line[6:]) for line in stream.decode().splitlines() if line.startswith('data: ')]
    units = [unit for message in messages if message['msg'] == 'progress' for unit in message['progress_data']]
    assert units
    assert all(0 <= unit['index'] <= unit['length'] == 45 for unit in units)
    assert messages[-2]['success']


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        ({'queries': []}, 'nothing to extract'),
        ({'queries': ['']}, 'a description is empty'),
        ({'queries': ['x' * 501]}, '501 characters'),
        ({'queries': list('abcdefg')}, '7 descriptions are too many'),
        ({'queries': ['rain'], 'exclude': ['rain']}, 'exactly what it excludes'),
        ({'strength': 1.5}, 'between 0 and 1'),
    ],
)
def test_bad_requests_are_told_why(client, recording, wrong, says):
    arguments = {'queries': ['rain'], **wrong}
    with pytest.raises(gradio_client.exceptions.AppError, match=says):
        client.predict(gradio_client.handle_file(recording), **arguments, api_name='/separate')


@pytest.mark.parametrize(
    ('data', 'says'),
    [(wav(61), 'minutes long'), (b'hello', 'street.wav: damaged, cut short or not an audio file')],
)
def test_bad_recordings_are_told_why(address, home, data, says):
    kind, told = ask(address, recording=uploaded(address, data), queries=['rain'])
    assert kind == 'error'
    assert says in told['error']
    assert str(home) not in told['error']
    assert complaints(home) == []


@pytest.mark.parametrize(
    ('wrong', 'says'),
    [
        ({'queries': 'rain'}, 'queries must be a list of texts'),
        ({'queries': [1]}, 'queries must be'),
        ({'queries': [{'path': 'x', 'meta': {'_type': 'gradio.FileData'}}]}, 'queries must be'),
        ({'exclude': 'rain'}, 'exclude must be'),
        ({'strength': True}, 'strength must be a number'),
        ({'residual': 1}, 'residual must be true or false'),
        ({'recording': 'street.wav'}, 'recording must be an uploaded file'),
        ({'recording': None}, 'recording must be'),
        ({'recording': {}}, 'recording must be'),
        ({'query': ['rain']}, 'query is no parameter of separate; it has recording, queries,'),
    ],
)
def test_what_does_not_fit_is_refused_at_once(address, wrong, says):
    arguments = {'recording': {'path': 'x'}, 'queries': ['rain'], **wrong}
    status, body, _ = post(f'{address}{CALL}/v2/separate', arguments)
    assert (status, says in body.decode(), len(body.splitlines())) == (400, True, 1)


def test_gradio_s_client_shows_what_does_not_fit(client, recording):
    with pytest.raises(gradio_client.exceptions.ValidationError, match='queries: must be a list of texts'):
        client.predict(gradio_client.handle_file(recording), 'rain', api_name='/separate')


def test_other_calls_are_the_client_s_mistake(address, home):
    for name, body, status in (
        ('v2/separate', {'recording': {'path': 'x'}}, 400),
        ('separate', {'data': []}, 400),
        ('separate', {}, 400),
        ('separate', b'{', 400),
        ('v2/nothing', {}, 403),
        ('nothing', {'data': []}, 403),
    ):
        assert post(f'{address}{CALL}/{name}', body)[0] == status
    assert post(f'{address}/gradio_api/run/separate', {'data': [None, [], None, 1, True]})[0] == 400
    assert result_of(address, 'separate', 'unknown')[0] == 'error'
    for path in (f'{CALL}/separate', '/gradio_api/run/health', '/gradio_api/mcp/'):
        assert get(f'{address}{path}')[0] in (403, 405)
    assert complaints(home) == []


def test_only_uploads_are_read(address, home):
    inside = next(home.glob('audiosep-jax-*'))
    for path in (
        str(home / 'secret.wav'),
        f'{inside}/files/../../secret.wav',
        f'http://127.0.0.1:1{home}/secret.wav',
        f'{address}/gradio_api/file={home}/secret.wav',
        f'{address}/gradio_api/file={inside}/files/..%2f..%2fsecret.wav',
        f'file:///gradio_api/file={home}/secret.wav',
        '',
        'nul\0',
        '\ud800',
    ):
        for file in ({'path': path}, {'path': path, 'meta': {'_type': 'gradio.FileData'}}):
            kind, told = ask(address, recording=file, queries=['rain'])
            assert (kind, type(told['error'])) == ('error', str)
    assert complaints(home) == []


def test_several_clients_at_once_get_their_own(address, recording, tmp_path):
    def request(name):
        client = gradio_client.Client(address, verbose=False, download_files=tmp_path / name)
        return client.predict(gradio_client.handle_file(recording), [name], api_name='/separate')[0][0]

    names = ['rain', 'a dog', 'wind']
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(request, names))
    assert [path.rpartition('__')[2] for path in paths] == ['rain.wav', 'a_dog.wav', 'wind.wav']
    assert not np.array_equal(read(paths[0]), read(paths[1]))


def test_a_client_that_goes_away_holds_up_nobody(address, home):
    _, body, _ = post(f'{address}{CALL}/v2/separate', {'recording': uploaded(address, wav(60)), 'queries': ['rain']})
    event = json.loads(body)['event_id']
    with (
        httpx.Client(trust_env=False) as gone,
        gone.stream('GET', f'{address}{CALL}/separate/{event}') as stream,
    ):
        assert stream.status_code == 200
    assert ask(address, recording=uploaded(address), queries=['a dog'])[0] == 'complete'
    deadline = time.monotonic() + 60
    while json.loads(post(f'{address}/gradio_api/run/health', {'data': []})[1])['data'][0]['waiting']:
        assert time.monotonic() < deadline
    assert complaints(home) == []


def test_the_work_for_a_client_that_has_gone_ends():
    import gradio
    from gradio.context import LocalContext

    request = types.SimpleNamespace(_id='a', alive=True)
    page = types.SimpleNamespace(_queue=types.SimpleNamespace(active_jobs=[None, [request]]))
    context = LocalContext.event_id.set('a')
    try:
        report = reporter(page)
        report(1, 2)
        request.alive = False
        with pytest.raises(gradio.Error, match='gone'):
            report(2, 2)
        page._queue.active_jobs.clear()  # what cancelling does
        with pytest.raises(gradio.Error, match='gone'):
            report(2, 2)
    finally:
        LocalContext.event_id.reset(context)


# ---- the manual ------------------------------------------------------------------------------------------------------

MANUAL = [block for block in blocks(ROOT / 'docs' / 'server.md') if block.mark == 'needs: a server']
PRINTED = 'http://127.0.0.1:7860'


def test_the_manual_s_program_works(address, recording, monkeypatch, capsys):
    (block,) = [block for block in MANUAL if block.language == 'python']
    monkeypatch.chdir(recording.parent)
    names = {}
    exec(compile(block.code.replace(PRINTED, address), 'docs/server.md', 'exec'), names)
    assert len(names['targets']) == 2
    assert 'street__rain.wav' in capsys.readouterr().out
    assert read(names['target']).shape == read(recording).shape


@pytest.mark.skipif(shutil.which('curl') is None, reason='no curl here')
def test_the_manual_s_commands_work(address, recording):
    (block,) = [block for block in MANUAL if block.language == 'bash']
    found, outputs = {PRINTED: address}, []
    for command, prints in zip(block.commands(), ('PATH', 'ID', '', ''), strict=True):
        for name, value in found.items():
            command = [word.replace(name, value) for word in command]
        done = subprocess.run(
            [*command, '--silent', '--noproxy', '*'], capture_output=True, check=True, cwd=recording.parent, timeout=600
        )
        outputs.append(done.stdout.decode())
        if prints:
            printed = json.loads(outputs[-1])
            found[prints] = printed[0] if prints == 'PATH' else printed['event_id']
    assert 'event: complete' in outputs[2]
    assert 'street__a_dog_barking.wav' in outputs[2]
    assert json.loads(outputs[3])['data'][0]['status'] == 'ok'
