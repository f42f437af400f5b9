"""Requests of programs to `audiosep-jax serve`, as curl makes them."""

import io
import json

import numpy as np
import soundfile
from support.served_page import get, post, upload

RATE = 8000  # of what is sent
CALL = '/gradio_api/call'


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
