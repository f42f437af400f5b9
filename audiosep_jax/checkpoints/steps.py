"""The steps in a run's folder of checkpoints: which there are, which of them are whole, and how one goes away.

A step is the folder `STEP`. It appears under this name when it is complete, and loses the name before anything in it is
deleted, so no reader ever sees a part of one. In a bucket, where folders cannot be renamed, Orbax's file
`commit_success.txt` takes the place of the name.
"""

import contextlib
import dataclasses
import shutil
import uuid
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from audiosep_jax.checkpoints.orbax_errors import silence_abandoned_futures
from audiosep_jax.errors import CheckpointError, first_line
from audiosep_jax.storage.buckets import is_bucket
from audiosep_jax.storage.checksums import check_checksums

ARRAYS = ('params', 'batch_stats', 'ema', 'optimizer')
RECORDS = ('data', 'config')
_COMMITTED = 'commit_success.txt'
_DELETING = '.deleting-'


def complete_steps(directory: Path) -> list[int]:
    """Returns the steps that have a checkpoint in a folder, in ascending order; none if there is no such folder."""
    return [step for step in _step_folders(directory) if (directory / str(step) / 'config').is_dir()]


def _step_folders(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.name.isdecimal()]
    return sorted(int(name) for name in names if str(int(name)) == name and _is_committed(directory / name))


def _is_committed(folder: Path) -> bool:
    # Only where Orbax writes a step in its place does it look for this file.
    return folder.is_dir() and (not str(folder).startswith('gs://') or (folder / _COMMITTED).exists())


@dataclasses.dataclass(frozen=True)
class Newest:
    """The newest whole step, and the damaged ones that are newer.

    Attributes:
        step: the step; None if there is no step at all.
        damaged: the newer ones, and what is wrong with each, in one line; the newest first.
    """

    step: int | None
    damaged: dict[int, str]


def newest_whole_step(directory: Path) -> Newest:
    """Finds the newest step from which training can be resumed.

    It reads a step entirely, from its checksums or, if it has none, as Orbax reads it.

    Args:
        directory: the folder of the steps, which need not exist.

    Raises:
        CheckpointError: there are steps, but none of them is whole.
    """
    damaged: dict[int, str] = {}
    for step in reversed(_step_folders(directory)):
        if not (problem := _problem(directory / str(step))):
            return Newest(step, damaged)
        damaged[step] = problem
    if damaged:
        raise CheckpointError(
            f'{directory}: no checkpoint is whole ({next(iter(damaged.values()))}): move this folder away to start anew'
        )
    return Newest(None, {})


def _problem(folder: Path) -> str:
    """Returns why training cannot be resumed from a step, in one line; '' if it can."""
    missing = [name for name in ('params', 'batch_stats', 'optimizer', *RECORDS) if not (folder / name).is_dir()]
    if missing == ['optimizer', 'data']:
        return ''  # the weights of a converted checkpoint; what training says about that is clearer
    if missing:
        return f'{folder} cannot be read: damaged: {missing[0]} is missing'
    try:
        if not check_checksums(folder):
            _read(folder)
    except CheckpointError as error:
        return str(error)
    except Exception as error:  # for a damaged folder, Orbax and tensorstore raise a dozen kinds
        return f'{folder} cannot be read: damaged: {first_line(error, 300)}'
    return ''


def _read(folder: Path) -> None:
    """Reads everything and keeps nothing. The handlers are used alone, because other processes take no part in it."""
    silence_abandoned_futures()
    for name in RECORDS:
        ocp.JsonCheckpointHandler().restore(folder / name, args=ocp.args.JsonRestore())
    for name in ARRAYS:
        if (folder / name).is_dir():
            handler = ocp.PyTreeCheckpointHandler()
            on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(folder / name))
            handler.restore(folder / name, args=ocp.args.PyTreeRestore(restore_args=on_host))


def set_aside(directory: Path, step: int) -> Path:
    """Renames the folder of a damaged step, so that nobody takes it for one, and returns its new path.

    Raises:
        OSError: it cannot be renamed.
    """
    target = directory / f'{step}.damaged'
    if target.exists():
        target = directory / f'{step}.damaged-{uuid.uuid4().hex[:8]}'
    _hide(directory / str(step), target)
    return target


def delete_step(directory: Path, step: int) -> None:
    """Deletes the folder of a step, which no longer looks like one before the first of its files goes.

    Raises:
        OSError: it cannot be deleted.
    """
    folder = directory / str(step)
    if not folder.exists():
        return
    if is_bucket(folder):
        (folder / _COMMITTED).unlink(missing_ok=True)
        folder.rmtree()  # type: ignore[attr-defined]  # of epath
        return
    hidden = directory / f'{step}{_DELETING}{uuid.uuid4().hex[:8]}'
    _hide(folder, hidden)
    shutil.rmtree(hidden)


def delete_leftovers(directory: Path) -> None:
    """Deletes what `delete_step` left because the process was killed."""
    if is_bucket(directory) or not directory.is_dir():  # in a bucket, Orbax takes them for steps that are not complete
        return
    for path in directory.iterdir():
        if _DELETING in path.name:
            with contextlib.suppress(OSError):
                shutil.rmtree(path)


def _hide(folder: Path, target: Path) -> None:
    if is_bucket(folder):
        (folder / _COMMITTED).unlink(missing_ok=True)
    folder.rename(target)
