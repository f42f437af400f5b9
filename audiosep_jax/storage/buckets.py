"""Datasets in buckets, `gs://…` and `s3://…`, beside those in folders: the same paths, through etils' epath.

A bucket's object appears when it is whole, so it needs no temporary name; there are no folders to make, and no locks.
Reading and writing them takes `pip install gcsfs` or `s3fs`.
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from audiosep_jax.errors import AudioSepError, ConfigError, DataError
from audiosep_jax.storage.atomic import replacing


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether this is an address, and no path of the local file system."""
    return '://' in os.fspath(path)


def as_path(path: str | os.PathLike) -> pathlib.Path:
    """A `pathlib.Path`, or an `epath.Path` of the same methods for an address.

    Raises:
        ConfigError: an address of a kind that epath does not know.
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
    """Bytes of a file. Raises OSError."""
    found = path.stat()
    return found.length if is_bucket(path) else found.st_size


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Atomically: a reader, or a process killed here, sees the old file or the new one. Raises OSError."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a local temporary path; at the end, what is there gets the name `path`: by renaming, or by a copy into the
    bucket. On any exception there is nothing new under `path`. Its folder is made.

    Raises:
        OSError: it cannot be written, or did not arrive as a whole.
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
            # fsspec closes, and so completes, what an error interrupted.
            with contextlib.suppress(Exception):
                path.unlink(missing_ok=True)
            raise


def _copy(source: pathlib.Path, destination: pathlib.Path) -> None:
    from etils import epath

    epath.Path(source).copy(destination, overwrite=True)


@contextlib.contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
    """Makes what a bucket's library raises (not installed, no credentials, no network) a DataError. An OSError, and all
    that happens to local paths, passes."""
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
