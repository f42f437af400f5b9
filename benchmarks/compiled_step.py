"""What the compiler says of a program for a chip that is not there: memory, traffic, time, and what costs most.

    pip install -e '.[aot,cuda12]'                                        # the compilers for TPUs and for GPUs
    python benchmarks/compiled_step.py --topology v5e:2x4 --clips 8
    python benchmarks/compiled_step.py --topology h100:1 --clips 16 --json-file after.json --compare before.json
    python benchmarks/compiled_step.py --topology v6e:2x2 --program separate
    python benchmarks/compiled_step.py --gpu-description my_gpu.txtpb --clips 16

`step` is the whole training step, `separate` what separation and evaluation do with so many clips at once. For a TPU,
cycles are the compiler's estimate and traffic its "bytes accessed". For a GPU, traffic is the bytes of operands and
results of every instruction, and the time is a bound: each instruction takes its bytes at the memory's bandwidth or its
operations at the peak, whichever is longer. No kernel has been timed, so cuBLAS and cuDNN are taken at their best.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console
from rich.table import Table

from audiosep_jax.errors import ConfigError, reported
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.cost import Device
from audiosep_jax.parallel.mesh import make_mesh
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.planning.compiled import Compiled, Instruction, read_compiled
from audiosep_jax.training.planning.estimate import estimate
from audiosep_jax.training.planning.topologies import (
    Topology,
    compile_lowered,
    look_for_no_devices,
    parse_topology,
    topology_devices,
)
from audiosep_jax.training.train_step import make_program

MODEL = ModelConfig(dtype='bfloat16')


def main(
    topology: Annotated[str, tyro.conf.arg(metavar='CHIP:SHAPE')] = 'v5e:2x4',
    gpu_description: Path | None = None,
    program: Literal['step', 'separate'] = 'step',
    clips: int = 8,
    model: ModelConfig = MODEL,
    accumulate: int = 1,
    top: int = 20,
    json_file: Path | None = None,
    compare: Path | None = None,
    text_file: Path | None = None,
) -> None:
    """Compiles and prints the figures.

    Args:
        topology: the devices.
        gpu_description: a GPU as a `GpuTargetConfigProto` in text form, in the place of the topology's.
        program: what to compile.
        clips: of each device.
        model: the network.
        accumulate: parts of a device's clips that go through the network one after the other.
        top: how many instructions to list.
        json_file: where to write the figures.
        compare: the figures of another run, to print beside these.
        text_file: where to write the compiled program.
    """
    parsed = parse_topology(topology)
    if gpu_description:
        parsed = with_description(parsed, gpu_description)
    look_for_no_devices()
    config = TrainConfig(batch_size=clips * parsed.size, model=model, accumulate=accumulate)
    started = time.perf_counter()
    compiled = compile_program(program, config, parsed)
    seconds = time.perf_counter() - started
    if text_file:
        text_file.write_text(compiled.as_text())
    read = read_compiled(compiled)
    figures = {
        'topology': topology,
        'program': program,
        'clips': clips,
        'model': dataclasses.asdict(model),
        'accumulate': accumulate,
        'jax': jax.__version__,
        'compile_seconds': round(seconds),
        **summary(program, config, parsed, read),
    }
    console = Console()
    console.print(overview(figures, json.loads(compare.read_text()) if compare else None))
    console.print(by_kind(read))
    console.print(dearest(read, parsed.chip, top))
    if json_file:
        instructions = [dataclasses.asdict(each) for each in sorted(read.instructions, key=cost_on(parsed.chip))[::-1]]
        json_file.write_text(json.dumps({**figures, 'instructions': instructions[: max(top, 100)]}, indent=2) + '\n')


def with_description(topology: Topology, file: Path) -> Topology:
    """Returns the topology with another description of the GPU."""
    if not topology.chip.gpu:
        raise ConfigError('--gpu-description goes with the --topology of a GPU, whose bandwidth and peak are then used')
    return dataclasses.replace(topology, chip=dataclasses.replace(topology.chip, gpu=file.read_text()))


def compile_program(program: str, config: TrainConfig, topology: Topology) -> jax.stages.Compiled:
    """Compiles the training step or the separation of clips for a topology."""
    mesh = make_mesh(config.mesh, topology_devices(topology))
    if program == 'step':
        config.check(mesh)
        return compile_lowered(make_program(config, mesh).lower_step(), topology)
    from audiosep_jax.separation.network import lower_separation

    samples = round(config.input.segment_seconds * config.model.sample_rate)
    return compile_lowered(lower_separation(config.model, mesh, config.batch_size, samples), topology)


def summary(program: str, config: TrainConfig, topology: Topology, read: Compiled) -> dict[str, Any]:
    """Returns the figures of each device."""
    found = estimate(config, topology, read)
    return {
        'memory': read.memory,
        'usable_memory': found.usable,
        'temporary': read.temporary,
        'arguments': read.arguments,
        'traffic': read.traffic,
        'flops': read.flops or sum(instruction.flops for instruction in read.instructions),
        'cycles': read.cycles,
        'seconds': found.seconds,
        'clips_per_second': found.clips_per_second / topology.size,
        'mfu': found.mfu if program == 'step' else found.mfu / 3,
    }


def overview(figures: dict[str, Any], other: dict[str, Any] | None) -> Table:
    """The figures as a table, with those of another run beside them."""
    title = (
        f'{figures["program"]} on {figures["topology"]}, {figures["clips"]} clips a device, {figures["model"]["dtype"]}'
    )
    table = Table('of each device', 'this', *(['other', 'ratio'] if other else []), title=title)
    rows = {
        'temporary memory, GB': ('temporary', 1e9),
        'all memory, GB': ('memory', 1e9),
        'traffic, GB': ('traffic', 1e9),
        'operations, T': ('flops', 1e12),
        'cycles, M': ('cycles', 1e6),
        'time, ms': ('seconds', 1e-3),
        'clips/s': ('clips_per_second', 1),
        'MFU, %': ('mfu', 1e-2),
    }
    for name, (key, unit) in rows.items():
        value = figures[key]
        if value is None:
            continue
        beside = [f'{other[key] / unit:.2f}', f'{value / other[key]:.2f}'] if other and other.get(key) else []
        table.add_row(name, f'{value / unit:.2f}', *beside)
    return table


def cost_on(chip: Device):
    """What orders instructions: estimated cycles, or the time of bytes and operations."""
    peak = chip.peak['bfloat16']
    return lambda each: each.cycles if each.cycles is not None else max(each.bytes / chip.bandwidth, each.flops / peak)


def by_kind(read: Compiled) -> Table:
    """Traffic and cycles of each kind of instruction."""
    table = Table('kind', 'number', 'GB', 'Mcycles')
    kinds: dict[str, list[Instruction]] = {}
    for instruction in read.instructions:
        kinds.setdefault(instruction.kind, []).append(instruction)
    total = {kind: sum(each.bytes for each in members) for kind, members in kinds.items()}
    for kind in sorted(total, key=total.get, reverse=True)[:12]:
        cycles = sum(each.cycles or 0 for each in kinds[kind])
        table.add_row(kind, str(len(kinds[kind])), f'{total[kind] / 1e9:.2f}', f'{cycles / 1e6:.1f}' if cycles else '')
    return table


def dearest(read: Compiled, chip: Device, top: int) -> Table:
    """The instructions that cost most, with the modules that they come from."""
    table = Table('Mcycles' if read.cycles else 'ms', 'GB', 'kind', 'result', 'module')
    order = cost_on(chip)
    for each in sorted(read.instructions, key=order, reverse=True)[:top]:
        value = order(each) / (1e6 if read.cycles else 1e-3)
        table.add_row(f'{value:.2f}', f'{each.bytes / 1e9:.2f}', each.kind, each.result, each.module)
    return table


if __name__ == '__main__':
    with reported('compiled_step'):
        tyro.cli(main)
