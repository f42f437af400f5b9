"""The command `audiosep-jax serve` in a process of its own, and a way to talk to it as its page does."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start(checkpoint, home, *flags, stderr=None, **environment):
    """The process of a server; its address is the first line of its stdout."""
    command = [sys.executable, '-m', 'audiosep_jax.cli', 'serve', '--checkpoint', str(checkpoint)]
    command += ['--port', str(free_port()), *flags]
    environment = {**os.environ, 'TMPDIR': str(home), **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)


@contextlib.contextmanager
def served(checkpoint, home, *flags, begins='http://127.0.0.1:', **environment):
    """Yields the address; at the end Ctrl-C, which must end it at once, cleanly and with exit code 0."""
    with (home / 'stderr.txt').open('w') as errors:
        process = start(checkpoint, home, *flags, stderr=errors, **environment)
        try:
            line = process.stdout.readline()
            assert line.startswith(begins), (home / 'stderr.txt').read_text()
            yield line.split()[0].rstrip('/')
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    assert [path.name for path in home.iterdir() if path.name.startswith('audiosep-jax-')] == []


def get(url, **headers) -> tuple[int, bytes, dict]:
    """Status, body and headers."""
    return _open(urllib.request.Request(url, headers=headers))


def post(url, body, content_type='application/json', **headers) -> tuple[int, bytes, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _open(urllib.request.Request(url, data, {'Content-Type': content_type, **headers}))


def _open(request):
    try:
        with _DIRECT.open(request, timeout=600) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def upload(address, name, data: bytes, **headers) -> tuple[int, bytes, dict]:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return post(
        f'{address}/gradio_api/upload',
        head.encode() + data + f'\r\n--{boundary}--\r\n'.encode(),
        f'multipart/form-data; boundary={boundary}',
        **headers,
    )


def press(address, path, queries='a siren', unwanted='', strength=1) -> dict:
    """What the page gets for its button: Gradio's last message. `path` is what a browser says was uploaded."""
    _, config, _ = get(f'{address}/config')
    (button,) = [d['id'] for d in json.loads(config)['dependencies'] if 'click' in str(d['targets'])]
    recording = None if path is None else {'path': path, 'meta': {'_type': 'gradio.FileData'}}
    session = uuid.uuid4().hex
    asked = {'data': [recording, queries, unwanted, strength], 'fn_index': button, 'session_hash': session}
    status, body, _ = post(f'{address}/gradio_api/queue/join', asked)
    assert status == 200, body
    _, stream, _ = get(f'{address}/gradio_api/queue/data?session_hash={session}')
    messages = [json.loads(line[6:]) for line in stream.decode().splitlines() if line.startswith('data: ')]
    return next(message for message in messages if message['msg'] == 'process_completed')
