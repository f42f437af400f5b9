"""Files and folders that appear under their names only when they are complete, and a check that they can be written."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from audiosep_jax.errors import AudioSepError, DataError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and at the end renames it to `path`; on any exception, it is removed.

    So whatever interrupts the writing, `path` is either untouched or complete. Only a process that is killed leaves the
    temporary file, `.{name}.tmp-…`, behind.

    Raises:
        OSError: the folder is missing or not writable, or `path` is a folder.
    """
    path = Path(path)
    # Shortened, because with the ending a long name could exceed the 255 bytes that file systems allow.
    name = os.fsencode(path.name)[:200].decode('utf-8', 'ignore')
    temporary = path.with_name(f'.{name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:12]}')
    try:
        temporary.touch(exist_ok=False)  # fails with a reason, where libsndfile would say 'System error'
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        # If the folder is the problem, there is nothing to remove.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path` that replaces `path` at the end; on any exception, it is removed.

    If anything fails, a folder that was at `path` before is still there.

    Raises:
        OSError: the parent is missing or not writable.
    """
    path = Path(os.path.realpath(path))  # of a link, the folder that it points to is replaced
    unique = f'{os.getpid()}-{uuid.uuid4().hex[:12]}'
    temporary, old = (path.with_name(f'.{path.name}.{kind}-{unique}') for kind in ('tmp', 'old'))
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_writable(
    path: str | os.PathLike,
    flag: str,
    *,
    kind: Literal['file', 'folder', 'either'] = 'file',
    error: type[AudioSepError] = DataError,
) -> None:
    """Checks, before hours of work, that its result can be written.

    The folder that is to contain `path` must exist: if it were made, typing mistakes would become trees of folders.

    Args:
        path: what is to be written.
        flag: the flag that named it, for messages; '' for none.
        kind: 'folder': files are to be written into it, and it may exist already; 'either': a file or folder is to
            replace it.
        error: the class of the exception.

    Raises:
        AudioSepError: an `error`, because the folder is missing or not writable, or because `path` is a folder where a
            file is needed, or a file where a folder is.
    """
    path = Path(path)
    name = f'{flag} {path}'.lstrip()
    parent = path.absolute().parent
    if not parent.is_dir():
        raise error(f'{name}: the folder {parent} does not exist; make it first')
    if kind == 'folder' and path.exists() and not path.is_dir():
        raise error(f'{name}: is a file, but a folder is needed; name a folder')
    if kind == 'file' and path.is_dir():
        raise error(f'{name}: is a folder; name a file')
    folder = path if kind == 'folder' and path.exists() else parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise error(f'{name}: no permission to write into {folder}')
