"""Small training runs: their configuration, their programs, and what they leave behind."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from support.small_dataset import SAMPLE_RATE

import audiosep_jax.training.train as train_module
from audiosep_jax.checkpoints.run_folder import load_for_inference
from audiosep_jax.data.batches import DataConfig
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.optim import OptimizerConfig
from audiosep_jax.training.train_step import Program

MODEL = ModelConfig(sample_rate=SAMPLE_RATE, window_size=128, hop_size=64, widths=(2, 2))
OPTIMIZER = OptimizerConfig(schedule='constant')
MIXER = SegmentMixer(mix_group=2)
BATCH_SIZE = 16  # 8 devices, groups of 2


def config_of(dataset, workdir, **settings) -> TrainConfig:
    settings = {'steps': 6, 'checkpoint_every': 2, 'log_every': 1, 'ema_decay': 0.9, **settings}
    return TrainConfig(
        workdir=str(workdir),
        input=DataConfig(data=(str(dataset),), segment_seconds=0.05, threads=2, read_ahead=2),
        batch_size=BATCH_SIZE,
        model=settings.pop('model', MODEL),
        mixing=MIXER,
        optimizer=settings.pop('optimizer', OPTIMIZER),
        **settings,
    )


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Within it, equal runs of this process share their program: to trace, load and initialize it takes most of theirs.

    Runs are equal if only their folders, their length and what they save and log differ.
    """
    programs = {}
    make_program = train_module.make_program

    def shared(config, mesh):
        constant = config.optimizer.schedule == 'constant'
        apart = {'workdir': '', 'init_from': '', 'checkpoint_every': 1, 'steps': 1 if constant else config.steps}
        key = repr(dataclasses.replace(config, **apart)), mesh
        if key not in programs:
            programs[key] = _computing_once(make_program(config, mesh))
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, 'make_program', shared)
        yield


def _computing_once(program: Program) -> Program:
    first_weights = functools.cache(lambda: jax.device_get(program.initial_state()))

    class Once(Program):
        compile_step = staticmethod(functools.cache(program.compile_step))

        def initial_state(self, variables=None):
            if variables is not None:
                return program.initial_state(variables)
            # A copy, whose memory the step reuses.
            return jax.device_put(first_weights(), jax.tree.map(lambda leaf: leaf.sharding, self.state))

    return Once(program.mesh, program.state, program.batch, program.config)


def losses_in(workdir) -> dict[int, float]:
    lines = [json.loads(line) for line in (Path(workdir) / 'log.jsonl').read_text().splitlines()]
    steps = [line['step'] for line in lines]
    assert steps == sorted(set(steps)), 'each step is logged once'
    return {line['step']: line['loss'] for line in lines}


def variables_of(workdir):
    checkpoint = load_for_inference(workdir)
    assert checkpoint.step == 6
    return checkpoint.variables
