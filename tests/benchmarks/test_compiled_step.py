"""The benchmark of compiled programs: what it refuses, and its tables."""

import dataclasses
import importlib.util
import json

import pytest
from rich.console import Console

from audiosep_jax.errors import ConfigError
from audiosep_jax.training.planning.compiled import Compiled, Instruction
from audiosep_jax.training.planning.topologies import parse_topology
from benchmarks import compiled_step

TINY = dict(sample_rate=8000, window_size=128, hop_size=64, widths=(2,) * 2, condition_size=8, dtype='bfloat16')


def printed(table) -> str:
    console = Console(width=200, record=True)
    console.print(table)
    return console.export_text()


def test_the_dearest_instructions_come_first():
    chip = parse_topology('h100:1').chip
    instructions = [Instruction(str(i), 'fusion', f'module{i}', 'f32[2]', i * 10**9, 0, None) for i in range(5)]
    read = Compiled(0, 0, 0, 0, tuple(instructions), None, None)
    text = printed(compiled_step.dearest(read, chip, 2))
    assert text.index('module4') < text.index('module3')
    assert 'module2' not in text
    assert '10.00' in printed(compiled_step.by_kind(read))


def test_two_runs_side_by_side():
    figures = {
        **dict(program='step', topology='h100:1', clips=16, model={'dtype': 'bfloat16'}),
        **dict(temporary=9e9, memory=10e9, traffic=100e9, flops=11e12, cycles=None, seconds=0.03, mfu=0.3),
        'clips_per_second': 480.0,
    }
    text = printed(compiled_step.overview(figures, figures | {'traffic': 150e9}))
    assert '100.00' in text
    assert '150.00' in text
    assert '0.67' in text
    assert 'cycles' not in text


def test_a_description_is_of_a_gpu(tmp_path):
    file = tmp_path / 'gpu.txtpb'
    file.write_text('gpu_device_info {}')
    assert compiled_step.with_description(parse_topology('h100:1'), file).chip.gpu == 'gpu_device_info {}'
    with pytest.raises(ConfigError, match='goes with the --topology of a GPU'):
        compiled_step.with_description(parse_topology('v5e:2x2'), file)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed')
def test_separation_on_a_tpu(tmp_path, capsys):
    model = dataclasses.replace(compiled_step.MODEL, **TINY)
    compiled_step.main('v6e:2x2', program='separate', clips=1, model=model, json_file=tmp_path / 'figures.json')
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures['cycles'] > 0
    assert figures['memory'] < figures['usable_memory']
    assert figures['instructions'][0]['cycles'] >= figures['instructions'][-1]['cycles']
    assert 'separate on v6e:2x2' in capsys.readouterr().out
