"""Ctrl-C in programs: one line wherever it comes, and never a traceback. Only command lines use this.

A program first imports `audiosep_jax.program`, with which Ctrl-C ends it at once while it imports the rest. Its main
function runs in `interruptible`, within which Ctrl-C raises KeyboardInterrupt, so that temporary files are removed.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

# Whether this process is one of our programs, and not somebody's that imports the library; and what it has received.
_is_program = False
_received: list[int] = []


def begin_program() -> None:
    """Says that this process is one of our programs, and makes Ctrl-C end it at once, without a traceback."""
    global _is_program
    _is_program = True
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave(code: int) -> NoReturn:
    """Exits with this code. A program that was interrupted exits at once.

    The threads of libraries may be in the middle of something, of which they complain, or crash, if Python cleans up
    around them.
    """
    if _is_program and _received:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


def _be_quiet() -> None:
    """Hides what threads and callbacks of libraries say about work that was interrupted."""

    def nothing(*_: object) -> None:
        pass

    sys.excepthook = nothing
    sys.unraisablehook = nothing
    threading.excepthook = nothing
    logging.disable()


@contextlib.contextmanager
def interruptible(*also: signal.Signals) -> Iterator[Callable[[], bool]]:
    """A context in which Ctrl-C raises KeyboardInterrupt; a second one ends the process at once.

    In a thread other than the main one, or where SIGINT is ignored, the signals are somebody else's business.

    Args:
        also: other signals that do the same.

    Yields:
        A function that returns whether there was such a signal: a library may turn the KeyboardInterrupt into an
        exception of its own.
    """
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _received.append(number)
        signal.signal(number, signal.SIG_DFL)
        if _is_program:
            _be_quiet()
        raise KeyboardInterrupt

    usual = signal.SIG_DFL, signal.default_int_handler
    wanted = (signal.SIGINT, *also) if threading.current_thread() is threading.main_thread() else ()
    previous = {s: signal.getsignal(s) for s in wanted if signal.getsignal(s) in usual}
    try:
        for number in previous:
            signal.signal(number, handler)
        yield lambda: bool(received)
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
