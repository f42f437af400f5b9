"""Files that appear under their names when they are complete, and not before."""

import contextlib
import os
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
