"""Worker processes that make the elements of a pipeline, and whose death is noticed at once.

Grain's own `mp_prefetch` waits for ever for a worker that was killed in the middle of sending: its pipes are also open
in this process, so they never end. Here each worker alone holds the sending end of its pipe, and the system closes that
end whichever way the worker ends.
"""

import atexit
import contextlib
import multiprocessing
import signal
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import grain

from audiosep_jax.errors import AudioSepError, DataError
from audiosep_jax.storage.memory import keep_freed_memory
from audiosep_jax.storage.system import end_with_parent

# The signals that ask the whole run to stop reach its workers, too. This process decides when they end.
_OF_THE_RUN = (signal.SIGINT, signal.SIGTERM)
_END_SECONDS = 5.0  # how long a killed process may take to end


class Workers(Iterator[Any]):
    """Yields the elements of pipelines in turn, each of which runs in a process of its own.

    Args:
        pipelines: one for each process; they must be picklable and endless.
    """

    def __init__(self, pipelines: Sequence[grain.IterDataset]):
        # A fork would copy locks that other threads of this process hold, and which would never be released.
        context = multiprocessing.get_context('spawn')
        self._processes: list[SpawnProcess] = []
        self._connections: list[Connection] = []
        self._turn = 0
        # Before multiprocessing's own clean-up, which asks workers to end and waits, in vain, for those that are busy.
        self._at_exit = _Close(self)
        atexit.register(self._at_exit)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_RUN)  # a process inherits what is blocked
        try:
            for pipeline in pipelines:
                receiving, sending = context.Pipe(duplex=False)
                self._connections.append(receiving)
                process = context.Process(target=_send_elements, args=(sending, pipeline), daemon=True)
                process.start()
                self._processes.append(process)
                sending.close()
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __next__(self) -> Any:
        """Returns the next element.

        Raises:
            DataError: the worker was killed, or its pipeline failed.
        """
        try:
            element, problem = self._connections[self._turn].recv()
        except (EOFError, OSError) as error:
            raise DataError(_what_happened(self._processes[self._turn])) from error
        if problem is not None:
            raise problem
        self._turn = (self._turn + 1) % len(self._connections)
        return element

    def close(self) -> None:
        """Ends the processes. A thread that waits in `next` then gets a DataError."""
        atexit.unregister(self._at_exit)
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_END_SECONDS)
        self._processes = []


class _Close:
    """Closes the workers when it is called, and does not keep them alive until then."""

    def __init__(self, workers: Workers):
        self._workers = weakref.ref(workers)

    def __call__(self) -> None:
        workers = self._workers()
        if workers is not None:
            workers.close()


def _send_elements(connection: Connection, pipeline: grain.IterDataset) -> None:
    end_with_parent()
    keep_freed_memory()
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more
        try:
            for element in pipeline:
                connection.send((element, None))
        except BrokenPipeError:
            raise
        except Exception as error:
            # As text, because not every exception survives pickling.
            problem = DataError(str(error)) if isinstance(error, AudioSepError) else RuntimeError(_described(error))
            connection.send((None, problem))


def _described(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'


def _what_happened(process: SpawnProcess) -> str:
    """Returns the message for a worker that has ended on its own."""
    process.join(_END_SECONDS)
    code = process.exitcode
    if code == -signal.SIGKILL:
        return (
            'a data worker was killed (signal 9), probably because memory ran out: use fewer --workers or a smaller '
            '--read-ahead'
        )
    if code is not None and code < 0:
        return f'a data worker died (signal {-code}): see the lines above, or use --workers 0'
    return f'a data worker ended (exit code {code}): see the lines above, or use --workers 0'
