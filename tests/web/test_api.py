"""The endpoints for programs: with Gradio's client, with plain HTTP, with MCP, and with a token."""

import base64
import concurrent.futures
import io
import json
import shutil
import subprocess
import time

import httpx
import numpy as np
import pytest
import soundfile
from support.documents import blocks
from support.paths import ROOT
from support.served_page import get, post, served, upload
from support.small_separator import save_small

import audiosep_jax as asj
from audiosep_jax.cli.main import main

gradio_client = pytest.importorskip('gradio_client', reason='the extra demo is not installed')

RATE = 8000
STEP = 2**-23  # of the 24 bits of the files
SECRET = 'S3cret-of-the-tests'
CALL = '/gradio_api/call'


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


def wav(seconds=0.5) -> bytes:
    sound = 0.05 * np.random.default_rng(0).standard_normal(int(seconds * RATE))
    soundfile.write(file := io.BytesIO(), sound, RATE, format='WAV', subtype='PCM_16')
    return file.getvalue()


def uploaded(address, data=None, **headers) -> dict:
    """The file as a request names it."""
    status, body, _ = upload(address, 'street.wav', wav() if data is None else data, **headers)
    assert status == 200
    return {'path': json.loads(body)[0], 'meta': {'_type': 'gradio.FileData'}}


def result_of(address, name, event, **headers) -> tuple[str, object]:
    """The last event of a call's stream, and its data."""
    status, body, answered = get(f'{address}{CALL}/{name}/{event}', **headers)
    assert (status, answered['content-type']) == (200, 'text/event-stream; charset=utf-8')
    kind, data = body.decode().strip().split('\n\n')[-1].split('\n')
    return kind.removeprefix('event: '), json.loads(data.removeprefix('data: '))


def ask(address, name='separate', headers=None, **arguments) -> tuple[str, object]:
    """What curl gets in two steps."""
    status, body, _ = post(f'{address}{CALL}/v2/{name}', arguments, **(headers or {}))
    assert status == 200, body
    return result_of(address, name, json.loads(body)['event_id'], **(headers or {}))


def read(data):
    sound, rate = soundfile.read(data, dtype='float32', always_2d=True)
    assert rate == RATE
    return sound.T


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
    assert all(0 <= unit['index'] <= unit['length'] == 45 * RATE for unit in units)
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


# ---- a token, and no page --------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def locked_home(tmp_path_factory):
    return tmp_path_factory.mktemp('locked')


@pytest.fixture(scope='module')
def locked(checkpoint, locked_home):
    """A server with a token, and with MCP where its package is installed."""
    try:
        import mcp  # noqa: F401

        flags = ['--mcp']
    except ImportError:
        flags = []
    with served(checkpoint, locked_home, '--api-only', *flags, AUDIOSEP_JAX_TOKEN=SECRET) as address:
        yield address
    assert SECRET not in (locked_home / 'stderr.txt').read_text()


BEARER = {'Authorization': f'Bearer {SECRET}'}
BASIC = {'Authorization': f'Basic {base64.b64encode(f"me:{SECRET}".encode()).decode()}'}


@pytest.mark.parametrize('headers', [{}, {'Authorization': f'Bearer {SECRET}x'}, {'Authorization': 'Bearer'}])
def test_nothing_is_answered_without_the_token(locked, headers):
    requests = [get(f'{locked}{path}', **headers) for path in ('/', '/config', '/gradio_api/info', '/nothing')]
    requests += [get(f'{locked}/gradio_api/{path}', **headers) for path in ('file=/x', 'startup-events', 'app_id')]
    requests += [get(f'{locked}{CALL}/separate/x', **headers), upload(locked, 'street.wav', wav(), **headers)]
    posted = (f'{CALL}/v2/health', '/gradio_api/run/health', '/gradio_api/queue/join', '/gradio_api/mcp/')
    requests += [post(f'{locked}{path}', {'data': []}, **headers) for path in posted]
    for status, body, answered in requests:
        assert (status, len(body.splitlines())) == (401, 1)
        assert 'Basic realm=' in answered['www-authenticate']
        assert SECRET not in body.decode()


def test_the_client_is_told_so(locked, tmp_path):
    with pytest.raises(Exception, match=r'401|login|authoriz') as error:
        gradio_client.Client(locked, verbose=False, headers={'Authorization': 'Bearer wrong'})
    assert SECRET not in str(error.value)


def test_with_the_token_programs_get_everything(locked, recording, tmp_path):
    client = gradio_client.Client(locked, verbose=False, headers=BEARER, download_files=tmp_path)
    (target,), _, _ = client.predict(gradio_client.handle_file(recording), ['rain'], api_name='/separate')
    assert read(target).shape == read(recording).shape
    assert ask(locked, 'health', BASIC)[0] == 'complete'
    file = uploaded(locked, **BASIC)
    (kind, ((target,), *_)) = ask(locked, headers=BASIC, recording=file, queries=['rain'])
    assert (kind, get(target['url'])[0], get(target['url'], **BASIC)[0]) == ('complete', 401, 200)


def test_without_a_page_there_are_only_endpoints(locked):
    for path in ('', '/', '/theme.css', '/assets/index.js', '/static/img/logo.svg', '/manifest.json'):
        status, body, _ = get(f'{locked}{path}', **BEARER)
        assert (status, b'there is no page here' in body) == (404, True)
    assert sorted(json.loads(get(f'{locked}/gradio_api/info', **BEARER)[1])['named_endpoints']) == [
        '/health',
        '/models',
        '/separate',
    ]


def test_the_page_asks_for_the_token(checkpoint, tmp_path):
    """The browser sends it as a password."""
    (tmp_path / 'token').write_text(f'{SECRET}\n')
    (home := tmp_path / 'home').mkdir()
    with served(checkpoint, home, '--token', f'@{tmp_path / "token"}') as address:
        assert get(address)[0] == 401
        status, body, _ = get(address, **BASIC)
        assert (status, b'What to extract' in body) == (200, True)
    assert SECRET not in (home / 'stderr.txt').read_text()


# ---- MCP -------------------------------------------------------------------------------------------------------------


def tools(address, *calls, **headers):
    """Names of the tools and the results of calls, from MCP's own client."""
    import anyio
    from mcp import ClientSession
    from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

    async def talk():
        async with (
            create_mcp_http_client(headers=headers) as http,
            streamable_http_client(f'{address}/gradio_api/mcp/', http_client=http) as (incoming, outgoing, _),
            ClientSession(incoming, outgoing) as session,
        ):
            await session.initialize()
            listed = await session.list_tools()
            return {tool.name: tool for tool in listed.tools}, [await session.call_tool(*call) for call in calls]

    return anyio.run(talk)


def test_assistants_have_the_endpoints_as_tools(locked, locked_home):
    pytest.importorskip('mcp', reason='the extra mcp is not installed')
    url = f'{locked}/gradio_api/file={uploaded(locked, **BEARER)["path"]}'
    inline = f'data:audio/wav;base64,{base64.b64encode(wav()).decode()}'
    listed, (result, *others) = tools(
        locked,
        ('separate', {'recording': url, 'queries': ['rain', 'a dog']}),
        ('separate', {'recording': inline, 'queries': ['rain'], 'residual': False}),
        ('models', {}),
        ('separate', {'recording': url, 'queries': ['']}),
        ('separate', {'recording': url}),
        ('separate', {'recording': 'http://127.0.0.1:1/x.wav', 'queries': ['rain']}),
        ('separate', {'recording': '/etc/passwd', 'queries': ['rain']}),
        ('nothing', {}),
        **BEARER,
    )
    assert sorted(listed) == ['health', 'models', 'separate']
    schema = listed['separate'].inputSchema
    assert (schema['required'], schema['properties']['queries']['type']) == (['recording', 'queries'], 'array')
    assert all(schema['properties'][name]['description'] for name in schema['properties'])
    targets, residual, note = (content.text for content in result.content)
    assert [get(target, **BEARER)[1][:4] for target in json.loads(targets)] == [b'RIFF', b'RIFF']
    assert (get(residual, **BEARER)[0], note) == (200, '')
    assert [other.isError for other in others] == [False, False, True, True, True, True, True]
    assert others[0].content[1].text == 'null'
    assert json.loads(others[1].content[0].text)[0]['name'] == 'harbour'
    assert others[2].content[0].text == 'a description is empty'
    assert [line for line in (locked_home / 'stderr.txt').read_text().splitlines() if 'Traceback' in line] == []


def test_malformed_messages_of_assistants_are_their_mistake(locked):
    pytest.importorskip('mcp', reason='the extra mcp is not installed')
    for body in (b'', b'{', b'[]', b'[' * 100_000, b'{}', b'{"jsonrpc": "2.0"}', b' ' * 1_000_001):
        assert 400 <= post(f'{locked}/gradio_api/mcp/', body, **BEARER)[0] < 500
    for path in ('mcp/', 'mcp/sse', 'mcp/schema', 'mcp/messages/'):
        assert get(f'{locked}/gradio_api/{path}', **BEARER)[0] in (403, 405)


def test_mistakes_are_one_line_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name == 'mcp' else find(name, *rest))
    for flags, says in (
        (['--token', ''], '--token: the token must be'),
        (['--token', 'zwei worte'], '--token: the token must be'),
        (['--token', f'@{tmp_path}/none'], 'cannot be read: No such file'),
        (['--mcp'], "pip install 'audiosep_jax[mcp]'"),
    ):
        assert main(['serve', '--checkpoint', 'nowhere', *flags]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert len(error.splitlines()) == 1
        assert 'worte' not in error
