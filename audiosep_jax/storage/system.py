"""The limits and the end of a process: how many files it may keep open, and what it must not wait for at its end."""

import functools
import multiprocessing
import os
import threading
import time

_OPEN_FILES_WANTED = 16384
_OPEN_FILES_OF_OTHERS = 256  # logs, sockets, libraries


@functools.cache
def most_open_files() -> int:
    """Returns how many files this process may keep open for its data, after raising the limit as far as it may.

    The usual limit is 1,024, but an AudioSet has 1,000 shards and as many files of embeddings.
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
    allowed = _OPEN_FILES_WANTED if soft == unlimited else min(soft, _OPEN_FILES_WANTED)
    return max(allowed - _OPEN_FILES_OF_OTHERS, 64)


def end_with_parent() -> None:
    """Ends this worker process when its parent has ended; a thread watches for that.

    Otherwise the data workers and those of `concurrent.futures` wait forever for a parent that was killed.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, 'only a worker has a parent process'
    parent.join()
    os._exit(1)


def abandon_threads_at_exit(exit_code: int, *, seconds: float = 5.0) -> None:
    """Ends this process so many seconds after its main thread, if there are threads now that Python would wait for.

    Args:
        exit_code: what the process then returns.
        seconds: how long the threads may take to end.
    """
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        threading.Thread(target=_abandon_threads, args=(exit_code, seconds), daemon=True).start()


def _abandon_threads(exit_code: int, seconds: float) -> None:
    threading.main_thread().join()
    time.sleep(seconds)
    os._exit(exit_code)
