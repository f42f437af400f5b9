"""Files that appear under their names when they are complete, and not before."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed to it at the end; on any exception it is removed.

    So whatever interrupts the writing, `path` is either untouched or complete. Only a process that is killed leaves the
    temporary file, `.{name}.tmp-…`.

    Raises:
        OSError: the folder is missing or not writable, or `path` is a folder.
    """
    path = Path(path)
    # Cut: a long name plus an ending of ours might be too long for the file system, which allows 255 bytes.
    name = os.fsencode(path.name)[:200].decode('utf-8', 'ignore')
    temporary = path.with_name(f'.{name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:12]}')
    try:
        temporary.touch(exist_ok=False)  # an OSError with a reason, where libsndfile says 'System error'
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        # The folder may be what is wrong: then there is nothing to remove either.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`, which takes its place at the end; on any exception it is removed.

    A folder that was at `path` before is there again if anything fails, and gone if all went well.

    Raises:
        OSError: the parent is missing or not writable.
    """
    path = Path(os.path.realpath(path))  # of a link it is the folder behind it that is replaced
    mark = f'{os.getpid()}-{uuid.uuid4().hex[:12]}'
    temporary, old = (path.with_name(f'.{path.name}.{kind}-{mark}') for kind in ('tmp', 'old'))
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
