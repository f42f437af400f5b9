"""Where arrays live: one mesh, the batch split over all of it, weights and what training keeps of them over `fsdp`."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from audiosep_jax.errors import ConfigError

DATA, FSDP = 'data', 'fsdp'
# The batch is split over both: to a device that holds a share of the weights the other devices' clips are not.
_BATCH = PartitionSpec((DATA, FSDP))
# Where a weight is split over `fsdp`, by the end of its path; the optimizer's and the average's copies of it end alike.
# All else (norms, biases, counts: under 1 % of the numbers) is on every device.
_RULES = (
    (r'(conv1|conv2|upsample)$', PartitionSpec(None, None, None, FSDP)),
    (r'(film|shortcut)/kernel$', PartitionSpec(None, FSDP)),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The arrangement of the devices.

    Attributes:
        fsdp: consecutive devices that share one copy of weights, optimizer and average, each holding a part; 1: each
            device has them all (0.6 GB at full size, so more is for wider networks). What is left of the devices is
            the `data` axis.

    Raises:
        ConfigError: less than 1.
    """

    fsdp: int = 1

    def __post_init__(self):
        if self.fsdp < 1:
            raise ConfigError(f'mesh.fsdp must be at least 1, got {self.fsdp}')


def make_mesh(config: MeshConfig = MeshConfig(), devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh (`data`, `fsdp`) over `devices`, by default all of all processes.

    Raises:
        ConfigError: the devices do not divide by `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % config.fsdp:
        fitting = ', '.join(str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        raise ConfigError(f'mesh.fsdp {config.fsdp} does not divide {len(devices)} devices: use one of {fitting}')
    shape = (len(devices) // config.fsdp, config.fsdp)
    # Auto is stated: make_mesh's default is Explicit, under which every operation would need a sharding of its own.
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis B split evenly over the devices."""
    return NamedSharding(mesh, _BATCH)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """For each array of a tree (a TrainState, or its shapes) where it lies, by the table of rules above.

    An axis that does not divide by `fsdp` is not split.
    """

    def place(path, leaf):
        name = '/'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path)
        for pattern, spec in _RULES:
            if re.search(pattern, name) and len(spec) == len(leaf.shape) and not leaf.shape[-1] % mesh.shape[FSDP]:
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)


def place_of_process(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process's rows of a batch B are those from index · B / count on, for B / count rows.

    That is where its devices stand in the mesh, which on a TPU slice need not be the number of the process.

    Raises:
        ConfigError: its devices do not stand together, or the processes have unequal numbers of them.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    order = list(dict.fromkeys(owners))
    share = len(owners) // len(order)
    if owners != [process for process in order for _ in range(share)]:
        raise ConfigError(f'the processes of these devices do not have equal, connected parts of the mesh: {owners}')
    return order.index(jax.process_index()), len(order)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split over the mesh."""
    sharding = batch_sharded(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def by_clip(mesh: Mesh) -> Callable[[Callable], Callable]:
    """Makes a function of one array [B, …] that treats each clip by itself run on each device with its own clips."""
    if mesh.size == 1:
        return lambda function: function
    return lambda function: jax.shard_map(function, mesh=mesh, in_specs=_BATCH, out_specs=_BATCH)


def on_this_process(tree: Any, mesh: Mesh) -> Any:
    """A tree of global arrays, whole, on this process's first device. All processes must call it."""
    whole = jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda array: array.addressable_data(0), whole)
