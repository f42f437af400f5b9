"""Locks between processes and hosts, held on files; the system gives them up when a process ends, however it ends."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows, where the shards' libraries do not exist either
    fcntl = None

# What file systems say that know no locks, such as a bucket's FUSE mount.
_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Held by one process at a time; others wait. Where the file system has no locks, nobody waits.

    Raises:
        OSError: the folder of the lock file is missing or not writable.
    """
    file = _acquire(path, exclusive=True)
    try:
        yield
    finally:
        if file is not None:
            pathlib.Path(path).unlink(missing_ok=True)
            os.close(file)


class AtWork:
    """While it is entered, others can tell that this process is at work in the folder of the lock file `path`.

    Raises:
        OSError: the folder is missing or not writable.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        self._file: int | None = None

    def __enter__(self) -> 'AtWork':
        self._file = _acquire(self._path, exclusive=False)
        return self

    def alone(self) -> bool | None:
        """Whether no other process is at work there; None where the file system cannot tell."""
        if self._file is None:
            return None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._file, fcntl.LOCK_SH)  # the attempt gave the lock up
            return False
        return True

    def __exit__(self, *exception) -> None:
        if self._file is None:
            return
        if self.alone():
            self._path.unlink(missing_ok=True)
        os.close(self._file)


def _acquire(path: str | os.PathLike, *, exclusive: bool) -> int | None:
    """The descriptor of the locked file; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            # The one before us removes the file when it is done: then this lock is on a file that nobody else sees.
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(file)
            if error.errno in _NO_LOCKS_HERE:
                pathlib.Path(path).unlink(missing_ok=True)
                return None
            raise
        except BaseException:
            os.close(file)
            raise
        os.close(file)
