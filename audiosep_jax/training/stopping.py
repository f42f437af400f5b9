"""How a run stops before its last step: because a signal asks for it, or because there are no more data."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from jax import Array
from jax.sharding import Mesh

from audiosep_jax.data.batches import Batches
from audiosep_jax.errors import DataError
from audiosep_jax.parallel.hosts import Votes, wait_for_all
from audiosep_jax.parallel.mesh import put_batch


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether SIGTERM or Ctrl-C asked the run to stop.

    The run then ends after the current step, with a checkpoint. A second signal ends it at once.
    """
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)
        print('stopping after this step, with a checkpoint; once more to stop at once', file=sys.stderr, flush=True)

    try:
        previous = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # outside the main thread, signals are the caller's business
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


def may_begin(batches: Batches, votes: Votes, stop_requested: Callable[[], bool]) -> bool:
    """Waits for the first batches, and for all processes. Returns whether they may take the first step."""
    batches.wait(votes.batches_needed, stop_requested)
    return not votes.to_begin(stop_requested(), batches.failure)


def next_batch(
    batches: Batches, votes: Votes, stop_requested: Callable[[], bool], mesh: Mesh
) -> dict[str, Array] | None:
    """Returns the next batch on the devices; None if a single process has to stop for want of one.

    Several processes have stopped together before that happens, see `Votes`.
    """
    batches.wait(votes.batches_needed, stop_requested)
    return put_batch(next(batches), mesh) if batches.ready else None


def data_failure(batches: Batches, votes: Votes, step: int) -> DataError | None:
    """Returns the error of a run that stops after `step` because a process's data have failed; None if none have."""
    if not (batches.failure or votes.failed):
        return None
    reason = batches.failure or 'the data of another process failed, see what it said'
    return DataError(f'{reason}; the same command continues after step {step}')


def end_together(stopping: bool, failure: DataError | None) -> None:
    """Raises the failure of this process, if any, once all processes have written the last checkpoint.

    Args:
        stopping: whether the run stops before its last step; the same on all processes.
        failure: from `data_failure`.
    """
    if stopping:
        wait_for_all('saved')  # the first to exit takes the others along
    if failure and stopping:
        raise failure
