"""The errors that the library raises for reasons that the user can fix.

Each message is one line and says what to do. Only the command line turns errors into exit codes: 2 for flags,
configurations and queries, 1 for files and data.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, NoReturn

from audiosep_jax.interrupts import interruptible, leave

_MAX_MESSAGE = 2000  # characters
# Whatever ends a line, moves the cursor, reverses the text or cannot be encoded.
_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')


class AudioSepError(Exception):
    """The base of all errors that this library raises on purpose. `exit_code` is what the command line returns.

    As a string it is one line, whatever a message quotes: a file name, a cell of a table, another library's error.
    """

    exit_code = 1

    def __str__(self) -> str:
        return single_line(super().__str__())


class ConfigError(AudioSepError):
    """A configuration that cannot work: an unknown key, a value out of range, sizes that do not fit together."""

    exit_code = 2


class QueryError(AudioSepError):
    """A query that cannot be used: an empty text, an embedding of the wrong size or with NaN in it."""

    exit_code = 2


class AudioFileError(AudioSepError):
    """An audio file that is missing, unreadable, empty or contains non-finite samples, or that cannot be written."""


class DataError(AudioSepError):
    """Shards, manifests, embedding caches or benchmark folders that are missing, damaged or do not match."""


Reason = Literal['bad row', 'missing', 'unreadable', 'length', 'too short', 'silent noise', 'excluded']


class LeftOutError(DataError):
    """A clip of a dataset, or an item of a benchmark, that cannot be used. The rest is used without it."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A clip or an item that was left out, and why. The id and the message are made printable.

    Attributes:
        id: what the dataset or benchmark calls it; for a bad row of a table, its file and line.
        reason: the kind of problem, by which reports count.
        message: one line that says what is wrong.
    """

    id: str
    reason: Reason
    message: str

    def __post_init__(self) -> None:
        # File names that are not valid UTF-8 cannot be written to JSON and CSV files.
        for name in ('id', 'message'):
            if not getattr(self, name).isascii():
                object.__setattr__(self, name, printable(getattr(self, name)))
        object.__setattr__(self, 'message', single_line(self.message))


class EncoderMismatchError(DataError):
    """Embeddings of one query encoder were given to a model or cache of another."""


class CheckpointError(AudioSepError):
    """A checkpoint that is missing, damaged, of another configuration, or no checkpoint at all."""


class DownloadError(AudioSepError):
    """A file of a Hugging Face repository that is not in the local cache and cannot be downloaded."""


class TrainingDivergedError(AudioSepError):
    """Training had too many non-finite steps in a row."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """Returns the first line of a library's error, at most `limit` characters of it; if it is empty, the error's class.

    The result fits into a message of one line.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]


def printable(text: str) -> str:
    """Returns the text with the bytes of a file name that are not valid UTF-8 written as escapes."""
    return text if text.isascii() else text.encode('utf-8', 'backslashreplace').decode('utf-8')


def single_line(text: str) -> str:
    """Returns a message with control characters as escapes, and with its middle left out if it is very long."""
    if not text.isprintable():
        text = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    if len(text) > _MAX_MESSAGE:
        text = f'{text[: _MAX_MESSAGE // 2]} … {text[-_MAX_MESSAGE // 2 :]}'
    return text


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Returns the first `limit` names, and how many more there are."""
    more = len(names) - limit
    return ', '.join(names[:limit]) + (f' and {more} more' if more > 0 else '')


def explained(error: Exception) -> tuple[str, int] | None:
    """Returns the message and the exit code for an error that the user can fix; None for any other, which is a bug.

    Only command lines use this.
    """
    if isinstance(error, AudioSepError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return f'{error.filename or "input/output"}: {error.strerror or error}', 1
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)):
        return 'out of memory; use a smaller batch size, fewer queries at once or shorter files', 1
    return None


@contextlib.contextmanager
def reported(program: str) -> Iterator[None]:
    """Turns an error that the user can fix into one line on stderr and its exit code, and Ctrl-C into exit code 130.

    Only command lines use this.

    Args:
        program: the name with which the line begins.

    Raises:
        SystemExit: with the exit code.
    """
    with interruptible() as interrupted:
        try:
            yield
        except KeyboardInterrupt:
            _say_interrupted(program)
        except Exception as error:
            if interrupted():
                _say_interrupted(program)
            explanation = explained(error)
            if explanation is None:
                raise
            print(f'{program}: error: {explanation[0]}', file=sys.stderr)
            raise SystemExit(explanation[1]) from None


def _say_interrupted(program: str) -> NoReturn:
    print(f'{program}: interrupted', file=sys.stderr)
    leave(130)


def dash_hint(arguments: Sequence[str]) -> str | None:
    """Returns what to say about a file whose name begins with a dash, so that the command line was not understood.

    Only command lines use this.

    Args:
        arguments: of the command line.
    """
    options = list(itertools.takewhile(lambda argument: argument != '--', arguments))
    for name in options:
        # A name that does not exist yet, such as an output's, is known by its suffix. -0.5 is a number.
        if re.fullmatch(r'-[^-].*\.[a-z]\w{1,4}', name, re.IGNORECASE) or (
            len(name) > 1 and name.startswith('-') and os.path.lexists(name)
        ):
            return f"{name} begins with a dash and is taken for an option: write './{name}' (inputs may also follow --)"
    return None
