"""A server with a token and without a page, and its tools for assistants."""

import base64
import json

import pytest
from support.calls import CALL, ask, read, uploaded, wav
from support.served_page import get, post, served, upload
from support.small_separator import save_small

from audiosep_jax.cli.main import main

gradio_client = pytest.importorskip('gradio_client', reason='the extra demo is not installed')

SECRET = 'S3cret-of-the-tests'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp('checkpoints') / 'harbour')


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp('sounds') / 'street.wav'
    path.write_bytes(wav())
    return path


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
