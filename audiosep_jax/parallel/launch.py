"""Starting a program on one process or on many: who the others are, and how all of them end when one of them dies.

One process needs nothing. Under Slurm, Open MPI, on a TPU slice (GCE or GKE) and in an indexed Kubernetes job the
processes find each other by themselves; anywhere else three flags, or three variables of the environment, say it.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import jax
import tyro

from audiosep_jax.errors import ConfigError, explained, first_line

Where = Literal['flags', 'slurm', 'ompi', 'k8s', 'tpu']
_TPU_DEVICES = ('/dev/accel0', '/dev/vfio/0')


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """How the processes of a run find each other. On one machine, and wherever this is detected, give nothing.

    Attributes:
        coordinator: HOST:PORT of process 0, reachable by all (or $JAX_COORDINATOR_ADDRESS).
        num_processes: of the whole run (or $JAX_NUM_PROCESSES).
        process_id: this one's number, from 0 (or $JAX_PROCESS_ID).
        heartbeat_seconds: a process that is silent for so long is dead, and the run ends with an error.

    Raises:
        ConfigError: values out of range.
    """

    coordinator: Annotated[str, tyro.conf.arg(metavar='HOST:PORT')] = ''
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat_seconds: int = 60

    def __post_init__(self):
        if self.coordinator and not re.fullmatch(r'.+:\d+', self.coordinator):
            raise ConfigError(f'--coordinator {self.coordinator!r} is not HOST:PORT')
        if self.num_processes is not None and self.num_processes < 1:
            raise ConfigError(f'--num-processes must be at least 1, got {self.num_processes}')
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or sys.maxsize):
            raise ConfigError(f'--process-id {self.process_id} is not one of {self.num_processes}, counted from 0')
        if self.heartbeat_seconds < 1:
            raise ConfigError(f'--heartbeat-seconds must be at least 1, got {self.heartbeat_seconds}')


@dataclasses.dataclass(frozen=True)
class Detected:
    """Where a run was found to be launched, and what `jax.distributed.initialize` is to be told of it."""

    where: Where
    arguments: dict[str, Any]


def detect(config: LaunchConfig, environment: Mapping[str, str] = os.environ) -> Detected | None:
    """How to join the other processes; None: there are none.

    Flags come first, then the variables of JAX, then what Slurm, Open MPI, Kubernetes and TPUs leave in the
    environment. A job of one task is one process.

    Raises:
        ConfigError: half of what is needed, or a number that is none.
    """
    coordinator = config.coordinator or environment.get('JAX_COORDINATOR_ADDRESS', '')
    count = _first(config.num_processes, environment, 'JAX_NUM_PROCESSES')
    index = _first(config.process_id, environment, 'JAX_PROCESS_ID')
    in_slurm = {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= environment.keys()
    if coordinator:
        # With the address given, the launcher's own variables may count the processes.
        for total, own in (('SLURM_NTASKS', 'SLURM_PROCID'), ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK')):
            count, index = _first(count, environment, total), _first(index, environment, own)
        index = _first(index, environment, 'JOB_COMPLETION_INDEX')
        if count is None or index is None:
            raise ConfigError('--coordinator also needs --num-processes and --process-id')
        if not 0 <= index < count:
            raise ConfigError(f'process {index} is not one of {count}, counted from 0')
        arguments = {'coordinator_address': coordinator, 'num_processes': count, 'process_id': index}
        return Detected('flags', {**arguments, 'cluster_detection_method': 'deactivate'})
    if count is not None or index is not None:
        raise ConfigError('--num-processes and --process-id also need --coordinator HOST:PORT')
    if in_slurm and (_first(None, environment, 'SLURM_NTASKS') or 1) > 1:
        # JAX gives each task one device. A task that has its node to itself is meant to use all of them.
        devices = _first(None, environment, 'SLURM_GPUS_ON_NODE')
        alone = re.fullmatch(r'1(\(x\d+\))?', environment.get('SLURM_STEP_TASKS_PER_NODE', ''))
        local = {'local_device_ids': list(range(devices))} if alone and devices else {}
        return Detected('slurm', {'cluster_detection_method': 'slurm', **local})
    if (_first(None, environment, 'OMPI_COMM_WORLD_SIZE') or 1) > 1:
        if 'OMPI_MCA_orte_hnp_uri' not in environment:
            raise ConfigError('this Open MPI does not say where process 0 is: give --coordinator HOST:PORT of it')
        return Detected('ompi', {'cluster_detection_method': 'ompi'})
    if 'KUBERNETES_SERVICE_HOST' in environment and 'JOB_COMPLETION_INDEX' in environment and not _has_tpu(environment):
        return Detected('k8s', {})
    if _has_tpu(environment):
        return Detected('tpu', {})
    return None


def _first(value: int | None, environment: Mapping[str, str], name: str) -> int | None:
    if value is not None or not environment.get(name):
        return value
    try:
        return int(environment[name])
    except ValueError as error:
        raise ConfigError(f'${name} is {environment[name]!r}, not a number') from error


def _has_tpu(environment: Mapping[str, str]) -> bool:
    platforms = environment.get('JAX_PLATFORMS', '')
    if platforms and 'tpu' not in platforms:
        return False
    named = {'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'} & environment.keys()
    found = named or any(map(os.path.exists, _TPU_DEVICES))
    return bool(found) and importlib.util.find_spec('libtpu') is not None


def join(config: LaunchConfig) -> Detected | None:
    """Joins the other processes of the run, if there are any. Before anything asks JAX for a device.

    Raises:
        ConfigError: as `detect`, or the others cannot be found.
    """
    detected = detect(config)
    if detected is None:
        return None
    # SIGTERM is ours: the service would take it, and knows nothing of checkpoints.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(
            **detected.arguments,
            heartbeat_timeout_seconds=config.heartbeat_seconds,
            shutdown_timeout_seconds=config.heartbeat_seconds,
        )
    except Exception as error:  # gRPC's, sockets', the Kubernetes client's …
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
        raise ConfigError(
            f'the other processes cannot be joined ({detected.where}): {first_line(error)}; '
            'see --coordinator, --num-processes, --process-id'
        ) from error
    return detected


@contextlib.contextmanager
def ending_together(program: str) -> Iterator[None]:
    """For the shell alone: `errors.reported` for one of several processes. What ends this process ends the run.

    Whoever fails leaves at once, with its message and exit code. An orderly exit would first wait for the others, which
    wait for this one; so they learn it from the broken connection, or from the missing heartbeat.
    """
    if jax.process_count() == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        message, code = _last_words(error)
        print(f'{program}: process {jax.process_index()}: {message}', file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


def _last_words(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return 'interrupted', 130
    if isinstance(error, SystemExit):
        return 'stopped', error.code if isinstance(error.code, int) else 1
    if isinstance(error, Exception) and (explanation := explained(error)):
        return f'error: {explanation[0]}', explanation[1]
    if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
        return f'error: another process is gone, see what it said; every checkpoint is whole ({first_line(error)})', 1
    return ''.join(traceback.format_exception(error)), 1


# What gloo, NCCL, TPU runtimes and the coordination service say of a peer that went away.
_LOST = re.compile(r'gloo|nccl|connection|peer|unavailable|coordination|heartbeat|timed? ?out|deadline', re.IGNORECASE)
