"""The temporary folder of the web page's server, for uploads and results.

It is removed when the server ends. A server that is killed cannot do that, so the next one does. Each server holds a
lock in its folder, which the system releases when the process ends; a folder whose lock is free has no server any more.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from audiosep_jax.storage.locks import AtWork

_PREFIX = 'audiosep-jax-'
_LOCK = 'server.lock'


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Removes what killed servers left behind, and yields a new folder, which is removed at the end.

    Raises:
        OSError: the system's temporary folder is not writable.
    """
    parent = Path(os.path.realpath(tempfile.gettempdir()))
    _sweep(parent)
    with contextlib.ExitStack() as stack:
        yield _new_folder(parent, stack)


def _new_folder(parent: Path, stack: contextlib.ExitStack) -> Path:
    while True:
        outer = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        stack.callback(shutil.rmtree, outer, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another server may sweep it before the lock is held
            stack.enter_context(AtWork(outer / _LOCK))
            files = outer / 'files'  # apart from the lock, which is not to be served
            files.mkdir()
            return files


def _sweep(parent: Path) -> None:
    """Removes the folders of this user's servers that have ended."""
    for folder in parent.glob(f'{_PREFIX}*'):
        with contextlib.suppress(OSError):  # another server is sweeping it, or it belongs to another user
            is_own = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
            if not is_own or not (folder / _LOCK).is_file():
                continue
            with AtWork(folder / _LOCK) as lock:
                if lock.alone():
                    shutil.rmtree(folder, ignore_errors=True)
