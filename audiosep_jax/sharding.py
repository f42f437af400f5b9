"""Where arrays live: one mesh over all devices, the batch split over it, parameters on every device."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from audiosep_jax.errors import ConfigError
from audiosep_jax.mixing import SegmentMixer

BATCH_AXIS = 'data'


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis `data` over `devices` (default: all devices of all processes)."""
    devices = jax.devices() if devices is None else devices
    # Auto is stated: make_mesh's default is Explicit, under which every operation would need a sharding of its own.
    return jax.make_mesh((len(devices),), (BATCH_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis B split evenly over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def check_batch_size(batch_size: int, mixer: SegmentMixer, mesh: Mesh) -> None:
    """Refuses a batch that does not divide over the devices in whole mixing groups, and names the nearest that do.

    Raises:
        ConfigError: batch_size is not a multiple of devices * mix_group, or too small for the mixer.
    """
    unit = mesh.size * max(mixer.mix_group, 1)
    if batch_size <= 0 or batch_size % unit:
        below = batch_size // unit * unit
        nearest = ' or '.join(str(n) for n in (below, below + unit) if n > 0)
        raise ConfigError(
            f'batch_size {batch_size} does not divide over {mesh.size} devices in mixing groups of '
            f'{mixer.mix_group or "any size"}: use {nearest}'
        )
    mixer.group_size(batch_size)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split over the mesh."""
    sharding = batch_sharded(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
