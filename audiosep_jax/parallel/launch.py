"""Starts a program on one process or many: how they find each other, and how all of them end when one dies.

A single process needs nothing. Under Slurm and Open MPI, on a TPU slice (GCE or GKE) and in an indexed Kubernetes job,
the processes find each other without flags; anywhere else, they need three flags or environment variables.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import jax
import tyro
from jax._src.clusters import ClusterEnv

from audiosep_jax.errors import AudioSepError, ConfigError, explained, first_line
from audiosep_jax.parallel.lost import lost_processes_end_this_one, only_this_thread_ends
from audiosep_jax.parallel.meeting import Place, meet

Where = Literal['flags', 'slurm', 'ompi', 'k8s', 'tpu']
# How many tasks there are: of this step, or else of the job.
_SLURM_COUNTS = ('SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS')
# How much later process 0 exits, which takes the others along: they may be about to report the same error.
_LAST_SECONDS = 1.0
_TPU_DEVICES = ('/dev/accel0', '/dev/vfio/0')


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """How the processes of a run find each other. On one machine and under a known launcher, no flag is needed.

    Attributes:
        coordinator: HOST:PORT of process 0, reachable by all (or $JAX_COORDINATOR_ADDRESS).
        num_processes: number of processes of the whole run (or $JAX_NUM_PROCESSES).
        process_id: this process's number, from 0 (or $JAX_PROCESS_ID).
        heartbeat_seconds: a process that is silent for this long counts as dead, and the run ends with an error.
        join_seconds: how long the processes wait for each other at the start before they end with an error.

    Raises:
        ConfigError: a value is out of range.
    """

    coordinator: Annotated[str, tyro.conf.arg(metavar='HOST:PORT')] = ''
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = 60
    join_seconds: int = 300

    def __post_init__(self) -> None:
        if self.coordinator and not re.fullmatch(r'.+:\d+', self.coordinator):
            raise ConfigError(f'--coordinator {self.coordinator!r} is not HOST:PORT')
        if self.num_processes is not None and self.num_processes < 1:
            raise ConfigError(f'--num-processes must be at least 1, got {self.num_processes}')
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or sys.maxsize):
            raise ConfigError(f'--process-id {self.process_id} is not one of {self.num_processes}, counted from 0')
        for name in ('heartbeat_seconds', 'join_seconds'):
            if getattr(self, name) < 1:
                raise ConfigError(f'--{name.replace("_", "-")} must be at least 1, got {getattr(self, name)}')


@dataclasses.dataclass(frozen=True)
class Detected:
    """What launched a run, and the arguments for `jax.distributed.initialize`."""

    where: Where
    arguments: dict[str, Any]


def detect(config: LaunchConfig, environment: Mapping[str, str] = os.environ) -> Detected | None:
    """Returns how to join the other processes, or None if there are none.

    Flags take precedence over JAX's variables, and these over the variables of Slurm, Open MPI, Kubernetes and TPUs.
    JAX reads the launchers' variables itself; this function is only for what it gets wrong:

    - Without a launcher it raises an exception, so a single process could not start.
    - It reads $JAX_COORDINATOR_ADDRESS, but neither $JAX_NUM_PROCESSES nor $JAX_PROCESS_ID.
    - Under Slurm it gives each task one GPU. A task that has a node to itself is meant to use all of the node's GPUs.
    - It counts the tasks of the Slurm job. Those of the step may be fewer: salloc's shell is a step of one task.
    - Open MPI 5 does not say where process 0 is, and then JAX ignores Open MPI.
    - In Kubernetes it takes every pod for one of an indexed job, and fails in the others.

    Args:
        config: the flags.
        environment: the environment variables.

    Raises:
        ConfigError: an address, number or index is missing, or a variable is not a number.
    """
    coordinator = config.coordinator or environment.get('JAX_COORDINATOR_ADDRESS', '')
    if coordinator:
        return _detect_with_address(coordinator, config, environment)
    counts = config.num_processes, config.process_id, _number(environment, 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
    if any(count is not None for count in counts):
        raise ConfigError('--num-processes and --process-id also need --coordinator HOST:PORT')
    in_slurm_step = {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= environment.keys()
    if in_slurm_step and (_number(environment, *_SLURM_COUNTS) or 1) > 1:
        gpus = _number(environment, 'SLURM_GPUS_ON_NODE')
        has_node = re.fullmatch(r'1(\(x\d+\))?', environment.get('SLURM_STEP_TASKS_PER_NODE', ''))
        devices = {'local_device_ids': list(range(gpus))} if has_node and gpus else {}
        return Detected('slurm', {'cluster_detection_method': 'slurm', **devices})
    if (_number(environment, 'OMPI_COMM_WORLD_SIZE') or 1) > 1:
        if 'OMPI_MCA_orte_hnp_uri' not in environment:
            raise ConfigError('this Open MPI does not say where process 0 is: give --coordinator HOST:PORT of it')
        return Detected('ompi', {'cluster_detection_method': 'ompi'})
    if _has_tpu(environment):
        return Detected('tpu', {})
    if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= environment.keys():
        return Detected('k8s', {})
    return None


def _detect_with_address(coordinator: str, config: LaunchConfig, environment: Mapping[str, str]) -> Detected:
    """Takes the number and index of processes from the flags, JAX's variables or the launcher's, in this order."""
    count, index = config.num_processes, config.process_id
    if count is None:
        count = _number(environment, 'JAX_NUM_PROCESSES', *_SLURM_COUNTS, 'OMPI_COMM_WORLD_SIZE')
    if index is None:
        launchers = 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK', 'JOB_COMPLETION_INDEX'
        index = _number(environment, 'JAX_PROCESS_ID', *launchers)
    if count is None or index is None:
        raise ConfigError('--coordinator also needs --num-processes and --process-id')
    if not 0 <= index < count:
        raise ConfigError(f'process {index} is not one of {count}, counted from 0')
    arguments = {'coordinator_address': coordinator, 'num_processes': count, 'process_id': index}
    return Detected('flags', {**arguments, 'cluster_detection_method': 'deactivate'})


def _number(environment: Mapping[str, str], *names: str) -> int | None:
    """Returns the value of the first of these variables that is set."""
    for name in names:
        if text := environment.get(name):
            try:
                return int(text)
            except ValueError as error:
                raise ConfigError(f'${name} is {text!r}, not a number') from error
    return None


def _has_tpu(environment: Mapping[str, str]) -> bool:
    platforms = environment.get('JAX_PLATFORMS', '')
    if platforms and 'tpu' not in platforms:
        return False
    has_variables = bool({'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'} & environment.keys())
    found = has_variables or any(map(os.path.exists, _TPU_DEVICES))
    return found and importlib.util.find_spec('libtpu') is not None


def join(config: LaunchConfig) -> Detected | None:
    """Joins the other processes of the run, if there are any. Call it before anything asks JAX for a device.

    Returns:
        How they were found; None for a single process.

    Raises:
        ConfigError: as `detect`, or the other processes cannot be reached.
    """
    detected = detect(config)
    if detected is None:
        _note_unused_tasks(os.environ)
        return None
    # JAX's preemption service would take SIGTERM, which must reach the training loop for it to save a checkpoint.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        place, devices = _meeting_place(detected, config.join_seconds)
        meet(place, config.join_seconds)
        with lost_processes_end_this_one(place.index):
            jax.distributed.initialize(
                place.address,
                place.count,
                place.index,
                devices,
                cluster_detection_method='deactivate',
                initialization_timeout=config.join_seconds,
                heartbeat_timeout_seconds=config.heartbeat_seconds,
                shutdown_timeout_seconds=config.heartbeat_seconds,
            )
    except ConfigError:
        raise
    except Exception as error:  # from gRPC, sockets, the Kubernetes client and others
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
        # How `lost` makes JAX report that it could not connect.
        reason = f'no connection in {config.join_seconds} s' if 'bad_cast' in str(error) else first_line(error)
        raise ConfigError(
            f'the other processes cannot be joined ({detected.where}): {reason}; '
            'see --coordinator, --num-processes, --process-id, or $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES, '
            '$JAX_PROCESS_ID'
        ) from error
    return detected


def _meeting_place(detected: Detected, seconds: int) -> tuple[Place, list[int] | None]:
    """Returns where the processes meet, and the devices of this one (None: all that it sees), as JAX finds them."""
    given = detected.arguments
    count = given.get('num_processes')
    if detected.where == 'slurm':
        count = _number(os.environ, *_SLURM_COUNTS)
    found = given.get('coordinator_address'), count, given.get('process_id'), given.get('local_device_ids')
    if detected.where != 'flags':
        method = given.get('cluster_detection_method')
        found = ClusterEnv.auto_detect_unset_distributed_params(*found, method, seconds)
    address, count, index, devices = found
    if address is None or count is None or index is None:
        raise ConfigError(f'JAX does not find the other processes ({detected.where}): give --coordinator HOST:PORT')
    return Place(address, count, index), devices


def runs_alone(environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether a launcher started this program as the only task of its step or job."""
    return 1 in (_number(environment, *_SLURM_COUNTS), _number(environment, 'OMPI_COMM_WORLD_SIZE'))


def _note_unused_tasks(environment: Mapping[str, str]) -> None:
    tasks = _number(environment, 'SLURM_NTASKS') or 1
    if tasks > 1:
        print(
            f'note: the Slurm job has {tasks} tasks ($SLURM_NTASKS), but this program runs alone: start it with srun '
            'to use all of them',
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def ending_together(program: str) -> Iterator[None]:
    """Makes sure that an exception in one of several processes ends the whole run. Only command lines use this.

    The failing process prints its message and exits at once with its exit code. An orderly exit would first wait for
    the other processes, which wait for this one. This way, they notice the broken connection or the missing heartbeat.

    A single process does nothing here; `errors.reported` handles its exceptions.

    Args:
        program: the name with which the message begins.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        message, code = _message_and_code(error)
        only_this_thread_ends()
        print(f'{program}: process {jax.process_index()}: {message}', file=sys.stderr, flush=True)
        sys.stdout.flush()
        if jax.process_index() == 0 and isinstance(error, AudioSepError):
            time.sleep(_LAST_SECONDS)
        os._exit(code)


def _message_and_code(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted', 130
    if isinstance(error, SystemExit):
        return 'stopped', error.code if isinstance(error.code, int) else 1
    explanation = explained(error) if isinstance(error, Exception) else None
    # Without the other process a checkpoint cannot be written either, and this is why.
    cause = error.__cause__ if explanation else error
    if isinstance(cause, jax.errors.JaxRuntimeError) and _LOST_PROCESS.search(str(cause)):
        return f'error: another process is gone, see what it said; every checkpoint is whole ({first_line(cause)})', 1
    if explanation:
        return f'error: {explanation[0]}', explanation[1]
    return ''.join(traceback.format_exception(error)), 1


# Words in the errors of gloo, NCCL, TPU runtimes and the coordination service about a process that is gone.
_LOST_PROCESS = re.compile(
    r'gloo|nccl|connection|peer|unavailable|coordination|heartbeat|timed? ?out|deadline', re.IGNORECASE
)
