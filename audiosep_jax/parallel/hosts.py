"""Agreement among the processes of a run: when to stop, with which settings they run, and where they write."""

import collections
import functools
import hashlib
import itertools
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from audiosep_jax.errors import CheckpointError, ConfigError, first_line
from audiosep_jax.parallel.mesh import batch_sharded, replicated

# A sum of votes is read this many steps later, when the devices have long computed it, so the loop never waits for it.
_LAG = 2
_TIMEOUT_MS = 24 * 3600 * 1000
_barriers = itertools.count()


def wait_for_all(name: str) -> None:
    """Waits, through the coordination service, until all processes have called this. It fails if one of them dies.

    Call it before a collective computation that some processes may reach minutes after others, because they copied
    data, compiled or validated: the collectives of CPUs time out after 30 seconds.

    Args:
        name: what the processes wait for, in error messages.
    """
    if jax.process_count() > 1:
        key = f'audiosep-{name}-{next(_barriers)}'  # a barrier cannot be used twice
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=_TIMEOUT_MS)


class Votes:
    """Makes all processes leave the training loop after the same step, whichever of them has to stop.

    Each process casts a vote in each step. The all-reduce is asynchronous and its result is read `_LAG` steps later. A
    single process stops at once. A process whose data have failed must still take the steps until all know it, so it
    votes while it has batches for them: see `batches_needed`.

    JAX's own `multihost_utils.reached_preemption_sync_point` cannot replace this. It needs the preemption service,
    which knows only SIGTERM, and not Ctrl-C. The service also replaces a signal handler that was installed before it,
    and notices no signal if a handler is installed afterwards, so a second signal could not end the run at once.

    Args:
        mesh: the devices of all processes.

    Attributes:
        corrupt_records: how many corrupt records all processes had met `_LAG` steps ago.
        failed: whether it is because of some process's data that all stop.
        batches_needed: how many batches a process must have before it takes a step. If one of them cannot be read, it
            votes to stop, and all processes take their last step with the batch before that one.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = batch_sharded(mesh)
        self._rows = len(mesh.local_devices)
        self._sum = jax.jit(lambda votes: votes.sum(0), out_shardings=replicated(mesh))
        self._cast: collections.deque[jax.Array] = collections.deque()
        self.corrupt_records = 0
        self.failed = False
        # The vote of step s stops the loop after step s + _LAG, and what fails after that is known in step s + 1.
        self.batches_needed = 1 if jax.process_count() == 1 else _LAG + 2

    def to_begin(self, stop: bool, failure: Exception | None) -> bool:
        """Waits until all processes are about to take the first step, and returns whether none may take it.

        Args:
            stop: whether this process was asked to stop.
            failure: what is wrong with its first `batches_needed` batches.
        """
        wait_for_all('compiled')
        stops, failures = (sum(counts) for counts in zip(*gathered([stop, failure is not None]), strict=True))
        if jax.process_count() == 1:
            failures = 0  # it may take the steps before the one that failed
        self.failed = failures > 0 and stops == 0
        return stops + failures > 0

    def cast(self, stop: bool, corrupt_records: int, failure: Exception | None = None) -> bool:
        """Casts this process's vote of a step.

        Args:
            stop: whether this process was asked to stop.
            corrupt_records: how many corrupt records it has met; `self.corrupt_records` becomes the sum.
            failure: why it has no further batches than those that it has read.

        Returns:
            Whether to stop after this step, because a process had to `_LAG` steps ago.
        """
        if jax.process_count() == 1:
            self.corrupt_records = corrupt_records
            return stop
        votes = np.zeros((self._rows, 3), np.int32)
        votes[0] = stop, corrupt_records, failure is not None
        self._cast.append(self._sum(jax.make_array_from_process_local_data(self._sharding, votes)))
        if len(self._cast) <= _LAG:
            return False
        stops, self.corrupt_records, failures = map(int, jax.device_get(self._cast.popleft()))
        self.failed = failures > 0 and stops == 0
        return stops + failures > 0


def check_same(record: dict[str, Any]) -> None:
    """Raises ConfigError on every process unless all were given the same configuration."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()[:4]
    found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint32))[:, 0]
    different = [process for process, value in enumerate(found.tolist()) if value != found[0]]
    if different:
        raise ConfigError(
            f'process {", ".join(map(str, different))} was started with other settings, data or versions than process '
            '0: give all of them the same command'
        )


def check_shared(workdir: Path) -> None:
    """Raises CheckpointError on every process unless all of them see the same folder, which checkpoints need.

    The folder is made if it does not exist.
    """
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    marker = workdir / f'.shared-{token:08x}'
    problem = ''
    if jax.process_index() == 0:
        problem = _attempt(functools.partial(workdir.mkdir, parents=True, exist_ok=True))
        problem = problem or _attempt(lambda: marker.write_text(''))
    multihost_utils.sync_global_devices('marked')
    seen = not problem and marker.exists()
    every = multihost_utils.process_allgather(np.array(seen, np.int32))
    if jax.process_index() == 0:
        _attempt(marker.unlink)
    if problem:
        raise CheckpointError(f'cannot write to {workdir}: {problem}')
    if not every.all():
        others = ', '.join(map(str, np.flatnonzero(every == 0)))
        raise CheckpointError(
            f'{workdir}: process {others} does not see what process 0 writes there: --workdir must be on a file system '
            'that all hosts share, or in a bucket'
        )


def _attempt(action: Callable[[], Any]) -> str:
    """Returns what went wrong, or ''. It is not raised, because the other processes are waiting for this one."""
    try:
        action()
    except Exception as error:
        return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return ''


def gathered(value: Any) -> list[Any]:
    """Returns the JSON-ready values of all processes, in the processes' order. All processes must call this."""
    if jax.process_count() == 1:
        return [value]
    wait_for_all('gathered')
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    allgather = multihost_utils.process_allgather
    lengths = np.asarray(allgather(np.array([len(data)], np.int32))).reshape(-1)
    # All arrays must have one size, so shorter texts are padded with zeros.
    rows = np.asarray(allgather(np.pad(data, (0, int(lengths.max()) - len(data))))).reshape(len(lengths), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
