"""The errors of Orbax and tensorstore: what is kept of them, and what does not reach the terminal."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import absl.logging
import pytest

from audiosep_jax.checkpoints.orbax_errors import BackgroundErrors, reason_of


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'x'), 'No space left on device'),
        (ValueError("RESOURCE_EXHAUSTED: a\nb [os_error_code='28']"), 'No space left on device'),
        (ValueError('one\ntwo'), 'one'),
        (KeyError(), 'KeyError'),
    ],
)
def test_the_reason_is_the_system_s(error, reason):
    assert reason_of(error) == reason


def test_only_what_orbax_logs_with_an_error_is_kept(caplog, monkeypatch):
    logger = absl.logging.get_absl_logger()
    monkeypatch.setattr(logger, 'filters', [])
    earlier, errors = BackgroundErrors(Path('/runs/a')), BackgroundErrors(Path('/runs/b'))

    def log(path, text, error):
        logger.handle(logging.LogRecord('absl', logging.ERROR, path, 1, text, (), error and (type(error), error, None)))

    log('/site-packages/orbax/checkpoint/x.py', 'left over: /runs/a/1', ValueError('another run'))
    log('/site-packages/orbax/checkpoint/x.py', 'failed: /runs/b/1', ValueError('first'))
    log('/site-packages/orbax/checkpoint/x.py', 'failed: /runs/b/1', ValueError('second'))
    log('/site-packages/orbax/checkpoint/x.py', 'no error', None)
    log('/elsewhere/x.py', 'of others: /runs/b/1', ValueError('other'))
    errors.remove()
    earlier.remove()
    log('/site-packages/orbax/checkpoint/x.py', 'later', ValueError('later'))
    assert str(errors.first) == 'first'
    assert earlier.first is None
    assert [record.getMessage() for record in caplog.records] == ['no error', 'of others: /runs/b/1', 'later']


def test_abandoned_futures_are_silent_and_other_ones_are_not():
    code = """
import asyncio, sys
from audiosep_jax.checkpoints.orbax_errors import silence_abandoned_futures
silence_abandoned_futures()
silence_abandoned_futures()

class Late:
    def __init__(self, text): self.text = text
    def __del__(self): raise RuntimeError(self.text)

async def abandon(text):
    asyncio.get_running_loop().create_future().set_exception(ValueError(text))

asyncio.run(abandon('RESOURCE_EXHAUSTED: no space'))
asyncio.run(abandon('something else'))
Late('Event loop is closed')
Late('another mistake')
"""
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stderr
    assert 'something else' in said
    assert 'another mistake' in said
    assert 'RESOURCE_EXHAUSTED' not in said
    assert 'loop is closed' not in said
