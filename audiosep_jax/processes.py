"""Worker processes that do not outlive the run they work for."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Called in a worker: ends it, from a thread, when its parent is gone.

    The workers of Grain and of `concurrent.futures` otherwise wait for ever for a parent that was killed.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
