"""The files to launch a run with: each is what its own tool reads, and gives the program flags and devices that fit."""

import configparser
import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import pytest
import tyro
import yaml
from support.paths import ROOT

from audiosep_jax.parallel.launch import LaunchConfig, detect
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.experiment import Flags

LAUNCH = ROOT / 'launch'
JOBSETS = [LAUNCH / 'gke-jobset.yaml', LAUNCH / 'gke-jobset-gpu.yaml']
# Long options of sbatch, from its manual; those that batch files of training jobs use.
SBATCH_OPTIONS = {
    *('account', 'chdir', 'constraint', 'cpus-per-gpu', 'cpus-per-task', 'error', 'exclude', 'exclusive', 'gpus'),
    *('gpus-per-node', 'gpus-per-task', 'gres', 'job-name', 'mail-type', 'mail-user', 'mem', 'mem-per-cpu'),
    *('mem-per-gpu', 'no-requeue', 'nodelist', 'nodes', 'ntasks', 'ntasks-per-node', 'open-mode', 'output'),
    *('partition', 'qos', 'requeue', 'reservation', 'signal', 'time', 'time-min'),
}
DOCKER_INSTRUCTIONS = {'ARG', 'CMD', 'COPY', 'ENTRYPOINT', 'ENV', 'FROM', 'LABEL', 'RUN', 'USER', 'VOLUME', 'WORKDIR'}


def extras() -> set[str]:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / 'setup.cfg')
    return {*settings['options.extras_require']}


def config_of(words: list[str]) -> TrainConfig:
    """The configuration of `python experiments/X.py FLAGS`. SystemExit if it has no such flags."""
    assert words[0] == 'python', words
    default = runpy.run_path(str(ROOT / words[1]))['get_config']
    return tyro.cli(Flags, default=Flags(default()), args=words[2:]).config


def assert_batch_divides(config: TrainConfig, devices: int) -> None:
    assert config.batch_size % (devices * math.lcm(config.mixing.mix_group, config.accumulate)) == 0


def assert_variables_are_read(environment: dict[str, str]) -> None:
    """Every variable of JAX and XLA that a file sets is one that JAX or this project reads."""
    place = {'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'}
    for name in environment.keys() - place - {'XLA_CLIENT_MEM_FRACTION', 'XLA_FLAGS'}:
        if name.startswith(('JAX_', 'XLA_')):
            assert hasattr(jax.config, name.lower()), name


def fake_programs(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these programs only note how they are called, and end with $FAKE_EXIT_CODE."""
    (folder / 'bin').mkdir()
    for name in names:
        program = folder / 'bin' / name
        program.write_text(
            '#!/usr/bin/env bash\n'
            f'printf "%s\\n" "$@" > {folder}/{name}.arguments\n'
            f'env -0 > {folder}/{name}.environment\n'
            'exit "${FAKE_EXIT_CODE:-0}"\n'
        )
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XLA_', 'SLURM_'))}
    return {**kept, 'PATH': f'{folder / "bin"}:{os.environ["PATH"]}'}


def call_of(folder: Path, name: str) -> tuple[list[str], dict[str, str]]:
    """How a fake program was called: its arguments and its environment."""
    environment = (folder / f'{name}.environment').read_text().split('\0')
    return (
        (folder / f'{name}.arguments').read_text().splitlines(),
        dict(line.split('=', 1) for line in environment if line),
    )


def with_venv(folder: Path) -> None:
    (folder / '.venv' / 'bin').mkdir(parents=True)
    (folder / '.venv' / 'bin' / 'activate').write_text('export IN_VENV=1\n')


def assert_good_bash(text: str) -> None:
    subprocess.run(['bash', '-n', '-c', text], check=True)
    if shutil.which('shellcheck'):
        command = ['shellcheck', '--severity', 'warning', '--shell', 'bash', '-']
        subprocess.run(command, input=text, text=True, check=True)


# ---- Slurm ----


def sbatch_options() -> dict[str, str]:
    options = {}
    for line in (LAUNCH / 'slurm.sbatch').read_text('utf-8').splitlines():
        if line.startswith('#SBATCH'):
            name, _, value = line.removeprefix('#SBATCH --').partition('=')
            options[name] = value
        elif line and not line.startswith('#'):
            break  # sbatch stops reading options at the first command
    return options


def run_slurm(folder: Path, code: int = 0, **variables: str) -> int:
    with_venv(folder)
    environment = fake_programs(folder, 'srun')
    scontrol = folder / 'bin' / 'scontrol'
    scontrol.write_text(f'#!/usr/bin/env bash\necho "$@" > {folder}/scontrol\n')
    scontrol.chmod(0o755)
    slurm = {'SLURM_JOB_ID': '17', 'SLURM_CPUS_PER_TASK': '32', 'FAKE_EXIT_CODE': str(code)}
    command = ['bash', str(LAUNCH / 'slurm.sbatch')]
    return subprocess.run(command, cwd=folder, env={**environment, **slurm, **variables}, check=False).returncode


def test_the_options_of_slurm():
    text = (LAUNCH / 'slurm.sbatch').read_text('utf-8')
    assert_good_bash(text)
    options = sbatch_options()
    assert len(options) == text.count('\n#SBATCH ')
    assert options.keys() <= SBATCH_OPTIONS
    assert re.fullmatch(r'TERM@\d+', options['signal']), 'without B:, the program gets the signal, not the script'
    assert 'requeue' in options
    assert options['ntasks-per-node'] == '1'


def test_slurm_runs_the_program_on_all_gpus(tmp_path):
    assert run_slurm(tmp_path) == 0
    arguments, environment = call_of(tmp_path, 'srun')
    start = arguments.index('python')
    assert all(argument.startswith('--') for argument in arguments[:start])
    options = sbatch_options()
    assert_batch_divides(config_of(arguments[start:]), int(options['nodes']) * int(options['gpus-per-node']))
    assert environment['IN_VENV'] == '1'
    assert environment['SRUN_CPUS_PER_TASK'] == '32'
    assert environment['JAX_COMPILATION_CACHE_DIR']
    assert_variables_are_read(environment)
    assert not (tmp_path / 'scontrol').exists()


def test_slurm_runs_a_container_instead(tmp_path):
    assert run_slurm(tmp_path, IMAGE='/shared/image.sif') == 0
    arguments, environment = call_of(tmp_path, 'srun')
    start = arguments.index('python')
    assert arguments[start - 1] == '/shared/image.sif'
    assert 'apptainer' in arguments[:start]
    workdir = re.search(r'^WORKDIR (.+)$', (LAUNCH / 'Dockerfile').read_text('utf-8'), re.M)[1]
    assert arguments[arguments.index('--pwd') + 1] == workdir
    config_of(arguments[start:])
    assert 'IN_VENV' not in environment


@pytest.mark.parametrize(('code', 'requeued'), [(130, True), (1, False), (2, False)])
def test_slurm_puts_a_job_back_that_saved_a_checkpoint(tmp_path, code, requeued):
    assert run_slurm(tmp_path, code) == code
    assert (tmp_path / 'scontrol').exists() == requeued
    if requeued:
        assert (tmp_path / 'scontrol').read_text() == 'requeue 17\n'


# ---- JobSets ----


def check(value: Any, shape: Any, place: str = '') -> None:
    """Asserts that a parsed file has a shape, and no keys that it does not name.

    A shape is a type, a set of values, a list of one shape for all items, or a dictionary of shapes: `{'key?': …}` may
    be missing, and `{str: …}` is for any key.
    """
    if isinstance(shape, type):
        assert type(value) is shape, f'{place}: {value!r}'
    elif isinstance(shape, set):
        assert value in shape, f'{place}: {value!r}'
    elif isinstance(shape, list):
        assert isinstance(value, list), place
        for index, item in enumerate(value):
            check(item, shape[0], f'{place}[{index}]')
    else:
        assert isinstance(value, dict), place
        if str in shape:
            shape = dict.fromkeys(value, shape[str])
        required = {key for key in shape if not key.endswith('?')}
        known = {key.removesuffix('?'): one for key, one in shape.items()}
        assert required <= value.keys() <= known.keys(), f'{place}: {sorted(value)}'
        for key, item in value.items():
            check(item, known[key], f'{place}.{key}')


CONTAINER = {
    'name': str,
    'image': str,
    'command': [str],
    'env': [{'name': str, 'value': str}],
    'resources': {'limits': {str: int}},
    'volumeMounts': [{'name': str, 'mountPath': str}],
}
POD = {
    'restartPolicy': {'Never'},  # which podFailurePolicy requires
    'terminationGracePeriodSeconds': int,
    'serviceAccountName': str,
    'nodeSelector': {str: str},
    'containers': [CONTAINER],
    'volumes': [{'name': str, 'emptyDir': {'medium?': {'Memory'}}}],
}
FAILED_POD = {
    'action': {'FailJob'},
    'onPodConditions?': [{'type': {'DisruptionTarget'}, 'status': {'True'}}],
    'onExitCodes?': {'containerName': str, 'operator': {'In'}, 'values': [int]},
}
JOB = {
    'parallelism': int,
    'completions': int,
    'completionMode': {'Indexed'},
    'backoffLimit': int,
    'podFailurePolicy': {'rules': [FAILED_POD]},
    'template': {'spec': POD},
}
# The part that is used of the API jobset.x-k8s.io/v1alpha2 and of Kubernetes' own batch/v1.
JOBSET = {
    'apiVersion': {'jobset.x-k8s.io/v1alpha2'},
    'kind': {'JobSet'},
    'metadata': {'name': str, 'annotations?': {str: str}},
    'spec': {
        'failurePolicy': {
            'maxRestarts': int,
            'rules': [
                {
                    'name': str,
                    'action': {'RestartJobSetAndIgnoreMaxRestarts'},
                    'onJobFailureReasons': [{'PodFailurePolicy'}],
                }
            ],
        },
        'replicatedJobs': [{'name': str, 'replicas': int, 'template': {'spec': JOB}}],
    },
}


def jobset(path: Path) -> tuple[dict, dict, dict]:
    """A JobSet's file: all of it, its only job's specification, and its only container."""
    file = yaml.safe_load(path.read_text('utf-8'))
    (replicated,) = file['spec']['replicatedJobs']
    job = replicated['template']['spec']
    (container,) = job['template']['spec']['containers']
    return file, job, container


@pytest.mark.parametrize('path', JOBSETS, ids=lambda path: path.stem)
def test_a_jobset(path):
    file, job, container = jobset(path)
    check(file, JOBSET)
    assert job['parallelism'] == job['completions']
    assert job['backoffLimit'] == 0, 'JobSet starts all pods again, never one of them'
    pod = job['template']['spec']
    assert {mount['name'] for mount in container['volumeMounts']} == {volume['name'] for volume in pod['volumes']}
    exits = [rule['onExitCodes'] for rule in job['podFailurePolicy']['rules'] if 'onExitCodes' in rule]
    assert exits == [{'containerName': container['name'], 'operator': 'In', 'values': [130]}]
    config = config_of(container['command'])
    ((_, devices),) = container['resources']['limits'].items()
    assert_batch_divides(config, job['parallelism'] * devices)
    assert config.input.stage_dir in [mount['mountPath'] for mount in container['volumeMounts']]
    assert_variables_are_read({variable['name']: variable['value'] for variable in container['env']})


def test_the_shape_of_a_jobset_knows_what_is_wrong():
    file, job, _ = jobset(JOBSETS[0])
    job['backofLimit'] = job.pop('backoffLimit')
    with pytest.raises(AssertionError, match='backofLimit'):
        check(file, JOBSET)


def test_the_chips_of_the_slice():
    _, job, container = jobset(LAUNCH / 'gke-jobset.yaml')
    topology = job['template']['spec']['nodeSelector']['cloud.google.com/gke-tpu-topology']
    chips = math.prod(map(int, topology.split('x')))
    assert chips == job['parallelism'] * container['resources']['limits']['google.com/tpu']


def test_the_pods_with_gpus_find_each_other():
    file, job, container = jobset(LAUNCH / 'gke-jobset-gpu.yaml')
    environment = {variable['name']: variable['value'] for variable in container['env']}
    found = detect(LaunchConfig(), {**environment, 'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'})
    name, (replicated,) = file['metadata']['name'], file['spec']['replicatedJobs']
    host, _, _ = found.arguments['coordinator_address'].partition(':')
    assert host == f'{name}-{replicated["name"]}-0-0.{name}', 'what JobSet calls the first pod'
    assert (found.arguments['num_processes'], found.arguments['process_id']) == (job['completions'], 1)


# ---- SkyPilot ----

TASK = {
    'name': str,
    'num_nodes': int,
    'resources': {
        'accelerators': str,
        'disk_size': int,
        'use_spot': bool,
        'job_recovery': {'max_restarts_on_errors': int},
    },
    'workdir': str,
    'envs': {str: str},
    'setup': str,
    'run': str,
}


def test_the_task_of_skypilot(tmp_path):
    task = yaml.safe_load((LAUNCH / 'skypilot.yaml').read_text('utf-8'))
    check(task, TASK)
    for script in (task['setup'], task['run']):
        assert_good_bash(f'#!/usr/bin/env bash\n# shellcheck disable=SC1091\n{script}')
    named = re.search(r"'\.\[(.+)\]'", task['setup'])[1].split(',')
    assert {*named} <= extras()
    with_venv(tmp_path)
    given = {
        **fake_programs(tmp_path, 'python'),
        **task['envs'],
        'SKYPILOT_NODE_IPS': '10.0.0.4\n10.0.0.5',
        'SKYPILOT_NUM_NODES': str(task['num_nodes']),
        'SKYPILOT_NODE_RANK': '1',
    }
    subprocess.run(['bash', '-c', task['run']], cwd=tmp_path, env=given, check=True)
    arguments, environment = call_of(tmp_path, 'python')
    config = config_of(['python', *arguments])
    assert config.workdir == f'{task["envs"]["BUCKET"]}/runs/base'
    _, gpus = task['resources']['accelerators'].split(':')
    assert_batch_divides(config, task['num_nodes'] * int(gpus))
    found = detect(LaunchConfig(), environment).arguments
    assert found['coordinator_address'].startswith('10.0.0.4:')
    assert (found['num_processes'], found['process_id']) == (2, 1)
    assert_variables_are_read({name: value for name, value in environment.items() if name not in os.environ})


# ---- Docker ----


def docker_instructions() -> list[tuple[str, str]]:
    text = re.sub(r'^\s*#.*\n', '', (LAUNCH / 'Dockerfile').read_text('utf-8'), flags=re.M)
    lines = re.sub(r'\\\n', ' ', text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_image():
    instructions = docker_instructions()
    assert {name for name, _ in instructions} <= DOCKER_INSTRUCTIONS
    assert instructions[0][0] == 'FROM'
    values = {name: [value for one, value in instructions if one == name] for name in DOCKER_INSTRUCTIONS}
    copied = {source for value in values['COPY'] for source in value.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    # What installing needs, and what is run.
    assert {'pyproject.toml', 'setup.cfg', 'README.md', 'LICENSE', 'constraints.txt'} <= copied
    assert {'audiosep_jax', 'data_prep', 'experiments'} <= copied
    names = {name for line in values['ARG'] for name in [line.partition('=')[0]]}
    assert set(re.findall(r'\$\{(\w+)\}', ' '.join(values['RUN']))) <= names
    for line in values['RUN']:
        assert_good_bash(line)
    (entry,), (command,) = map(json.loads, values['ENTRYPOINT']), map(json.loads, values['CMD'])
    with pytest.raises(SystemExit) as stopped:
        config_of([*entry, *command])
    assert (stopped.value.code, command[1:]) == (0, ['--help'])


def test_what_the_image_may_be_built_with():
    text = (LAUNCH / 'Dockerfile').read_text('utf-8')
    builds = re.findall(r'EXTRAS=([\w,]+)', text)
    assert len(builds) >= 2
    for build in builds:
        assert {*build.split(',')} <= extras()
    # The constraints are for one version of Python.
    python = re.search(r'^FROM python:([\d.]+)', text, re.M)[1]
    assert f'Python {python}' in (ROOT / 'constraints.txt').read_text('utf-8')


def test_the_command_that_runs_the_image():
    lines = [line.removeprefix('#').strip() for line in (LAUNCH / 'Dockerfile').read_text('utf-8').splitlines()]
    (text,) = re.findall(r'docker run .*', '\n'.join(lines).replace('\\\n', ' '))
    words = shlex.split(text)
    config_of(['python', *words[words.index('audiosep-jax:gpu') + 1 :]])
