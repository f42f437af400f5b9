"""What the subcommands share: messages, signals, and loading a separator."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, TextIO

from audiosep_jax.interrupts import interruptible

if TYPE_CHECKING:
    from audiosep_jax.separation.level import LevelRule
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


class _Notes(logging.Handler):
    """Prints each warning once: with --segments, every segment may log it."""

    def __init__(self, source: object):
        super().__init__(logging.WARNING)
        self._source = source
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in self._printed:
            self._printed.add(record.name)
            note(f'{self._source}: {record.getMessage()}')


class _AllNotes(logging.Handler):
    """Prints every warning."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def warnings_as_notes(source: object) -> contextlib.AbstractContextManager[None]:
    """Prints the warnings that separating `source` logs as notes."""
    return _handled('audiosep_jax.separation', _Notes(source))


def checkpoint_warnings_as_notes() -> contextlib.AbstractContextManager[None]:
    """Prints the warnings that finding and converting checkpoints logs as notes."""
    return _handled('audiosep_jax.checkpoints', _AllNotes(logging.WARNING))


@contextlib.contextmanager
def _handled(name: str, handler: logging.Handler) -> Iterator[None]:
    """Gives what is logged under a name to this handler alone."""
    logger = logging.getLogger(name)
    previous, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = previous


def load(
    path: str | None,
    *,
    max_whole_seconds: float | None = None,
    level: 'LevelRule | None' = None,
    dtype: Literal['float32', 'bfloat16'] | None = None,
    equalizer: float | None = None,
) -> 'Separator':
    """Returns the separator of a checkpoint, with the compilation cache on; see `asj.load`."""
    from audiosep_jax.separation.loading import load
    from audiosep_jax.storage.cache import enable_compilation_cache

    silence_orbax()
    enable_compilation_cache()
    return load(path, max_whole_seconds=max_whole_seconds, level=level, dtype=dtype, equalizer=equalizer)


def silence_orbax() -> None:
    """Hides Orbax's warnings about its internals, which a user of the command line can do nothing about."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)


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
