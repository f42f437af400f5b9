"""Where arrays are stored: the batch is split over the whole mesh, the training state over its axis `fsdp`."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from audiosep_jax.errors import ConfigError

DATA, FSDP = 'data', 'fsdp'
# Both axes split the batch: devices that share weights still see different clips.
_BATCH = PartitionSpec((DATA, FSDP))
# The axis at which a weight is split over `fsdp`, by the end of its path, which is the same for its copies in the
# optimizer and the average. Every device has the rest (norms, biases, counts), which is less than 1 % of the numbers.
_RULES = (
    (r'(conv1|conv2|upsample)$', PartitionSpec(None, None, None, FSDP)),
    (r'(film|shortcut)/kernel$', PartitionSpec(None, FSDP)),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The arrangement of the devices.

    Attributes:
        fsdp: number of consecutive devices that share one copy of weights, optimizer and average, of which each stores
            a part; 1: each device has all of it (0.6 GB at full size, so sharing is for wider networks). The `data`
            axis has the rest of the devices.

    Raises:
        ConfigError: fsdp is less than 1.
    """

    fsdp: int = 1

    def __post_init__(self) -> None:
        if self.fsdp < 1:
            raise ConfigError(f'mesh.fsdp must be at least 1, got {self.fsdp}')


def make_mesh(config: MeshConfig = MeshConfig(), devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with the axes `data` and `fsdp`.

    Args:
        config: the arrangement.
        devices: its devices, by default all devices of all processes.

    Raises:
        ConfigError: the devices do not divide by `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) % config.fsdp:
        fitting = ', '.join(str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        raise ConfigError(f'mesh.fsdp {config.fsdp} does not divide {len(devices)} devices: use one of {fitting}')
    shape = (len(devices) // config.fsdp, config.fsdp)
    # With `Explicit`, the default of make_mesh, every operation would need its own sharding.
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that stores a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the leading axis B evenly over the devices."""
    return NamedSharding(mesh, _BATCH)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each array of a tree by the rules above.

    An axis that does not divide by `fsdp` is not split.

    Args:
        state: a TrainState, or its shapes.
        mesh: the devices.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = '/'.join(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path)
        for pattern, spec in _RULES:
            if re.search(pattern, name) and len(spec) == len(leaf.shape) and not leaf.shape[-1] % mesh.shape[FSDP]:
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, state)


def place_of_process(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): this process has B / count rows of a batch, from row index · B / count on.

    The index is the position of its devices in the mesh, which on a TPU slice can differ from the process index.

    Raises:
        ConfigError: its devices are not contiguous in the mesh, or the processes have unequal numbers of devices.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    order = list(dict.fromkeys(owners))
    share = len(owners) // len(order)
    if owners != [process for process in order for _ in range(share)]:
        raise ConfigError(f'the processes of these devices do not have equal, connected parts of the mesh: {owners}')
    return order.index(jax.process_index()), len(order)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global arrays of a batch, split over the mesh, from this process's rows."""
    sharding = batch_sharded(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def by_clip(mesh: Mesh | None) -> Callable[[Callable], Callable]:
    """Returns a decorator with which each device runs a function of arrays [B, …] on its own clips.

    The function must treat each clip separately. Without a mesh it is left as it is.
    """
    if mesh is None or mesh.size == 1:
        return lambda function: function
    return lambda function: jax.shard_map(function, mesh=mesh, in_specs=_BATCH, out_specs=_BATCH)


def on_this_process(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of global arrays as whole arrays on this process's first device. All processes must call this."""
    whole = jax.device_put(tree, replicated(mesh))
    return jax.tree.map(lambda array: array.addressable_data(0), whole)
