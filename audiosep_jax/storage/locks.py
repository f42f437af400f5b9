"""Locks on files, between processes and hosts. When a process ends, however it ends, the system releases its locks."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows, where the shards' libraries do not exist either
    fcntl = None  # type: ignore[assignment]  # a module may be absent

# The errors of file systems without locks, such as a bucket's FUSE mount.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Holds a lock that only one process can hold at a time, and waits for it. Without locks, nobody waits.

    Args:
        path: the lock file, which is removed at the end.

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
    """A context in which other processes can see, by the lock file `path`, that this one is working in its folder.

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
        """Returns whether no other process is working there; None if the file system has no locks."""
        if self._file is None:
            return None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._file, fcntl.LOCK_SH)  # the attempt released the shared lock
            return False
        return True

    def __exit__(self, *exception: object) -> None:
        if self._file is None:
            return
        if self.alone():
            self._path.unlink(missing_ok=True)
        os.close(self._file)


def _acquire(path: str | os.PathLike, *, exclusive: bool) -> int | None:
    """Returns the descriptor of the locked file; None if there are no locks."""
    if fcntl is None:
        return None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            # If the previous holder has removed the file since, this lock is on a file that nobody else sees: retry.
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(file)
            if error.errno in _NO_LOCKS:
                pathlib.Path(path).unlink(missing_ok=True)
                return None
            raise
        except BaseException:
            os.close(file)
            raise
        os.close(file)
