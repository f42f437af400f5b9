"""How processes find each other: from flags, and from what launchers leave in the environment."""

import importlib.util
import re

import jax
import pytest

from audiosep_jax.errors import CheckpointError, ConfigError
from audiosep_jax.parallel import launch
from audiosep_jax.parallel.launch import Detected, LaunchConfig, detect

SLURM = {
    'SLURM_JOB_ID': '4711',
    'SLURM_STEP_NODELIST': 'node[07-08]',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
    'SLURM_STEP_TASKS_PER_NODE': '1(x2)',
    'SLURM_GPUS_ON_NODE': '4',
}
OMPI = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:2'}


@pytest.fixture
def tpu(monkeypatch):
    """A machine with libtpu installed."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == 'libtpu' or None)


@pytest.mark.parametrize(
    'environment',
    [
        {},
        {'SLURM_JOB_ID': '4711', 'SLURM_NTASKS': '8'},  # an allocation, without srun
        {**SLURM, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'},
        {**SLURM, 'SLURM_NTASKS': '4', 'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'},  # the shell of salloc
        {**OMPI, 'OMPI_COMM_WORLD_SIZE': '1'},
        {'KUBERNETES_SERVICE_HOST': '10.0.0.1'},  # a pod that is no part of an indexed job
        {'TPU_WORKER_HOSTNAMES': 'a,b'},  # without libtpu
    ],
)
def test_one_process_needs_nothing(environment, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)  # the compiler for TPUs is a part of libtpu
    assert detect(LaunchConfig(), environment) is None


def test_flags_and_jax_s_variables():
    expected = {'coordinator_address': 'a:1', 'num_processes': 4, 'process_id': 3}
    expected['cluster_detection_method'] = 'deactivate'
    assert detect(LaunchConfig('a:1', 4, 3), {}) == Detected('flags', expected)
    variables = {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'}
    assert detect(LaunchConfig(), variables) == Detected('flags', expected)
    # With an address, the launcher may count the processes, which Open MPI 5 needs.
    ranks = {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '3'}
    assert detect(LaunchConfig('a:1'), ranks) == Detected('flags', expected)
    assert detect(LaunchConfig('a:1', 4, 3), SLURM).arguments['process_id'] == 3


def test_slurm_gives_a_task_that_is_alone_on_its_node_all_gpus():
    assert detect(LaunchConfig(), SLURM).arguments['local_device_ids'] == [0, 1, 2, 3]
    each_its_own = {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': '4(x2)', 'SLURM_NTASKS': '8'}
    assert detect(LaunchConfig(), each_its_own) == Detected('slurm', {'cluster_detection_method': 'slurm'})


def test_tasks_are_counted_by_the_step(monkeypatch):
    step = {**SLURM, 'SLURM_NTASKS': '8', 'SLURM_STEP_NUM_TASKS': '2'}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    place, devices = launch._meeting_place(detect(LaunchConfig(), step), 1)
    assert (place.count, place.index, devices) == (2, 1, [0, 1, 2, 3])
    assert place.address.startswith('node07:')
    assert detect(LaunchConfig('a:1'), step).arguments['num_processes'] == 2


@pytest.mark.parametrize('step', [{}, {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_STEP_NODELIST': 'a', 'SLURM_PROCID': '0'}])
def test_a_job_of_several_tasks_in_which_one_runs_is_noted(monkeypatch, capsys, step):
    for name, value in {'SLURM_JOB_ID': '4711', 'SLURM_NTASKS': '4', **step}.items():
        monkeypatch.setenv(name, value)
    assert launch.join(LaunchConfig()) is None
    said = capsys.readouterr().err
    assert re.fullmatch(r'note: the Slurm job has 4 tasks .* this program runs alone: start it with srun .*\n', said)
    assert launch.runs_alone() == bool(step)


def test_open_mpi_that_hides_its_address_is_told_so():
    assert detect(LaunchConfig(), OMPI).where == 'ompi'
    del (hidden := dict(OMPI))['OMPI_MCA_orte_hnp_uri']
    with pytest.raises(ConfigError, match='give --coordinator HOST:PORT'):
        detect(LaunchConfig(), hidden)


def test_tpus_and_kubernetes(tpu, monkeypatch):
    slice_of_tpus = {'TPU_WORKER_HOSTNAMES': 'a,b'}
    assert detect(LaunchConfig(), slice_of_tpus) == Detected('tpu', {})
    assert detect(LaunchConfig(), {**slice_of_tpus, 'JAX_PLATFORMS': 'cpu'}) is None
    job = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}
    assert detect(LaunchConfig(), job).where == 'k8s'
    assert detect(LaunchConfig(), {**job, **slice_of_tpus}).where == 'tpu'
    monkeypatch.setattr(launch.os.path, 'exists', lambda path: path == '/dev/accel0')
    assert detect(LaunchConfig(), {}).where == 'tpu'


@pytest.mark.parametrize(
    ('config', 'environment', 'says'),
    [
        (LaunchConfig('a:1'), {}, 'also needs --num-processes and --process-id'),
        (LaunchConfig(num_processes=2), {}, 'also need --coordinator'),
        (LaunchConfig('a:1', 2), {'JAX_PROCESS_ID': '2'}, 'process 2 is not one of 2'),
        (LaunchConfig(), {**SLURM, 'SLURM_NTASKS': 'two'}, "$SLURM_NTASKS is 'two', not a number"),
    ],
)
def test_halves_are_refused(config, environment, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        detect(config, environment)


@pytest.mark.parametrize(
    'settings',
    [
        {'coordinator': 'host'},
        {'num_processes': 0},
        {'process_id': 2, 'num_processes': 2},
        {'process_id': -1},
        {'heartbeat_seconds': 0},
        {'join_seconds': 0},
    ],
)
def test_values_out_of_range(settings):
    with pytest.raises(ConfigError):
        LaunchConfig(**settings)


LOST = jax.errors.JaxRuntimeError('UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:18048')
FULL = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')


@pytest.mark.parametrize(
    ('error', 'cause', 'message'),
    [
        (LOST, None, 'error: another process is gone'),
        (CheckpointError('step 4 could not be written'), LOST, 'error: another process is gone'),
        (CheckpointError('step 4 could not be written'), OSError('disk full'), 'error: step 4 could not be written'),
        (CheckpointError('step 4 could not be written'), FULL, 'error: step 4 could not be written'),
        (FULL, None, 'error: out of memory'),
    ],
)
def test_a_lost_process_is_the_reason_also_where_it_let_a_save_fail(monkeypatch, capsys, error, cause, message):
    codes = []
    monkeypatch.setattr(launch.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(launch.os, '_exit', codes.append)
    monkeypatch.setattr(launch.time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(launch, 'only_this_thread_ends', lambda: None)
    with launch.ending_together('train'):
        raise error from cause
    assert codes == [1]
    assert capsys.readouterr().err.startswith(f'train: process 0: {message}')
