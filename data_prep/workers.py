"""Runs tasks in worker processes, which report progress, can be interrupted and end with their parent."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent import futures
from multiprocessing.sharedctypes import Synchronized

from audiosep_jax.errors import DataError
from audiosep_jax.storage.system import end_with_parent

# In a worker: how many steps all workers have done together.
_counter: 'Synchronized[int] | None' = None


def run_in_processes(
    function: Callable[..., None], tasks: Sequence[tuple], jobs: int, report: Callable[[int], None]
) -> None:
    """Calls `function(*task, tick)` for every task, in at most `jobs` processes, or in this one if one is enough.

    Args:
        function: a module-level function that calls `tick()` after every step of its work.
        tasks: arguments of the calls.
        jobs: largest number of processes.
        report: called in this process with the number of steps done so far.

    Raises:
        Exception: the exception of a task that failed; running tasks finish first, and no others are started.
        DataError: a worker was killed, for example because memory ran out.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        steps = 0

        def tick() -> None:
            nonlocal steps
            steps += 1
            report(steps)

        for task in tasks:
            function(*task, tick)
        return
    # The caller may run threads (JAX does). A fork would copy locks that they hold, which would never be released.
    context = multiprocessing.get_context('spawn')
    counter = context.Value('q', 0)
    pool = futures.ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker, initargs=(counter,))
    try:
        pending = {pool.submit(_call, function, task) for task in tasks}
        while pending:
            done, pending = futures.wait(pending, timeout=0.2, return_when=futures.FIRST_EXCEPTION)
            report(counter.value)
            for future in done:
                future.result()
    except futures.process.BrokenProcessPool as error:
        raise DataError(
            'a worker process was killed (out of memory?): run the same command again with fewer --jobs'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker(counter: 'Synchronized[int]') -> None:
    global _counter
    _counter = counter
    # Ctrl-C ends a worker at once without a traceback; the next build removes its temporary file.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


def _tick() -> None:
    assert _counter is not None, '_begin_worker sets it'
    with _counter.get_lock():
        _counter.value += 1


def _call(function: Callable[..., None], task: tuple) -> None:
    function(*task, _tick)
