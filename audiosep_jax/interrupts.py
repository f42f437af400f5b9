"""Ctrl-C in programs: one line wherever it comes, and never a traceback. Only command lines use this.

A program first imports `audiosep_jax.program`, with which Ctrl-C ends it at once while it imports the rest. Its main
function runs in `interruptible`, within which Ctrl-C raises KeyboardInterrupt, so that temporary files are removed.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def end_quietly() -> bool:
    """Makes Ctrl-C end this process at once, without a traceback, unless somebody else handles it; returns whether."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


@contextlib.contextmanager
def interruptible(*also: signal.Signals) -> Iterator[Callable[[], bool]]:
    """A context in which Ctrl-C raises KeyboardInterrupt; a second one ends the process at once.

    Within it, nothing is said of a KeyboardInterrupt that comes where Python cannot raise it, as in a destructor. In a
    thread other than the main one, or where SIGINT is ignored, the signals are somebody else's business.

    Args:
        also: other signals that do the same.

    Yields:
        A function that returns whether there was such a signal: a library may turn the KeyboardInterrupt into an
        exception of its own.
    """
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    usual = signal.SIG_DFL, signal.default_int_handler
    wanted = (signal.SIGINT, *also) if threading.current_thread() is threading.main_thread() else ()
    previous = {s: signal.getsignal(s) for s in wanted if signal.getsignal(s) in usual}
    hook = sys.unraisablehook

    def without_interrupts(unraisable: Any) -> None:
        if not (received and issubclass(unraisable.exc_type, KeyboardInterrupt)):
            hook(unraisable)

    sys.unraisablehook = without_interrupts
    try:
        for number in previous:
            signal.signal(number, handler)
        yield lambda: bool(received)
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
        # What somebody else has put around it meanwhile stays.
        if not received and sys.unraisablehook is without_interrupts:
            sys.unraisablehook = hook
