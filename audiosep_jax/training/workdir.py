"""What a run does with its workdir before it trains there: takes the folder's lock, and finds the step to resume.

Process 0 does it on behalf of all processes.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from audiosep_jax.checkpoints.steps import Newest, newest_whole_step, set_aside
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

    def acquire() -> None:
        if note := lock.acquire():
            print(note, file=sys.stderr, flush=True)

    try:
        _on_first_process(acquire, f'{workdir} cannot be locked')
        yield lock.check
    finally:
        lock.release()


def agree_on_newest_step(checkpoints: Path) -> Newest:
    """Returns the newest whole step, the same on all processes. All of them must call this.

    Args:
        checkpoints: the folder of the steps, which need not exist.

    Raises:
        CheckpointError: there are steps, but none of them is whole.
    """

    def find() -> tuple[int | None, list[tuple[int, str]]]:
        newest = newest_whole_step(checkpoints)
        return newest.step, [*newest.damaged.items()]  # keys of JSON are texts

    step, damaged = _on_first_process(find, f'{checkpoints} cannot be read')
    return Newest(step, dict(damaged))


def go_back_to(newest: Newest, checkpoints: Path) -> None:
    """Renames the damaged steps that are newer, and says so in one line each. All processes must call this.

    Otherwise the run, when it comes to that step again, could not save it.

    Args:
        newest: what `agree_on_newest_step` returned.
        checkpoints: the folder of the steps.

    Raises:
        CheckpointError: a step cannot be renamed.
    """
    if not newest.damaged:
        return

    def set_damaged_aside() -> None:
        for step, reason in newest.damaged.items():
            path = set_aside(checkpoints, step)
            print(f'going back to step {newest.step}, since {reason}; it is now {path.name}', file=sys.stderr)

    _on_first_process(set_damaged_aside, f'{checkpoints}: a damaged step cannot be renamed')


def _on_first_process(action: Callable[[], Any], failure: str) -> Any:
    """Runs an action on process 0, and returns its JSON-ready result on all processes, which must all call this.

    Args:
        action: what process 0 does.
        failure: what an error of the system means.

    Raises:
        CheckpointError: the action raises an error of this project or of the system.
    """
    result, problem = None, ''
    if jax.process_index() == 0:
        try:
            result = action()
        except AudioSepError as error:  # not raised yet, because the other processes are waiting
            problem = str(error)
        except OSError as error:
            problem = f'{failure}: {error.strerror or error}'
    result, problem = gathered([result, problem])[0]
    if problem:
        raise CheckpointError(problem)
    return result
