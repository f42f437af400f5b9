"""What the subcommands share of the terminal: messages, signals, loading a separator."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator


def _unread() -> int:
    """`| head`: nobody reads on. Without this Python complains again while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _load(path: str | None, **options: float) -> 'Separator':
    from audiosep_jax.separation.separator import load
    from audiosep_jax.storage.cache import enable_compilation_cache

    _quieten()
    enable_compilation_cache()
    return load(path, **options)


def _quieten() -> None:
    """Orbax tells of its internals in warnings through absl, which nobody at a command line can act on."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as an exception, as Ctrl-C is, so that temporary files are removed. Only the main thread may ask so."""

    def stop(*_):
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _complain(message: str) -> None:
    _say(f'audiosep-jax: error: {message}', file=sys.stderr)


def _say(text: str, file=None) -> None:
    """One line, whatever the terminal's encoding and whatever bytes a file name has."""
    file = file or sys.stdout
    text = ''.join(c if c.isprintable() or c == ' ' else c.encode('unicode_escape').decode() for c in text)
    encoding = file.encoding or 'utf-8'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), file=file, flush=True)
