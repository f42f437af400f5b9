"""What a process does when JAX finds that another one is gone: it says so in one line, and ends with exit code 1.

JAX's coordination service aborts the program, with a stack of C++ (exit code 134). It takes a callback for this, which
Python cannot provide: calling it throws `std::bad_cast`, in a thread of its own, and C++ then asks the handler that is
installed here how to terminate.
"""

import contextlib
import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from jax._src import distributed
from jaxlib import utils

# Held by the thread that ends this process, so that only one says why.
_ending = threading.Lock()
_kept: list[Any] = []  # the handler, for as long as C++ may call it


@contextlib.contextmanager
def lost_processes_end_this_one(index: int) -> Iterator[None]:
    """Within this context, `jax.distributed.initialize` makes a client that ends this process in an orderly way.

    Where JAX or the C++ library are not as expected, JAX aborts the program, as it does by itself.

    Args:
        index: this process's number.
    """
    make_client = getattr(distributed._jax, 'get_distributed_runtime_client', None)
    if make_client is None or not _install_handler(index):
        yield
        return
    if not os.environ.get('JAX_LOGGING_LEVEL'):
        utils.absl_set_min_log_level(3)  # what C++ says before it terminates is of no use to the user
    distributed._jax.get_distributed_runtime_client = functools.partial(
        make_client, missed_heartbeat_callback=lambda *_: None
    )
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_client = make_client


def only_this_thread_ends() -> None:
    """Returns if the calling thread may end this process, with its own message; another one that does so is let."""
    if not _ending.acquire(blocking=False):
        time.sleep(60)


def _install_handler(index: int) -> bool:
    """Tells C++ how to terminate; returns whether it could."""
    try:
        library = ctypes.CDLL('libstdc++.so.6')
        set_terminate, exception_type = library._ZSt13set_terminatePFvvE, library.__cxa_current_exception_type
    except (OSError, AttributeError):
        return False
    handler_type = ctypes.CFUNCTYPE(None)
    set_terminate.restype = exception_type.restype = ctypes.c_void_p

    @handler_type
    def terminate() -> None:
        if _name_of_type(exception_type()) != b'St8bad_cast':
            handler_type(previous)()  # another reason, which aborts as ever
        only_this_thread_ends()
        print(
            f'process {index}: error: another process of the run is gone or does not answer, see what it said; every '
            'checkpoint is whole',
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    previous = set_terminate(terminate)
    _kept.append(terminate)
    return True


def _name_of_type(info: int | None) -> bytes | None:
    """Returns the name that C++ gives the type of an exception; `info` is the address of its `std::type_info`."""
    if not info:
        return None
    return ctypes.cast(info, ctypes.POINTER(ctypes.c_char_p))[1]  # after the pointer to its virtual functions
