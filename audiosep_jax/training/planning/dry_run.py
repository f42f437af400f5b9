"""Shows what a run would be before it starts: the `--dry-run` of an experiment."""

import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from audiosep_jax.data.batches import DataConfig, encoder_identity, staged
from audiosep_jax.data.co_occurrence import compare_labels
from audiosep_jax.data.shards import Shards
from audiosep_jax.models import cost
from audiosep_jax.parallel.launch import Detected
from audiosep_jax.parallel.mesh import make_mesh
from audiosep_jax.progress import explained_compilation
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.planning.compiled import Compiled
from audiosep_jax.training.planning.estimate import compile_for, estimate, largest_batch, usable_memory
from audiosep_jax.training.planning.topologies import Topology, topology_devices
from audiosep_jax.training.train import starting_checkpoint
from audiosep_jax.training.train_step import Program, make_program

_LESS_MEMORY = 'use a smaller --batch-size, --accumulate or --model.remat norms'


def dry_run(
    config: TrainConfig,
    launched: Detected | None = None,
    *,
    topology: Topology | None = None,
    find_batch: bool = False,
) -> None:
    """Prints mesh, shapes, memory and plan, compiles the step, and prints how much memory the compiler needs.

    Nothing is written, except the copy of the data in --stage-dir. Without data, everything is shown except the number
    of passes over them.

    Args:
        config: the run.
        launched: how its processes found each other; None for a single process.
        topology: devices that this machine need not have, for which the step is compiled; None: those that it has.
        find_batch: whether to look for the largest batch that fits into their memory.

    Raises:
        ConfigError, DataError, EncoderMismatchError, CheckpointError, DownloadError: the run itself would fail at its
            start.
    """
    mesh = make_mesh(config.mesh, topology_devices(topology) if topology else None)
    config.check(mesh)
    program = make_program(config, mesh)
    data, encoder = config.input, None
    if data.data:
        data = staged(data)
        encoder = encoder_identity(data)
    config.check(mesh, encoder)
    lines = [*_launch(config, program, launched), *_data(config, data, encoder), *_init(config, encoder)]
    for line in [*lines, *_memory(config, program, topology), *_work(config, mesh)]:
        _show(line)
    _show('compiling …')
    started = time.perf_counter()
    if topology is None:
        with explained_compilation(_show):
            compiled = program.compile_step()
        _show(f'compiled in {time.perf_counter() - started:.0f} s: {_compiled(compiled)}')
        return
    with explained_compilation(_show):
        step = compile_for(config, topology)
    _show(f'compiled in {time.perf_counter() - started:.0f} s for {topology}')
    for line in _reached(config, topology, step):
        _show(line)
    if find_batch:
        clips = largest_batch(config, topology, step, tried=_show_tried)
        _show(_largest(clips, topology))


def _show(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _launch(config: TrainConfig, program: Program, launched: Detected | None) -> Iterator[str]:
    mesh = program.mesh
    axes = ' × '.join(f'{name} {size}' for name, size in mesh.shape.items())
    how = f'found by {launched.where}' if launched else 'alone'
    yield f'launch   {jax.process_count()} process{"es" * (jax.process_count() > 1)}, {how}'
    yield f'mesh     {mesh.size} × {mesh.devices.flat[0].device_kind}: {axes}'
    model = config.model
    yield (
        f'model    {_millions(cost.parameter_count(model))} parameters, {model.dtype}, remat {model.remat}, '
        f'{model.sample_rate} Hz, window {model.window_size}, hop {model.hop_size}'
    )
    for name, array in program.batch.items():
        each = array.sharding.shard_shape(array.shape)
        yield f'batch    {name} {array.dtype} {list(array.shape)}, {list(each)} on each device'
    split = [leaf for leaf in jax.tree.leaves(program.state) if not leaf.sharding.is_fully_replicated]
    numbers = sum(leaf.size for leaf in split), sum(leaf.size for leaf in jax.tree.leaves(program.state))
    yield f'state    {_millions(numbers[1])} numbers, {numbers[0] / numbers[1]:.1%} of them split over fsdp'


def _data(config: TrainConfig, data: DataConfig, encoder: dict[str, Any] | None) -> Iterator[str]:
    if encoder is None:
        yield 'data     none given: --data DIR'
        return
    clips = sum(len(Shards(directory, data.split)) for directory in data.data)
    passes = config.steps * config.batch_size / clips
    yield f'data     {clips:,} clips, embeddings of {encoder["name"]}: {passes:,.1f} passes in {config.steps:,} steps'
    table = config.mixing.together
    if note := table and compare_labels(table, data.data, data.split):
        yield f'mixing   {note}'


def _init(config: TrainConfig, encoder: dict[str, Any] | None) -> Iterator[str]:
    if checkpoint := starting_checkpoint(config, encoder):
        yield f'init     {checkpoint.path}, step {checkpoint.step}'


def _memory(config: TrainConfig, program: Program, topology: Topology | None) -> Iterator[str]:
    clips = config.batch_size // program.mesh.size // config.accumulate
    memory = cost.training_memory(
        config.model,
        program.batch['waveforms'].shape[1],
        clips,
        amsgrad=config.optimizer.amsgrad,
        ema=bool(config.ema_decay),
        shards=config.mesh.fsdp,
    )
    state = memory.params + memory.gradients + memory.optimizer + memory.ema
    yield (
        f'memory   {_size(memory.total)} on each device, estimated: {_size(state)} of weights and optimizer, '
        f'{_size(memory.activations)} of activations ({clips} clips at a time), {_size(memory.workspace)} of workspace'
    )
    if (limit := usable_memory(topology.chip) if topology else _device_memory()) and memory.total > limit:
        yield (
            f'         more than the {_size(limit)} of the device: use --model.dtype bfloat16, --model.remat norms, '
            '--accumulate or a smaller --batch-size'
        )


def _device_memory() -> int | None:
    stats = jax.local_devices()[0].memory_stats()  # None on CPUs
    return (stats or {}).get('bytes_limit')


def _work(config: TrainConfig, mesh: Mesh) -> Iterator[str]:
    num_samples = round(config.input.segment_seconds * config.model.sample_rate)
    flops = cost.training_flops(config.model, num_samples)
    clips = config.steps * config.batch_size
    yield f'loss     {config.loss}'
    work = f'{flops / 1e9:,.0f} GFLOP' if flops >= 1e10 else f'{flops / 1e6:,.0f} MFLOP'
    yield f'work     {work} a clip, {config.steps:,} steps, {_millions(clips)} clips'
    kind = mesh.devices.flat[0].device_kind
    bound = cost.clips_per_second_bound(config.model, num_samples, kind)
    if bound:
        hours = clips / (bound * mesh.size) / 3600
        yield (
            f'         at best {bound:,.0f} clips/s on each device, {hours:,.0f} hours '
            '(by its published peak and bandwidth)'
        )
    saved = -(-config.steps // config.checkpoint_every)
    yield (
        f'saves    {saved:,} checkpoints, every {config.checkpoint_every:,} steps; '
        f'kept: the newest {config.keep}, and the best'
    )


def _compiled(compiled: jax.stages.Compiled) -> str:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 'the compiler does not report its memory'
    return (
        f'{_size(analysis.argument_size_in_bytes)} of state and batch on each device, '
        f'{_size(analysis.temp_size_in_bytes)} of workspace'
    )


def _reached(config: TrainConfig, topology: Topology, step: Compiled | None) -> Iterator[str]:
    usable = usable_memory(topology.chip)
    if step is None:
        yield f'         more than the {_size(usable)} of each device: {_LESS_MEMORY}'
        return
    found = estimate(config, topology, step)
    fits = 'it fits' if found.fits else f'too much, {_LESS_MEMORY}'
    yield f'needs    {_size(step.memory)} of the {_size(usable)} that a program has on each device: {fits}'
    yield f'         {_size(step.arguments)} of state and batch, {_size(step.temporary)} of workspace'
    yield f'moves    {_size(step.traffic)} through the memory of each device in a step'
    per_device = found.clips_per_second / topology.size
    yield (
        f'reaches  {found.seconds * 1000:,.0f} ms a step, {found.clips_per_second:,.0f} clips/s '
        f'({per_device:,.1f} on each device), MFU {found.mfu:.0%}'
    )
    hours = config.steps * found.seconds / 3600
    how = "the compiler's estimate of cycles" if step.cycles else 'a bound, by bytes and bandwidth, operations and peak'
    yield f'         {config.steps:,} steps in {hours:,.0f} hours, without waiting for data ({how})'


def _show_tried(clips: int, memory: float | None) -> None:
    _show(f'tried    {clips} clips on each device: {_size(memory) if memory else "do not fit"}')


def _largest(clips: int, topology: Topology) -> str:
    if not clips:
        return 'largest  not even the smallest batch fits'
    return f'largest  {clips} clips on each device: --batch-size {clips * topology.size}'


def _millions(count: int) -> str:
    return f'{count / 1e6:,.1f} M' if count >= 1e6 else f'{count:,}'


def _size(count: float) -> str:
    return f'{count / 1e9:.1f} GB' if count >= 1e9 else f'{count / 1e6:.1f} MB'
