"""Ctrl-C and SIGTERM at any time: while a program imports, while it works, and while it ends."""

import os
import signal
import subprocess
import sys

import pytest
from support.paths import ROOT

from audiosep_jax.errors import reported
from audiosep_jax.interrupts import interruptible

PROGRAMS = [
    ['-m', 'audiosep_jax.cli', 'separate', '--help'],
    ['-m', 'data_prep', 'build', '--help'],
    *([f'experiments/{path.name}', '--help'] for path in sorted((ROOT / 'experiments').glob('*.py'))),
]


def run(program, tmp_path, **settings):
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get('PYTHONPATH', '')])
    return subprocess.run(
        [sys.executable, *program],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': paths},
        capture_output=True,
        text=True,
        timeout=300,
        **settings,
    )


# Experiments begin with the same line, so that one of them is enough for the other signal.
@pytest.mark.parametrize(
    ('program', 'number'),
    [*((program, signal.SIGINT) for program in PROGRAMS), *((program, signal.SIGTERM) for program in PROGRAMS[:3])],
    ids=lambda value: str(value) if isinstance(value, int) else value[value[0] == '-m'],
)
def test_a_signal_while_a_program_imports(program, number, tmp_path):
    """Every program imports tyro, here one that sends the signal."""
    (tmp_path / 'tyro.py').write_text(f'import os, time; os.kill(os.getpid(), {number:d}); time.sleep(60)')
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (-number, '', ''), 'which a shell shows as 130 or 143'


SCRIPT = """
import audiosep_jax.program
import os, signal, sys, threading, time
from audiosep_jax.errors import reported

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

with reported('script'):
    if sys.argv[1] == 'converted':
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt as error:
            raise ImportError('a library swallowed it') from error
    if sys.argv[1] == 'destructor':
        late = Late()
        del late
    if sys.argv[1] == 'threads':
        def complain():
            time.sleep(1)
            raise ValueError('the main thread has gone')
        threading.Thread(target=complain).start()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            time.sleep(2)
    if sys.argv[1] == 'twice':
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
if sys.argv[1] == 'afterwards':
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ('when', 'code', 'said'),
    [
        ('converted', 130, 'script: interrupted\n'),
        ('destructor', 0, ''),
        ('threads', 130, 'script: interrupted\n'),
        ('twice', -signal.SIGINT, ''),
        ('afterwards', -signal.SIGINT, ''),
    ],
)
def test_ctrl_c_at_odd_times(tmp_path, when, code, said):
    (tmp_path / 'script.py').write_text(SCRIPT)
    done = run([str(tmp_path / 'script.py'), when], tmp_path)
    assert (done.returncode, done.stderr) == (code, said)


def test_somebody_else_s_handler_stays():
    def own(number, frame):
        raise ValueError('mine')

    before = signal.signal(signal.SIGINT, own)
    try:
        with pytest.raises(ValueError, match='mine'), reported('program'):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hooks = sys.excepthook, sys.unraisablehook
    with interruptible(signal.SIGTERM) as interrupted:
        assert not interrupted()
    assert {number: signal.getsignal(number) for number in before} == before
    with pytest.raises(KeyboardInterrupt), interruptible(signal.SIGTERM) as interrupted:
        signal.raise_signal(signal.SIGTERM)
    assert interrupted()
    assert (sys.excepthook, sys.unraisablehook) == hooks, 'this is no program of ours'
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_hook_that_is_set_within_stays(monkeypatch):
    monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
    with interruptible():
        hook = sys.unraisablehook
        sys.unraisablehook = lambda unraisable: hook(unraisable)
        ours = sys.unraisablehook
    assert sys.unraisablehook is ours
