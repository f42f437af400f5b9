"""Every error that the library raises for a reason the user can mend.

The message is one line and says what to do. Only the command line turns them into exit codes: 2 for flags,
configurations and queries, 1 for files and data.
"""

import contextlib
import sys
from collections.abc import Iterator


class AudioSepError(Exception):
    """Base of all errors raised on purpose by this library. `exit_code` is what the shell returns."""

    exit_code = 1


class ConfigError(AudioSepError):
    """A configuration that cannot work: an unknown key, a value out of range, sizes that do not fit together."""

    exit_code = 2


class QueryError(AudioSepError):
    """A query that asks for nothing: empty text, an embedding of the wrong size, NaN in it."""

    exit_code = 2


class AudioFileError(AudioSepError):
    """An audio file that is missing, unreadable, empty or holds non-finite samples."""


class DataError(AudioSepError):
    """Shards, manifests, embedding caches or benchmark folders that are missing, damaged or do not fit together."""


class EncoderMismatchError(DataError):
    """Embeddings of one query encoder offered to a model or cache of another."""


class CheckpointError(AudioSepError):
    """A checkpoint directory that is missing, is not one, is damaged or belongs to another configuration."""


class TrainingDivergedError(AudioSepError):
    """Too many non-finite steps in a row."""


@contextlib.contextmanager
def reported(program: str) -> Iterator[None]:
    """For the shell alone: an AudioSepError becomes one line on stderr and its exit code, Ctrl-C becomes 130."""
    try:
        yield
    except AudioSepError as error:
        print(f'{program}: error: {error}', file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print(f'{program}: interrupted', file=sys.stderr)
        raise SystemExit(130) from None
