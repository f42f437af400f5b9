"""Which requests reach the server, without Gradio: the guard around a server that answers everything."""

import asyncio
import json

import pytest

from audiosep_jax.errors import ConfigError
from audiosep_jax.web.guard import Call, Guard, HostNames, check_root_path, is_local
from audiosep_jax.web.token import Token

pytest.importorskip('starlette', reason='the extra demo is not installed')

QUEUED, DIRECT, SEPARATE, HEALTH = 1, 0, 2, 3
CALLS = {
    DIRECT: Call([lambda value: value == 0], is_queued=False),
    QUEUED: Call([lambda value: value is None, lambda value: isinstance(value, str)], is_queued=True),
    SEPARATE: Call(
        [lambda value: isinstance(value, list), lambda value: isinstance(value, float)],
        is_queued=True,
        name='separate',
        parameters={'queries': 'a list of texts', 'strength': 'a number'},
        required=['queries'],
    ),
    HEALTH: Call([], is_queued=False, name='health'),
}
GOOD = {'data': [None, 'a dog'], 'fn_index': QUEUED, 'session_hash': 'a1'}


async def generous(scope, receive, send):
    """A server that answers every request with the body of the request, and lets every site read it."""
    body = (await receive())['body']
    headers = [(b'access-control-allow-origin', b'*'), (b'x-kept', b'1')]
    await send({'type': 'http.response.start', 'status': 200, 'headers': headers})
    await send({'type': 'http.response.body', 'body': body})


def ask(
    path='/', method='GET', *, body=b'', listen='127.0.0.1', allowed=(), root_path='', query='', options=None, **headers
):
    """Status, text and headers of the answer; values of a header that is there twice are joined by commas."""
    names = HostNames(listen, allowed)
    guard = Guard(generous, names=names, calls=CALLS, root_path=root_path, **(options or {}))
    sent = []

    async def receive():
        return {'type': 'http.request', 'body': body, 'more_body': False}

    async def send(message):
        sent.append(message)

    headers = {'host': 'localhost:7860', **{key.replace('_', '-'): value for key, value in headers.items()}}
    scope = {
        'type': 'http',
        'method': method,
        'path': path,
        'query_string': query.encode(),
        'headers': [(key.encode(), value.encode()) for key, value in headers.items()],
    }
    asyncio.run(guard(scope, receive, send))
    text = b''.join(message.get('body', b'') for message in sent).decode()
    answered: dict[bytes, bytes] = {}
    for key, value in sent[0]['headers']:
        answered[key] = b', '.join([answered[key], value] if key in answered else [value])
    return sent[0]['status'], text, answered


def join(body, **options):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask('/gradio_api/queue/join', 'POST', body=body, **options)[:2]


ROUTES = [
    ('GET', '/'),
    ('GET', '/config'),
    ('GET', '/assets/index.js'),
    ('GET', '/gradio_api/file=/tmp/x.wav'),
    ('GET', '/gradio_api/queue/data'),
    ('POST', '/gradio_api/upload'),
    ('POST', '/gradio_api/queue/join'),
    ('POST', '/gradio_api/run/predict'),
    ('POST', '/gradio_api/cancel'),
    ('OPTIONS', '/gradio_api/upload'),
    ('DELETE', '/'),
]


@pytest.mark.parametrize(('method', 'path'), ROUTES)
@pytest.mark.parametrize(
    'headers',
    [
        {'origin': 'http://evil.example'},
        {'origin': 'null'},
        {'origin': ''},
        {'origin': 'http://[::1'},
        {'origin': 'http://localhost:3000'},  # another program of this machine
        {'origin': 'http://localhost:7860.evil.example'},
        {'origin': 'http://evil.example/localhost:7860'},
        {'origin': 'http://evil.example@localhost'},
        {'sec_fetch_site': 'cross-site'},
        {'sec_fetch_site': 'same-site'},
        {'sec_fetch_site': 'cross-site', 'origin': 'http://localhost:7860'},
        {'sec_fetch_site': 'cross-site', 'sec_fetch_mode': 'no-cors'},
    ],
)
def test_requests_of_other_sites_are_refused_on_every_route(method, path, headers):
    status, text, answered = ask(path, method, body=b'{}', **headers)
    assert (status, text) == (403, 'requests from other sites are refused')
    assert not any(b'access-control' in name for name in answered)


@pytest.mark.parametrize(
    'headers',
    [
        {},
        {'origin': 'http://localhost:7860', 'sec_fetch_site': 'same-origin'},
        {'host': 'LOCALHOST', 'origin': 'http://localhost'},
        {'host': 'localhost:80', 'origin': 'http://localhost'},
        {'host': '[::1]:7860', 'origin': 'http://[::1]:7860'},
        {'sec_fetch_site': 'none'},
        {'sec_fetch_site': 'cross-site', 'sec_fetch_mode': 'navigate'},  # a link to the page
    ],
)
def test_requests_of_the_page_and_links_to_it_pass(headers):
    status, _, answered = ask('/', **headers)
    assert status == 200
    assert answered[b'x-kept'] == b'1'
    assert b"default-src 'self'" in answered[b'content-security-policy']
    assert not any(b'access-control' in name for name in answered)


def test_a_link_leads_to_the_page_only():
    link = {'sec_fetch_site': 'cross-site', 'sec_fetch_mode': 'navigate'}
    assert ask('/', **link)[0] == 200
    assert ask('/', query='__theme=dark', **link)[0] == 200
    assert ask('/gradio_api/file=/tmp/x.wav', **link)[0] == 403
    assert ask('/gradio_api/upload', 'POST', **link)[0] == 403
    assert ask('/', 'POST', **link)[0] == 403


@pytest.mark.parametrize(
    ('listen', 'host', 'passes'),
    [
        ('127.0.0.1', 'localhost:1234', True),
        ('127.0.0.1', '127.0.0.1', True),
        ('::1', '[::1]:7860', True),
        ('127.0.0.1', 'LocalHost.', True),
        ('127.0.0.1', 'evil.example', False),
        ('127.0.0.1', 'localhost.evil.example', False),
        ('127.0.0.1', '192.168.0.1', False),
        ('127.0.0.1', '', False),
        ('127.0.0.1', '[::1', False),
        ('0.0.0.0', '192.168.0.1:7860', True),
        ('::', '[fe80::1]:7860', True),
        ('0.0.0.0', 'workstation:7860', True),  # no name without a dot is a foreign site's
        ('0.0.0.0', 'evil.example', False),
        ('sounds.example.org', 'sounds.example.org', True),
        ('sounds.example.org', 'evil.example', False),
    ],
)
def test_only_names_of_this_server_are_answered(listen, host, passes):
    """A foreign site may let its name point here, so that its pages count as this site's (DNS rebinding)."""
    status, text, _ = ask(listen=listen, host=host)
    assert status == (200 if passes else 400)
    assert passes or '--allow-host' in text
    assert len(text.splitlines()) <= 1


@pytest.mark.parametrize('origin', ['https://sounds.example.org', 'http://sounds.example.org:8443'])
@pytest.mark.parametrize(
    'headers',
    [
        {'host': 'sounds.example.org'},
        {'host': '127.0.0.1:7860'},
        {'host': '127.0.0.1:7860', 'x_forwarded_host': 'sounds.example.org'},
    ],
)
def test_a_proxy_s_name_is_allowed_by_the_flag(origin, headers):
    allowed = ('Sounds.example.org', '10.0.0.7')
    for site in ('https://evil.example', 'https://x.sounds.example.org'):
        assert ask('/gradio_api/upload', 'POST', origin=site, allowed=allowed, **headers)[0] == 403
    assert ask('/gradio_api/upload', 'POST', origin=origin, allowed=allowed, **headers)[0] == 200
    assert ask('/gradio_api/upload', 'POST', listen='0.0.0.0', origin=origin, **headers)[0] in (400, 403)


def test_a_forwarded_name_must_be_allowed_too():
    assert ask(x_forwarded_host='evil.example')[0] == 400
    assert ask(x_forwarded_host='localhost, evil.example')[0] == 200


def test_a_name_learnt_later_is_allowed():
    names = HostNames('127.0.0.1')
    assert 'abc.gradio.live' not in names
    names.allow('abc.gradio.live')
    assert 'abc.gradio.live' in names


@pytest.mark.parametrize('name', ['', 'https://x.org', 'x.org/', 'x.org:80', '*.x.org', 'a b', '-x', 'x..y'])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ConfigError, match='--allow-host'):
        HostNames('127.0.0.1', [name])


@pytest.mark.parametrize(('given', 'path'), [('', ''), ('/', ''), ('/a', '/a'), ('/a/', '/a'), ('/a.b/c', '/a.b/c')])
def test_root_paths(given, path):
    assert check_root_path(given) == path


@pytest.mark.parametrize('given', ['a', 'http://x/a', '/a b', '//', '/a//b', '/a?b', '/é'])
def test_what_is_no_root_path_is_refused(given):
    with pytest.raises(ConfigError, match='--root-path'):
        check_root_path(given)


def test_the_root_path_may_be_cut_off_by_the_proxy_or_not():
    for path in ('/sounds', '/sounds/', '/sounds/config', '/config', '/', '/sounds/gradio_api/file=/x'):
        assert ask(path, root_path='/sounds')[0] == 200
    assert ask('/soundsconfig', root_path='/sounds')[0] == 403
    assert ask('/sounds/monitoring', root_path='/sounds')[0] == 403


@pytest.mark.parametrize(
    ('method', 'path', 'status'),
    [
        ('GET', '/gradio_api/file=http://elsewhere/x', 403),
        ('GET', '/gradio_api/proxy=http://elsewhere/x', 403),
        ('GET', '/gradio_api/call/x/y', 403),
        ('POST', '/gradio_api/call/x', 403),
        ('POST', '/gradio_api/component_server', 403),
        ('GET', '/docs', 403),
        ('GET', '/gradio_api/queue/join', 405),
        ('POST', '/config', 405),
        ('PUT', '/gradio_api/upload', 405),
        ('GET', '/assets/' + 'é' * 200, 404),
        ('HEAD', '/', 200),
    ],
)
def test_routes_that_the_page_does_not_use_are_not_served(method, path, status):
    assert ask(path, method)[0] == status


def test_there_is_one_page():
    assert ask('/config', query='page=other')[0] == 404
    assert ask('/config', query='page=')[0] == 200


def test_a_call_of_the_page_arrives_unchanged():
    body = json.dumps(GOOD)
    assert join(body.encode()) == (200, body)
    direct = {'data': [0], 'fn_index': DIRECT, 'trigger_id': 3, 'event_data': None}
    assert ask('/gradio_api/run/predict', 'POST', body=json.dumps(direct).encode())[0] == 200
    assert ask('/gradio_api/run/predict', 'POST', body=body.encode())[0] == 400  # it has to wait in the queue
    assert join(direct)[0] == 400


@pytest.mark.parametrize('index', [-1, 4, 10**30, '1', 'x', None, True, 1.0, 1.5, [], {}, float('nan'), float('inf')])
def test_odd_functions_are_refused(index):
    status, text = join({**GOOD, 'fn_index': index})
    assert (status, text) == (400, 'fn_index is not a function of this page')


@pytest.mark.parametrize(
    'change',
    [
        {'data': []},
        {'data': {}},
        {'data': None},
        {'data': 'ab'},
        {'data': [None, 'a', 'b']},
        {'data': [1, 'a']},
        {'data': [None, {}]},
        {'session_hash': 5},
        {'session_hash': '\ud800'},
        {'session_hash': 'a' * 65},
        {'event_id': []},
        {'trigger_id': 'x'},
        {'trigger_id': 1.5},
        {'batched': True},
        {'event_data': 5},
    ],
)
def test_malformed_calls_are_refused(change):
    status, text = join({**GOOD, **change})
    assert status == 400
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    'body',
    [
        b'',
        b'{',
        b'[]',
        b'"a"',
        b'5',
        b'null',
        b'\xff',
        b'[' * 100_000,
        b'{"a":' * 100_000,
        b'{"fn_index": 1' + b'0' * 5000,
    ],
)
def test_bodies_that_are_no_json_object_are_refused(body):
    assert join(body)[0] == 400
    assert ask('/gradio_api/cancel', 'POST', body=body)[0] == 400


def test_a_long_body_is_not_kept():
    assert join(b' ' * 1_000_001)[0] == 413


@pytest.mark.parametrize(
    ('path', 'fields', 'status'),
    [
        ('call/v2/separate', {'queries': ['rain']}, 200),
        ('call/v2/separate/', {'queries': ['rain'], 'strength': 0.5}, 200),
        ('call/v2/separate', {'strength': 0.5}, 400),
        ('call/v2/separate', {'queries': ['rain'], 'session_hash': 'a'}, 400),
        ('call/v2/separate', {'queries': 'rain'}, 400),
        ('call/separate', {'data': [['rain'], 0.5]}, 200),
        ('call/separate', {'data': [['rain'], 0.5], 'session_hash': 5}, 400),
        ('call/separate', {'data': [['rain']]}, 400),
        ('call/separate', {'queries': ['rain']}, 400),
        ('call/separate/abc', {'data': [['rain'], 0.5]}, 405),
        ('call/v2/health', {}, 200),
        ('call/health', {'data': []}, 200),
        ('run/health', {'data': []}, 200),
        ('run/health', {'data': [1]}, 400),
        ('run/separate', {'data': [['rain'], 0.5]}, 400),
        ('queue/join', {'data': [['rain'], 0.5], 'fn_index': SEPARATE}, 200),
        ('queue/join', {'data': [], 'fn_index': HEALTH}, 200),
        ('queue/join', {'data': ['rain', 0.5], 'fn_index': SEPARATE}, 422),
        ('call/run', {'data': []}, 403),
        ('call/v2/run', {}, 403),
    ],
)
def test_programs_call_endpoints_by_name(path, fields, status):
    answer, text, _ = ask(f'/gradio_api/{path}', 'POST', body=json.dumps(fields).encode())
    assert (answer, len(text.splitlines())) == (status, 1)
    if answer == 422:  # in the form that Gradio's clients show
        (detail,) = json.loads(text)['detail']
        assert (detail['parameter_name'], detail['message']) == ('queries', 'must be a list of texts')


def test_programs_read_events_of_endpoints():
    for path in ('call/separate/5f0a', 'call/v2/separate/5f0a', 'call/health/5f0a'):
        assert ask(f'/gradio_api/{path}')[0] == 200
    for path in ('call/separate', 'run/health', 'run/health/5f0a', 'call/separate/a/b', 'call/separate/%'):
        assert ask(f'/gradio_api/{path}')[0] in (403, 405)


def test_an_unknown_parameter_is_named_without_odd_characters():
    text = ask('/gradio_api/call/v2/separate', 'POST', body=json.dumps({'a\nb\u202e': 1}).encode())[1]
    assert text == 'ab is no parameter of separate; it has queries, strength'


@pytest.mark.parametrize(
    ('method', 'path'), [*ROUTES, ('POST', '/gradio_api/mcp/'), ('GET', '/gradio_api/call/health/a')]
)
def test_a_token_is_asked_for_on_every_route(method, path):
    token = Token('abc')
    for header in ({}, {'authorization': 'Bearer abcd'}, {'authorization': 'abc'}):
        status, text, answered = ask(path, method, options={'token': token, 'has_mcp': True}, body=b'{}', **header)
        assert (status, len(text.splitlines())) == (401, 1)
        assert answered[b'www-authenticate'] == b'Basic realm="audiosep-jax", charset="UTF-8", Bearer'
    right = {'authorization': 'Bearer abc'}
    assert ask(path, method, options={'token': token, 'has_mcp': True}, body=b'{}', **right)[0] != 401


def test_only_gradio_s_request_at_the_start_needs_no_token():
    token = Token('abc')
    assert ask('/gradio_api/startup-events', options={'token': token})[0] == 200
    token.is_launched = True
    assert ask('/gradio_api/startup-events', options={'token': token})[0] == 401


def test_without_a_page_the_endpoints_are_left():
    for path in ('/', '', '/theme.css', '/assets/index.js'):
        assert ask(path, options={'has_page': False})[0] == 404
    for path in ('/config', '/gradio_api/info', '/gradio_api/call/separate/a', '/gradio_api/file=/tmp/x.wav'):
        assert ask(path, options={'has_page': False})[0] == 200


def test_assistants_have_a_route_if_they_are_served():
    for path, body, status in (
        ('mcp/', b'{}', 200),
        ('mcp', b'{}', 200),
        ('mcp/', b'[]', 400),
        ('mcp/sse', b'{}', 403),
    ):
        assert ask(f'/gradio_api/{path}', 'POST', body=body, options={'has_mcp': True})[0] == status
    assert ask('/gradio_api/mcp/', options={'has_mcp': True})[0] == 405
    assert ask('/gradio_api/mcp/', 'POST', body=b'{}')[0] == 403


def test_addresses_of_this_machine():
    for host in ('localhost', '127.0.0.1', '127.8.8.8', '::1'):
        assert is_local(host)
    for host in ('0.0.0.0', '::', '10.0.0.1', 'example.org'):
        assert not is_local(host)
