"""What a compiled step means for a run, and the largest batch that fits."""

import dataclasses
import importlib.util
import math

import pytest

from audiosep_jax.data.batches import DataConfig
from audiosep_jax.errors import ConfigError
from audiosep_jax.models import cost
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.mixing import SegmentMixer
from audiosep_jax.training.planning import estimate as estimates
from audiosep_jax.training.planning.compiled import Compiled, Instruction
from audiosep_jax.training.planning.estimate import (
    compile_for,
    estimate,
    largest_batch,
    step_seconds,
    usable_memory,
)
from audiosep_jax.training.planning.topologies import parse_topology

TINY = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2,) * 2, condition_size=8, dtype='bfloat16')


def compiled(*instructions, memory=0):
    return Compiled(memory, 0, 0, 0, tuple(instructions), None, None)


def instruction(*, moved=0, flops=0, cycles=None):
    return Instruction('x', 'fusion', '', 'f32[]', moved, flops, cycles)


def run_of(topology, **settings):
    settings = {'batch_size': 2 * topology.size, 'model': TINY, 'mixing': SegmentMixer(mix_group=2)} | settings
    return TrainConfig(input=DataConfig(segment_seconds=0.1), **settings)


def test_a_tpu_s_time_is_that_of_the_cycles():
    chip = parse_topology('v5e:2x2').chip
    step = compiled(instruction(cycles=1_000_000), instruction(cycles=500_000), instruction())
    assert step_seconds(step, chip, 'bfloat16') == 1_500_000 / 1.5e9


def test_a_gpu_s_time_is_the_longer_of_bytes_and_operations():
    chip = parse_topology('h100:1').chip
    step = compiled(instruction(moved=3350 * 10**6), instruction(moved=1, flops=int(chip.peak['bfloat16'] / 1000)))
    assert step_seconds(step, chip, 'bfloat16') == pytest.approx(2e-3, rel=1e-6)


def test_rates_are_of_all_devices():
    topology = parse_topology('v5e:2x2')
    config = run_of(topology)
    found = estimate(config, topology, compiled(instruction(cycles=1_500_000), memory=10**9))
    assert (found.clips, found.memory, found.seconds) == (2, 10**9, 1e-3)
    assert found.clips_per_second == 8 / 1e-3
    assert found.mfu == pytest.approx(8000 * cost.training_flops(TINY, 800) / (4 * 197e12))
    assert found.fits
    assert not dataclasses.replace(found, memory=17 * 10**9).fits


def test_jax_takes_a_share_of_a_gpu_s_memory(monkeypatch):
    chip = parse_topology('h100:1').chip
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
    assert usable_memory(chip) == 0.75 * chip.memory
    monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
    assert usable_memory(chip) == 0.92 * chip.memory


@pytest.mark.parametrize('clips', [2, 4, 64])
@pytest.mark.parametrize('most', [0, 2, 6, 38, 40])
def test_the_largest_batch_is_found_from_any_start(monkeypatch, clips, most):
    topology = parse_topology('v5e:2x2')
    usable, asked, said = usable_memory(topology.chip), [], []

    def compile_for(config, topology):
        each = config.batch_size // topology.size
        asked.append(each)
        # Not quite a line, and nothing comes of what does not fit.
        memory = usable * (each + 0.5 * math.sin(each)) / (most + 1)
        return compiled(memory=int(memory)) if memory <= usable else None

    monkeypatch.setattr(estimates, 'compile_for', compile_for)
    config = run_of(topology, batch_size=clips * topology.size)
    first = compile_for(config, topology)
    found = largest_batch(config, topology, first, tried=lambda *what: said.append(what))
    assert found == most
    assert len(asked) == len(set(asked)) == len(said) + 1 <= 9
    assert all(each % 2 == 0 for each in asked)


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
@pytest.mark.slow
@pytest.mark.nightly
def test_a_whole_pod_is_compiled():
    topology = parse_topology('v5e:16x16')
    config = run_of(topology)
    step = compile_for(config, topology)
    assert step is not None
    assert step.cycles > 10_000
    found = estimate(config, topology, step)
    assert found.fits
    assert 0 < found.mfu < 1
    assert any('decoder_block2' in each.module for each in step.instructions)


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
def test_a_batch_that_does_not_divide_is_refused():
    topology = parse_topology('v6e:2x2')
    with pytest.raises(ConfigError, match='batch_size'):
        compile_for(run_of(topology, batch_size=6), topology)
