"""Reads ahead in a thread, so that the one who waits for the next element still hears signals and can give up."""

import collections
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

# How often a wait asks whether to give up, and how long it lasts at least: an element that is as good as read need not
# be given up.
_LOOK_SECONDS = 0.2
_GRACE_SECONDS = 2.0
_END_SECONDS = 5.0  # how long the thread may take to end
_THREAD_NAME = 'read-ahead'


class Source(Protocol):
    """An endless iterator that can be closed while another thread waits for its next element."""

    def __next__(self) -> Any: ...

    def close(self) -> None: ...


def is_stuck() -> bool:
    """Returns whether a thread that should have ended still waits for its source, as for a disk that does not answer.

    The interpreter would not exit, because it waits for the source's own threads.
    """
    return any(thread.name == _THREAD_NAME for thread in threading.enumerate())


class ReadAhead(Iterator[Any]):
    """Yields the elements of an endless source, which a thread reads.

    Args:
        source: where the elements come from; this closes it.
    """

    def __init__(self, source: Source):
        self._source = source
        self._changed = threading.Condition()
        self._wanted = 1  # how many elements to have ready
        self._ready: collections.deque[Any] = collections.deque()
        self._failure: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._read, name=_THREAD_NAME, daemon=True)
        self._thread.start()

    @property
    def ready(self) -> int:
        """How many elements have been read and not yet been returned."""
        return len(self._ready)

    @property
    def failure(self) -> Exception | None:
        """Why the source has no further element; None while it may have one."""
        return self._failure

    def wait(self, count: int, give_up: Callable[[], bool]) -> bool:
        """Waits until `count` elements are ready; from then on, as many are kept ready.

        Args:
            count: how many elements.
            give_up: whether to wait no longer than the two seconds that an element usually takes.

        Returns:
            Whether they are ready. If not, the source has failed, or `give_up` holds.
        """
        started = time.monotonic()
        with self._changed:
            self._wanted = max(self._wanted, count)
            self._changed.notify_all()
            while len(self._ready) < count and not self._failure and not self._closed:
                self._changed.wait(_LOOK_SECONDS)
                if give_up() and time.monotonic() - started > _GRACE_SECONDS:
                    break
            return len(self._ready) >= count

    def __next__(self) -> Any:
        """Returns the next element, or raises the exception of the source in its place."""
        self.wait(1, lambda: False)
        with self._changed:
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
        raise self._failure or StopIteration

    def close(self) -> None:
        """Closes the source, and ends the thread unless it is stuck in it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._source.close()
        self._thread.join(_END_SECONDS)

    def _read(self) -> None:
        while True:
            with self._changed:
                while len(self._ready) >= self._wanted and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
            try:
                element = next(self._source)
            except Exception as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._ready.append(element)
                self._changed.notify_all()
