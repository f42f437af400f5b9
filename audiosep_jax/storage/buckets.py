"""Files in buckets (`gs://…`, `s3://…`) through the same paths as files in folders, by etils' epath.

An object of a bucket appears only when it is complete, so it needs no temporary name. Buckets have no folders to make,
and no locks. To read and write them, `pip install gcsfs` or `s3fs`.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from audiosep_jax.errors import AudioSepError, ConfigError, DataError
from audiosep_jax.storage.atomic import replacing


def is_bucket(path: str | os.PathLike) -> bool:
    """Returns whether this is an address like `gs://…`, and not a path of the local file system."""
    return '://' in os.fspath(path)


def as_path(path: str | os.PathLike) -> pathlib.Path:
    """Returns a `pathlib.Path`, or for an address an `epath.Path`, which has the same methods.

    Raises:
        ConfigError: epath does not know this kind of address.
    """
    text = os.fspath(path)
    if not is_bucket(text):
        return pathlib.Path(text)
    from etils import epath

    try:
        return epath.Path(text)
    except KeyError as error:
        raise ConfigError(f'{text}: unknown kind of address: give gs://…, s3://… or a path') from error


def size(path: pathlib.Path) -> int:
    """Returns the size of a file in bytes. Raises OSError if it cannot be read."""
    status: Any = path.stat()
    return status.length if is_bucket(path) else status.st_size


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes a file atomically: readers see the old file or the new one, even if this process is killed.

    Raises:
        OSError: it cannot be written, or only a part of it arrived.
    """
    with writing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a local temporary path, and at the end renames the file there to `path`, or copies it into the bucket.

    On any exception, `path` does not change. Its folder is made.

    Raises:
        OSError: it cannot be written, or only a part of it arrived.
    """
    if not is_bucket(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory(prefix='audiosep-') as scratch:
        temporary = pathlib.Path(scratch) / path.name
        yield temporary
        try:
            _copy(temporary, path)
            if size(path) != size(temporary):
                raise OSError(f'{path}: {size(path)} of {size(temporary)} bytes arrived: run it again')
        except BaseException:
            # fsspec closes a file whose writing failed, and so makes the incomplete object appear.
            with contextlib.suppress(Exception):
                path.unlink(missing_ok=True)
            raise


def _copy(source: pathlib.Path, destination: pathlib.Path) -> None:
    from etils import epath

    epath.Path(source).copy(destination, overwrite=True)


@contextlib.contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
    """Turns what a bucket's library raises (not installed, no credentials, no network) into DataError.

    OSError passes unchanged, and so does every error about a local path.
    """
    try:
        yield
    except (AudioSepError, OSError):
        raise
    except Exception as error:
        if not is_bucket(path):
            raise
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        hint = ' (gs:// takes `pip install gcsfs`, s3:// `pip install s3fs`)' if isinstance(error, ImportError) else ''
        raise DataError(f'{path}: cannot be read or written: {reason}{hint}') from error
