"""Devices that are not there: XLA compiles a program for them all the same, and says what it will need.

`v5e:16x16` is a slice of 256 TPU v5e, `h100:8` a machine of eight H100. The compiler for TPUs is in `libtpu`, the one
for GPUs in JAX's CUDA plugin; neither needs the chip or its driver. The extra `aot` installs the first, `cuda12` and
`cuda13` the second.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from audiosep_jax.errors import ConfigError, first_line
from audiosep_jax.models.cost import DEVICES, Device

_CUDA_PLUGINS = {'jax_cuda13_plugin': 'cu13', 'jax_cuda12_plugin': 'cuda_nvcc'}
_GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """A number of chips of one kind.

    Attributes:
        chip: of which kind.
        shape: a TPU slice's chips along each axis of its torus, or the number of GPUs.
    """

    chip: Device
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f'{self.chip.topology}:{"x".join(map(str, self.shape))}'

    @property
    def size(self) -> int:
        """The number of devices."""
        return math.prod(self.shape)


def parse_topology(text: str) -> Topology:
    """Reads `v5e:16x16` (a slice) or `h100:8` (a number of GPUs).

    Raises:
        ConfigError: the chip is unknown, or the shape is not one of that chip.
    """
    chips = {device.topology: device for device in DEVICES if device.topology}
    found = re.fullmatch(r'([a-z0-9]+):(\d+(?:x\d+)*)', text.strip().lower())
    if not found:
        raise ConfigError(
            f'--topology {text!r} is not CHIP:SHAPE, such as v5e:16x16 or h100:8 (chips: {_known(chips)})'
        )
    name, shape = found[1], tuple(int(n) for n in found[2].split('x'))
    if name not in chips:
        raise ConfigError(f'--topology {text!r}: there is no chip {name!r}; choose one of {_known(chips)}')
    topology = Topology(chips[name], shape)
    axes = topology.chip.axes
    if len(shape) != axes:
        example = {1: '8', 2: '4x4', 3: '4x4x4'}[axes]
        raise ConfigError(f'--topology {text!r}: the shape of {name} is written like {name}:{example}')
    if not 1 <= topology.size <= topology.chip.largest:
        raise ConfigError(f'--topology {text!r}: {name} comes in 1 to {topology.chip.largest:,} chips')
    return topology


def _known(chips: dict[str, Device]) -> str:
    return ', '.join(chips)


def topology_devices(topology: Topology) -> list[jax.Device]:
    """Returns the devices of a topology, for which programs can be compiled, but not run.

    Raises:
        ConfigError: the compiler for these chips is not installed, or there is no such slice.
    """
    try:
        found = _gpus(topology) if topology.chip.gpu else _tpus(topology)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f'--topology {topology}: {first_line(error)}') from error
    return list(found.devices)


def _tpus(topology: Topology) -> Any:
    if importlib.util.find_spec('libtpu') is None:
        raise ConfigError(f"--topology {topology} needs the compiler for TPUs: pip install 'audiosep_jax[aot]'")
    # libtpu would ask Google Cloud for minutes what this machine is, and complain that it is none of theirs.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    # It also complains where these are unset; their values do not matter.
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-8')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    # Nor is there a chip, which only one program at a time may use.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    options: dict[str, Any] = {}
    if topology.size < 4:  # otherwise a host has 2×2 chips
        options['chips_per_host_bounds'] = (*topology.shape, 1)[:3]
    if topology.chip.topology == 'v4':
        options['chip_config_name'] = 'megacore'  # as JAX runs it: both cores of a chip are one device
    return topologies.get_topology_desc(platform='tpu', topology_name=str(topology), **options)


def _gpus(topology: Topology) -> Any:
    if not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
        raise ConfigError(
            f"--topology {topology} needs the compiler for GPUs: pip install 'audiosep_jax[cuda12]' (or cuda13)"
        )
    hosts, rest = divmod(topology.size, _GPUS_PER_HOST)
    if hosts and rest:
        raise ConfigError(f'--topology {topology}: above {_GPUS_PER_HOST} GPUs, use a multiple of {_GPUS_PER_HOST}')
    shape = f'1x{hosts}x{_GPUS_PER_HOST}' if hosts else f'1x1x{rest}'
    return topologies.get_topology_desc(platform='cuda', target_config=topology.chip.gpu, topology=shape)


def look_for_no_devices(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keeps JAX from looking for accelerators of this machine. Call it before JAX is used for anything else."""
    jax.config.update('jax_platforms', 'cpu')
    environment['JAX_SKIP_CUDA_CONSTRAINTS_CHECK'] = '1'  # the plugin would ask the driver for its version


def compile_lowered(lowered: jax.stages.Lowered, topology: Topology) -> jax.stages.Compiled:
    """Compiles a program for the devices of a topology."""
    # JAX would write the program into its compilation cache, and could not read it there without the devices.
    config: Any = jax.config  # whose settings type checkers do not know
    enabled = config.jax_enable_compilation_cache
    _use_compilation_cache(False)
    try:
        return lowered.compile(compiler_options(topology))
    finally:
        _use_compilation_cache(enabled)


def _use_compilation_cache(enabled: bool) -> None:
    jax.config.update('jax_enable_compilation_cache', enabled)
    compilation_cache.reset_cache()  # in this process: JAX looks at the setting once, and then remembers it


def compiler_options(topology: Topology) -> dict[str, Any]:
    """Returns the options with which a program is compiled for a topology."""
    if not topology.chip.gpu:
        return {}
    data = _cuda_data()
    # Without a GPU nothing can be timed, so the compiler must not try to.
    return {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False} | (
        {'xla_gpu_cuda_data_dir': str(data)} if data else {}
    )


def _cuda_data() -> Path | None:
    """Finds the folder with `ptxas` and `libdevice` that the plugin brought along."""
    nvidia = importlib.util.find_spec('nvidia')
    places = (nvidia.submodule_search_locations if nvidia else None) or []
    folders = [Path(place) / name for place in places for name in _CUDA_PLUGINS.values()]
    return next((folder for folder in folders if (folder / 'nvvm').is_dir()), None)
