"""Runs tasks in worker processes: counted, interruptible, and never left behind."""

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
    """Calls `function(*task, tick)` for every task, in at most `jobs` processes (here, if one is enough).

    Args:
        function: a function of a module; calls `tick()` after every step of its work.
        report: called in this process with the number of steps done so far.

    Raises:
        what a task raises, once the tasks under way have ended; the rest are not begun.
        DataError: a worker was killed, as the system does when memory runs out.
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
    # Not fork: the caller may run threads (JAX does), and a forked copy of a held lock never opens.
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
    # Ctrl-C ends a worker at once and quietly: its temporary file is swept by the next build.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


def _tick() -> None:
    assert _counter is not None, '_begin_worker sets it'
    with _counter.get_lock():
        _counter.value += 1


def _call(function: Callable[..., None], task: tuple) -> None:
    function(*task, _tick)
