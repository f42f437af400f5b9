"""What the subcommands share: messages, signals, and loading a separator."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from audiosep_jax.interrupts import interruptible

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator


def say(text: str, *, file: TextIO | None = None) -> None:
    """Prints one line, by default on stdout, whatever the terminal's encoding and whatever bytes a file name has."""
    file = file or sys.stdout
    text = ''.join(c if c.isprintable() or c == ' ' else c.encode('unicode_escape').decode() for c in text)
    encoding = file.encoding or 'utf-8'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), file=file, flush=True)


def note(text: str) -> None:
    """Prints a note on stderr."""
    say(f'audiosep-jax: note: {text}', file=sys.stderr)


def complain(message: str) -> None:
    """Prints an error on stderr."""
    say(f'audiosep-jax: error: {message}', file=sys.stderr)


def load(path: str | None, *, max_whole_seconds: float | None = None) -> 'Separator':
    """Returns the separator of a checkpoint, with the compilation cache on; see `asj.load`."""
    from audiosep_jax.separation.separator import load
    from audiosep_jax.storage.cache import enable_compilation_cache

    silence_orbax()
    enable_compilation_cache()
    return load(path, max_whole_seconds=max_whole_seconds)


def silence_orbax() -> None:
    """Hides Orbax's warnings about its internals, which a user of the command line can do nothing about."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)


def terminable() -> contextlib.AbstractContextManager[Callable[[], bool]]:
    """A context in which SIGTERM raises KeyboardInterrupt, so that temporary files are removed as on Ctrl-C.

    In any thread other than the main one, this does nothing.
    """
    return interruptible(signal.SIGTERM)


def stdout_was_closed() -> int:
    """Returns the exit code after the reader of stdout has gone (`| head`).

    Redirects stdout to the null device, because Python would raise again when it flushes stdout at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
