"""What a run does with its workdir before it trains there: it takes the folder's lock, for all of its processes."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from audiosep_jax.errors import AudioSepError, CheckpointError
from audiosep_jax.parallel.hosts import gathered
from audiosep_jax.storage.run_lock import RunLock


@contextlib.contextmanager
def only_run_in(workdir: Path) -> Iterator[Callable[[], None]]:
    """Holds the lock of a workdir. Process 0 takes it on behalf of all processes, and all of them must call this.

    Args:
        workdir: the run's folder; it is made if it does not exist.

    Yields:
        A function to call before writing there. It raises CheckpointError once another run has taken the lock over.

    Raises:
        CheckpointError: another run holds the lock, or the workdir cannot be written.
    """
    lock = RunLock(workdir)
    try:
        problem = ''
        if jax.process_index() == 0:
            try:
                if note := lock.acquire():
                    print(note, file=sys.stderr, flush=True)
            except AudioSepError as error:  # not raised yet, because the other processes are waiting
                problem = str(error)
        problem = gathered(problem)[0]
        if problem:
            raise CheckpointError(problem)
        yield lock.check
    finally:
        lock.release()
