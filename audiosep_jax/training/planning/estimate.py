"""What a training run would need and reach on a topology, by compiling its step for it."""

import dataclasses
import math
import os
from collections.abc import Callable

import jax

from audiosep_jax.models import cost
from audiosep_jax.models.cost import Device
from audiosep_jax.parallel.mesh import make_mesh
from audiosep_jax.training.config import TrainConfig
from audiosep_jax.training.planning.compiled import Compiled, read_compiled
from audiosep_jax.training.planning.topologies import Topology, compile_lowered, topology_devices
from audiosep_jax.training.train_step import make_program

# What JAX takes of a GPU's memory at its start (XLA_PYTHON_CLIENT_MEM_FRACTION), and what libtpu leaves of a TPU's.
_GPU_SHARE, _TPU_SHARE = 0.75, 0.98
_OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'


def compile_for(config: TrainConfig, topology: Topology) -> Compiled | None:
    """Compiles a run's step for a topology; None if the compiler finds that it does not fit into memory.

    Raises:
        ConfigError: the configuration does not fit the topology, or its compiler is not installed.
    """
    mesh = make_mesh(config.mesh, topology_devices(topology))
    config.check(mesh)
    try:
        compiled = compile_lowered(make_program(config, mesh).lower_step(), topology)
    except jax.errors.JaxRuntimeError as error:
        if _OUT_OF_MEMORY in str(error):
            return None
        raise
    return read_compiled(compiled)


def usable_memory(chip: Device) -> float:
    """Bytes of a chip's memory that a program can have."""
    if not chip.gpu:
        return _TPU_SHARE * chip.memory
    return float(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION') or _GPU_SHARE) * chip.memory


def step_seconds(compiled: Compiled, chip: Device, dtype: str) -> float:
    """Estimates the seconds of a program on a chip.

    For a TPU it is the compiler's own estimate. For a GPU, each instruction takes the time of its bytes at the memory's
    bandwidth, or of its operations at the peak, whichever is longer: a bound that real kernels come near to.
    """
    if compiled.cycles is not None:
        return compiled.cycles / chip.clock
    peak = chip.peak[dtype]
    return sum(max(step.bytes / chip.bandwidth, step.flops / peak) for step in compiled.instructions)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run reaches on a topology.

    Attributes:
        clips: on each device.
        memory: bytes that the step takes on each device.
        usable: bytes that a device has for it.
        traffic: bytes that a device reads and writes in a step.
        seconds: of a step.
        clips_per_second: of all devices.
        mfu: the model's operations by the peak of all devices.
    """

    clips: int
    memory: int
    usable: int
    traffic: int
    seconds: float
    clips_per_second: float
    mfu: float

    @property
    def fits(self) -> bool:
        """Whether a device has enough memory."""
        return self.memory <= self.usable


def estimate(config: TrainConfig, topology: Topology, compiled: Compiled) -> Estimate:
    """Returns what a compiled step means for a run."""
    chip = topology.chip
    # No peak of float32 is published for TPUs, which multiply it in several passes of bfloat16.
    dtype = config.model.dtype if config.model.dtype in chip.peak else 'bfloat16'
    seconds = step_seconds(compiled, chip, dtype)
    num_samples = round(config.input.segment_seconds * config.model.sample_rate)
    rate = config.batch_size / seconds
    return Estimate(
        clips=config.batch_size // topology.size,
        memory=compiled.memory,
        usable=int(usable_memory(chip)),
        traffic=compiled.traffic,
        seconds=seconds,
        clips_per_second=rate,
        mfu=rate * cost.training_flops(config.model, num_samples) / (chip.peak[dtype] * topology.size),
    )


def largest_batch(
    config: TrainConfig, topology: Topology, compiled: Compiled | None, *, tried: Callable[[int, float | None], None]
) -> int:
    """Finds the most clips on each device with which the step fits into memory, by bisection.

    Memory grows almost evenly with the clips, so the next number to try is where a line through the last two results
    meets the device's memory.

    Args:
        config: the run; its batch is where the search begins.
        topology: the devices.
        compiled: the step of that batch, None if it does not fit.
        tried: is told the clips and the memory (None: it does not fit) of each step that is compiled.

    Returns:
        The number of clips, 0 if not even the smallest batch fits.
    """
    unit = math.lcm(max(config.mixing.mix_group, 1), config.accumulate)
    usable = usable_memory(topology.chip)

    def memory(count: int) -> float:
        step = compile_for(dataclasses.replace(config, batch_size=count * unit * topology.size), topology)
        tried(count * unit, step.memory if step else None)
        return step.memory if step else math.inf

    count = config.batch_size // (topology.size * unit)
    found = {0: 0.0, count: compiled.memory if compiled else math.inf}
    while True:
        low = max(count for count, size in found.items() if size <= usable)
        too_many = [count for count, size in found.items() if size > usable]
        high = min(too_many) if too_many else None
        if high == low + 1:
            return low * unit
        guess = _where_full(found, usable) or ((low + high) // 2 if high else 2 * low)
        count = min(max(guess, low + 1), high - 1 if high else 4 * max(low, 1))
        found[count] = memory(count)


def _where_full(found: dict[int, float], usable: float) -> int | None:
    """The count at which a line through the two results nearest to `usable` meets it, if there are two."""
    known = sorted(((size, count) for count, size in found.items() if count and size < math.inf), reverse=True)
    nearest = sorted(sorted(known, key=lambda item: abs(item[0] - usable))[:2])
    if len(nearest) < 2 or nearest[1][0] <= nearest[0][0]:
        return None
    (size, count), (larger, more) = nearest
    return math.floor(count + (usable - size) * (more - count) / (larger - size))
