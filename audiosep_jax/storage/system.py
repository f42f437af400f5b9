"""What a process that reads clips asks of the system: memory that stays, and files that may stay open."""

import ctypes
import functools
import multiprocessing
import os
import threading

# Of <malloc.h>. glibc refuses more than 32 MiB for the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 256 << 20
_LARGEST_KEPT_BYTES = 32 << 20

_OPEN_FILES_WANTED = 16384
_OPEN_FILES_OF_OTHERS = 256  # logs, sockets, libraries


@functools.cache
def keep_freed_memory() -> bool:
    """Lets glibc's malloc keep what this process frees, up to 256 MiB; returns whether it does.

    A record of 10 s is 0.3 to 0.6 MB, for which malloc by default asks the system and to which it returns it: the page
    faults of fresh memory were up to five sixths of the time of reading a record of PCM (1.7 ms, without them 0.24).
    Other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


@functools.cache
def most_open_files() -> int:
    """How many files this process may keep open for its data, the limit raised as far as is allowed without asking.

    The usual limit is 1,024, and an AudioSet has 1,000 shards with as many files of embeddings.
    """
    try:
        import resource
    except ImportError:  # Windows
        return _OPEN_FILES_OF_OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < _OPEN_FILES_WANTED:
        soft, before = _OPEN_FILES_WANTED if hard == unlimited else min(hard, _OPEN_FILES_WANTED), soft
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):  # macOS has a second, lower limit
            soft = before
    found = _OPEN_FILES_WANTED if soft == unlimited else min(soft, _OPEN_FILES_WANTED)
    return max(found - _OPEN_FILES_OF_OTHERS, 64)


def end_with_parent() -> None:
    """Called in a worker: ends it, from a thread, when its parent is gone.

    The workers of Grain and of `concurrent.futures` otherwise wait for ever for a parent that was killed.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
