"""What the processes of a run have to agree on: when to stop, what they are doing, and where they write it."""

import collections
import hashlib
import itertools
import json
import secrets
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from audiosep_jax.errors import CheckpointError, ConfigError, first_line
from audiosep_jax.parallel.mesh import batch_sharded, replicated

# A vote is looked at when the devices have long counted it: the loop never waits for them.
_LAG = 2
_PATIENCE_MS = 24 * 3600 * 1000
_moments = itertools.count()


def wait_for_all(moment: str) -> None:
    """Until all processes are there, through the coordination service.

    To be called before processes meet in a computation that some may reach minutes after others (they copied data,
    compiled, validated): the collectives of a CPU give up after 30 seconds. A process that died meanwhile is noticed.
    """
    if jax.process_count() > 1:
        key = f'audiosep-{moment}-{next(_moments)}'  # a name is good for one meeting
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=_PATIENCE_MS)


class Votes:
    """Lets all processes leave the loop after the same step, whichever of them was asked to.

    Each casts a vote per step; the sum travels with the devices' other work. Alone, a process has its own way at once.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = batch_sharded(mesh)
        self._rows = len(mesh.local_devices)
        # Compiled now: a start that continues a run has it in the cache, and no step waits for it.
        self._sum = jax.jit(lambda votes: votes.sum(0), out_shardings=replicated(mesh))
        self._cast: collections.deque[jax.Array] = collections.deque()
        self.corrupt_records = 0  # of all processes, as far as counted

    def cast(self, stop: bool, corrupt_records: int) -> bool:
        """Whether to stop now: somebody wanted to, a few steps ago."""
        if jax.process_count() == 1:
            self.corrupt_records = corrupt_records
            return stop
        votes = np.zeros((self._rows, 2), np.int32)
        votes[0] = stop, corrupt_records
        self._cast.append(self._sum(jax.make_array_from_process_local_data(self._sharding, votes)))
        if len(self._cast) <= _LAG:
            return False
        stops, self.corrupt_records = map(int, jax.device_get(self._cast.popleft()))
        return stops > 0


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


def check_shared(workdir: Any) -> None:
    """Raises CheckpointError on every process unless all of them see the same folder: checkpoints need it.

    The folder is made if it is not there.
    """
    if jax.process_count() == 1:
        return
    token = int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32))))
    mark = workdir / f'.shared-{token:08x}'
    problem = ''
    if jax.process_index() == 0:
        problem = _attempt(lambda: (workdir.mkdir(parents=True, exist_ok=True), mark.write_text('')))
    multihost_utils.sync_global_devices('marked')
    seen = not problem and mark.exists()
    every = multihost_utils.process_allgather(np.array(seen, np.int32))
    if jax.process_index() == 0:
        _attempt(mark.unlink)
    if problem:
        raise CheckpointError(f'cannot write to {workdir}: {problem}')
    if not every.all():
        blind = ', '.join(map(str, np.flatnonzero(every == 0)))
        raise CheckpointError(
            f'{workdir}: process {blind} does not see what process 0 writes there: --workdir must be on a file system '
            'that all hosts share, or in a bucket'
        )


def _attempt(action: Callable[[], Any]) -> str:
    """What went wrong, '' if nothing: the others wait, so that it must not be raised yet."""
    try:
        action()
    except Exception as error:
        return (error.strerror if isinstance(error, OSError) else None) or first_line(error)
    return ''


def gathered(value: Any) -> list[Any]:
    """The JSON-ready values of all processes, in their order, on every process. All of them must call it."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    wait_for_all('gathered')

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(process_allgather(np.array([len(data)], np.int32))).reshape(-1)
    # Arrays of one size: shorter texts have zeros behind.
    rows = np.asarray(process_allgather(np.pad(data, (0, int(lengths.max()) - len(data))))).reshape(len(lengths), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
