"""The web page's server: what it gives, and what it must not."""

import http.client
import io
import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from support.served_page import free_port, get, post, press, served, start, upload
from support.small_separator import CONFIG, save_small, small_variables

from audiosep_jax.cli.main import main
from audiosep_jax.errors import QueryError
from audiosep_jax.separation.separator import Separator
from audiosep_jax.web.extraction import Limits
from audiosep_jax.web.server import serving

pytest.importorskip('gradio', reason='the extra demo is not installed')
SECRET = b'RIFF....a secret of this machine'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """Where the server's folder of uploads is; beside it lie files that are none of its users' business."""
    home = tmp_path_factory.mktemp('home')
    (home / 'secret.txt').write_bytes(SECRET)
    soundfile.write(home / 'secret.wav', np.full(4000, 0.25), 8000)
    return home


@pytest.fixture(scope='module')
def address(home, tmp_path_factory):
    """A page whose owner once allowed Gradio everything."""
    checkpoint = save_small(tmp_path_factory.mktemp('checkpoint'))
    flags = ['--max-megabytes', '1', '--max-seconds', '30']
    with served(checkpoint, home, *flags, GRADIO_ALLOWED_PATHS='/', GRADIO_SHARE='True') as address:
        yield address


def wav(seconds=0.5, rate=8000) -> bytes:
    sound = 0.05 * np.random.default_rng(0).standard_normal(int(seconds * rate))
    soundfile.write(file := io.BytesIO(), sound, rate, format='WAV')
    return file.getvalue()


def uploaded(address, name='street.wav', data=None) -> str:
    status, body, _ = upload(address, name, wav() if data is None else data)
    assert status == 200
    return json.loads(body)[0]


def test_a_request_gives_players_and_a_picture(address):
    message = press(address, uploaded(address), 'a siren\nrain')
    assert message['success']
    _, *players, residual, picture = message['output']['data']
    assert [player['visible'] for player in players] == [True, True, False, False, False, False]
    assert [player.get('label') for player in players[:2]] == ['a siren', 'rain']
    for update in (players[0], residual):
        status, body, headers = get(update['value']['url'])
        assert (status, body[:4], headers['content-type']) == (200, b'RIFF', 'audio/wav')
    assert get(picture['value']['url'])[1].startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('name', 'data', 'says'),
    [
        ('text.wav', b'hello, this is text', 'text.wav: damaged, cut short or not an audio file'),
        ('<img src=x>.mp3', b'\0' * 100, 'not an audio file'),
        ('cut.wav', wav()[:3000], 'its header promises more audio than it holds'),
    ],
)
def test_a_bad_upload_is_said_in_the_page_without_paths_of_the_machine(address, home, name, data, says):
    message = press(address, uploaded(address, name, data))
    assert message['success']
    told, *others = message['output']['data']
    assert says in told['value']
    assert 'role="alert"' in told['value']
    assert '<img' not in told['value']
    assert str(home) not in told['value']
    assert not any(update['visible'] for update in others)


def test_too_long_and_too_large(address):
    told = press(address, uploaded(address, data=wav(31)))['output']['data'][0]['value']
    assert 'minutes long' in told
    status, body, _ = upload(address, 'large.wav', bytes(1_100_000))
    assert (status, b'maximum allowed size' in body) == (413, True)


def complaints(home):
    """What the server has said, less the notes of the MP3 decoder."""
    lines = (home / 'stderr.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('Note: ')]


def paths(home):
    secret = str(home / 'secret.txt')
    dotted = f'{next(home.glob("audiosep-jax-*"))}/../secret.txt'
    return [secret, dotted, secret.replace('/', '%2F'), dotted.replace('/', '%2f').replace('.', '%2e'), '/etc/passwd']


def test_no_file_of_the_machine_is_served(address, home):
    for path in (*paths(home), *(f'/{path}' for path in paths(home)), str(home), 'secret.txt', '.', f'file://{home}'):
        for route in ('/gradio_api/file=', '/file=', '/gradio_api/file/', '/static/', '/assets/', '/theme.css?x='):
            status, body, _ = get(f'{address}{route}{path}')
            assert SECRET not in body
            assert b'root:' not in body
            assert status in (403, 404) or route.startswith('/theme'), (route, path)


@pytest.mark.parametrize('path', ['{home}/secret.wav', '{home}/audiosep-jax-x/../secret.wav', '../secret.wav'])
def test_no_file_of_the_machine_passes_for_an_upload(address, home, path):
    message = press(address, path.format(home=home))
    assert not message['success']
    assert 'data' not in message['output']


@pytest.mark.parametrize('scheme', ['http', 'HTTP'])
def test_nothing_is_fetched_for_a_user(address, scheme):
    with socket.create_server(('127.0.0.1', 0)) as other:
        other.settimeout(1)
        url = f'{scheme}://127.0.0.1:{other.getsockname()[1]}/x.wav'
        assert not press(address, url)['success']
        for route in ('file=', 'proxy=', 'file/'):
            assert get(f'{address}/gradio_api/{route}{url}')[0] in (403, 404)
        with pytest.raises(TimeoutError):
            other.accept()


def test_what_the_page_does_not_use_is_refused(address):
    for route in ('process_recording', 'vibe-edit/', 'vibe-code/', 'dev/reload', 'monitoring/summary'):
        assert get(f'{address}/gradio_api/{route}')[0] == 403
    for route in ('docs', 'redoc', 'monitoring'):
        assert get(f'{address}/{route}')[0] in (403, 404)


def test_nobody_gets_around_the_queue(address):
    _, config, _ = get(f'{address}/config')
    for dependency in json.loads(config)['dependencies']:
        asked = {'data': [None, 'a', '', 1], 'fn_index': dependency['id']}
        for route in ('run/predict', 'api/predict', f'run/{dependency["api_name"]}'):
            status, body, _ = post(f'{address}/gradio_api/{route}', asked)
            assert status >= 400, body


def test_another_name_for_this_machine_is_refused(address):
    """A page elsewhere may have its name point here (DNS rebinding)."""
    assert get(address, Host='evil.example')[0] == 400
    assert get(address, Host='localhost:1234')[0] == 200


@pytest.mark.parametrize('headers', [{'Origin': 'http://evil.example'}, {'Sec-Fetch-Site': 'cross-site'}])
def test_requests_of_other_sites_are_refused(address, home, headers):
    before = sorted(home.glob('audiosep-jax-*/files/*'))
    answers = [
        upload(address, 'street.wav', wav(), **headers),
        post(f'{address}/gradio_api/queue/join', {'data': [None, 'a', '', 1], 'fn_index': 0}, **headers),
        post(f'{address}/gradio_api/cancel', {'session_hash': 'a', 'fn_index': 0, 'event_id': 'b'}, **headers),
        get(address, **headers),
        get(f'{address}/config', **headers),
    ]
    for status, body, answered in answers:
        assert (status, len(body.splitlines())) == (403, 1)
        assert not any(name.lower().startswith('access-control') for name in answered)
    assert sorted(home.glob('audiosep-jax-*/files/*')) == before


def test_no_other_site_may_read_an_answer(address):
    """Whatever Gradio would allow: neither after a question by the browser nor on an answer to the page itself."""
    preflight = {'Origin': 'http://evil.example', 'Access-Control-Request-Method': 'POST'}
    connection = http.client.HTTPConnection(address.partition('://')[2], timeout=60)
    connection.request('OPTIONS', '/gradio_api/upload', headers=preflight)
    refused = connection.getresponse()
    refused.read()
    connection.close()
    status, _, own = get(address, Origin=address)
    assert (refused.status, status) == (403, 200)
    for answered in (refused.headers, own):
        assert not any(name.lower().startswith('access-control') for name in answered)


@pytest.mark.parametrize('index', [-1, 10**30, 99, 'x', None, 1.5, [], True])
def test_odd_functions_are_the_client_s_mistake(address, home, index):
    asked = {'data': [None, 'a', '', 1], 'session_hash': 'odd', 'fn_index': index}
    for route in ('queue/join', 'run/predict', 'call/run', 'call/v2/run', 'cancel', 'component_server'):
        status, body, _ = post(f'{address}/gradio_api/{route}', asked)
        assert 400 <= status < 500, (route, body)
    del asked['fn_index']
    assert 400 <= post(f'{address}/gradio_api/queue/join', asked)[0] < 500
    assert complaints(home) == []


def test_malformed_requests_are_the_client_s_mistake(address, home):
    for body in (b'', b'{', b'[]', b'5', b'\xff\xfe', b'[' * 100_000, b'{"fn_index": 0}'):
        for route in ('queue/join', 'run/predict', 'cancel', 'reset', 'call/run'):
            status, text, _ = post(f'{address}/gradio_api/{route}', body)
            assert 400 <= status < 500, (route, body[:10], text)
    field = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\nabc\r\n--x--\r\n'
    uploads = [
        (b'garbage', 'multipart/form-data; boundary=x'),
        (b'garbage', 'multipart/form-data'),
        (field, 'multipart/form-data; boundary=x'),
        (b'{}', 'application/json'),
    ]
    for body, kind in uploads:
        assert post(f'{address}/gradio_api/upload', body, kind)[0] == 400
    for path in ('/?page=x', '/config?page=x', '/assets/' + 'a' * 300):
        assert get(f'{address}{path}')[0] == 404
    assert b'session_not_found":true' in get(f'{address}/gradio_api/queue/data?session_hash=unknown')[1]
    assert complaints(home) == []


@pytest.mark.parametrize('path', ['/etc/passwd', 'nul\0', '\ud800', 'a' * 5000, ''])
def test_an_odd_recording_is_refused_without_a_traceback(address, home, path):
    assert not press(address, path)['success']
    assert not press(address, uploaded(address), strength=7)['success']
    assert complaints(home) == []


def test_behind_a_proxy(tmp_path):
    """A proxy with TLS serves the page as https://sounds.example.org/sounds/, and cuts off the path or does not."""
    flags = ['--allow-host', 'sounds.example.org', '--allow-host', 'b.example', '--root-path', '/sounds']
    with served(save_small(tmp_path / 'checkpoint'), home_of(tmp_path), *flags) as address:
        proxied = {'Host': 'sounds.example.org', 'X-Forwarded-Proto': 'https'}
        for path in ('', '/sounds'):
            status, config, _ = get(f'{address}{path}/config', **proxied)
            assert (status, json.loads(config)['root']) == (200, 'https://sounds.example.org/sounds')
            assert get(f'{address}{path}/theme.css', **proxied)[0] == 200
            status, body, _ = get(f'{address}{path}/', **proxied)
            asset = re.search(rb'assets/[\w.-]+\.js', body).group().decode()
            assert (status, get(f'{address}{path}/{asset}', **proxied)[0]) == (200, 200)
            own = {**proxied, 'Origin': 'https://sounds.example.org', 'Sec-Fetch-Site': 'same-origin'}
            assert upload(f'{address}{path}', 'street.wav', wav(), **own)[0] == 200
            assert upload(f'{address}{path}', 'street.wav', wav(), **own | {'Origin': 'https://evil.example'})[0] == 403
        assert get(address, Host='b.example')[0] == 200
        assert get(address, Host='c.example')[0] == 400
        assert press(f'{address}/sounds', uploaded(f'{address}/sounds'))['success']


@pytest.mark.skipif(not socket.has_ipv6, reason='no IPv6 here')
@pytest.mark.parametrize('host', ['::1', pytest.param('::', marks=[pytest.mark.slow, pytest.mark.nightly])])
def test_an_ipv6_address_is_printed_in_brackets(tmp_path, host):
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip('no IPv6 here')
    with served(
        save_small(tmp_path / 'checkpoint'), home_of(tmp_path), '--host', host, begins='http://[::1]:'
    ) as address:
        assert get(address)[0] == 200
        assert upload(address, 'street.wav', wav(), Origin=address)[0] == 200
        assert get(address, Host='evil.example')[0] == 400


@pytest.mark.nightly
@pytest.mark.slow
def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path):
    checkpoint, home = save_small(tmp_path / 'checkpoint'), home_of(tmp_path)
    killed = start(checkpoint, home)
    assert upload(killed.stdout.readline().split()[0].rstrip('/'), 'private.wav', wav())[0] == 200
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert len(list(home.rglob('private.wav'))) == 1
    with served(checkpoint, home):
        assert list(home.rglob('private.wav')) == []
        assert len(list(home.glob('audiosep-jax-*'))) == 1
    assert [path.name for path in home.iterdir()] == ['stderr.txt']


def home_of(tmp_path):
    (tmp_path / 'home').mkdir()
    return tmp_path / 'home'


def test_the_browser_is_told_to_load_nothing_from_elsewhere(address):
    _, body, headers = get(address)
    assert "default-src 'self'" in headers['content-security-policy']
    assert headers['x-content-type-options'] == 'nosniff'
    assert b'fonts.googleapis' not in body
    assert b'"enable_monitoring":false' in body or b'"analytics_enabled":false' in body


def test_mistakes_are_one_line_before_anything_is_loaded(tmp_path, capsys):
    with socket.create_server(('127.0.0.1', 0)) as other:
        taken = str(other.getsockname()[1])
        cases = [
            (2, ['--port', taken], f'--port {taken}: Address already in use'),
            (2, ['--port', '70000'], 'between 1 and 65535'),
            (2, ['--host', '192.0.2.1', '--port', str(free_port())], 'Cannot assign requested address'),
            (2, ['--allow-host', 'https://x.org'], 'without scheme'),
            (2, ['--root-path', 'https://x.org/a'], 'such as /sounds'),
            (2, ['--max-megabytes', '0'], '--max-megabytes 0'),
            (2, ['--max-seconds', 'nan'], '--max-seconds nan'),
            (1, ['--port', str(free_port()), '--examples', str(tmp_path / 'none')], 'none: cannot be read'),
        ]
        for code, flags, says in cases:
            assert main(['serve', '--checkpoint', 'nowhere', *flags]) == code
            error = capsys.readouterr().err
            assert says in error
            assert len(error.splitlines()) == 1


def test_without_gradio_one_line_says_how_to_get_it(tmp_path):
    (tmp_path / 'gradio.py').write_text('raise ImportError("not here")')
    command = [
        sys.executable,
        '-m',
        'audiosep_jax.cli',
        'serve',
        '--checkpoint',
        'nowhere',
        '--port',
        str(free_port()),
    ]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, 'PYTHONPATH': path}
    )
    assert done.returncode == 2
    assert "pip install 'audiosep_jax[demo]'" in done.stderr


def test_a_model_without_words_is_not_served():
    separator = Separator(CONFIG, small_variables())
    with (
        pytest.raises(QueryError, match='has no encoder for text'),
        serving(separator, host='127.0.0.1', port=free_port(), share=False, limits=Limits(), examples=[]),
    ):
        pass
