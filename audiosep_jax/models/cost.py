"""What training costs: operations, bytes moved through memory and bytes kept, counted from the table of layers.

Counts are per clip and cover the network only: convolutions and matrix products in full (padding included), where a
multiplication and an addition are two operations. The operations of elementwise work, of the STFT and of the optimizer
are not counted, because they are under 2 % of the total; bytes are counted where they are those of activations.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax.numpy as jnp

from audiosep_jax.audio.stft import num_frames
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.layers import TIME_DOWNSAMPLING, Layer, network_layers

_FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator's published figures, without sparsity.

    Attributes:
        names: the values of JAX's `device_kind` that mean this device.
        peak: operations per second of matrix products, by the type of their inputs. 'tensorfloat32' is how a GPU
            multiplies float32 unless it is asked for more precision.
        bandwidth: bytes per second of its memory.
        memory: bytes of its memory.
        topology: what it is called in a topology (`v5e:4x4`, `h100:8`); empty for a device that XLA is not asked to
            compile for without having it.
        axes: how many numbers the shape of a topology has: 2 or 3 for a TPU's torus, 1 for a number of GPUs.
        largest: the most chips of a slice, or of GPUs that are one job.
        clock: cycles per second, in which a TPU's compiler estimates time.
        gpu: what XLA has to know of a GPU, as a `GpuTargetConfigProto` in text form.
    """

    names: tuple[str, ...]
    peak: Mapping[str, float]
    bandwidth: float
    memory: float
    topology: str = ''
    axes: int = 1
    largest: int = 4096
    clock: float = 0.0
    gpu: str = ''


def _gpu(
    names: tuple[str, ...],
    gigabytes: float,
    bandwidth: float,
    bfloat16: float,
    tensorfloat32: float,
    float32: float,
    *,
    topology: str = '',
    target: str = '',
) -> Device:
    peak = {'bfloat16': bfloat16, 'tensorfloat32': tensorfloat32, 'float32': float32}
    peak = {dtype: tera * 1e12 for dtype, tera in peak.items()}
    return Device(names, peak, bandwidth * 1e9, gigabytes * 1e9, topology, gpu=target)


def _tpu(
    names: tuple[str, ...],
    gibibytes: float,
    bandwidth: float,
    bfloat16: float,
    *,
    topology: str,
    axes: int,
    largest: int,
    gigahertz: float,
) -> Device:
    peak = {'bfloat16': bfloat16 * 1e12}  # no figure is published for float32
    return Device(names, peak, bandwidth * 1e9, gibibytes * 2**30, topology, axes, largest, gigahertz * 1e9)


def _target(
    name: str,
    *,
    capability: int,
    cores: int,
    fpus: int,
    shared: int,
    shared_per_block: int,
    cache: int,
    gigahertz: float,
    memory: int,
    bandwidth: int,
) -> str:
    """What XLA asks a GPU for, as text: sizes in bytes, the bandwidth in bytes per second."""
    return f'''gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} shared_memory_per_block_optin: {shared_per_block}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {gigahertz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
'''


_hopper = functools.partial(
    _target,
    capability=9,
    cores=132,
    fpus=128,
    shared=233472,
    shared_per_block=232448,
    cache=52428800,
    gigahertz=1.98,
)
# Data sheets call 80 GB what a driver reports as 84.9e9 bytes; these are the bytes.
_A100_TARGET = _target(
    'NVIDIA A100-SXM4-80GB',
    capability=8,
    cores=108,
    fpus=64,
    shared=167936,
    shared_per_block=166912,
    cache=41943040,
    gigahertz=1.41,
    memory=85_100_068_864,
    bandwidth=2_039_040_000_000,
)
_H100_TARGET = _hopper('NVIDIA H100 80GB HBM3', memory=84_929_347_584, bandwidth=3_352_320_000_000)
_H200_TARGET = _hopper('NVIDIA H200', memory=151_397_597_184, bandwidth=4_800_000_000_000)
_B200_TARGET = _target(
    'NVIDIA B200',
    capability=10,
    cores=148,
    fpus=128,
    shared=233472,
    shared_per_block=232448,
    cache=132_644_864,
    gigahertz=1.965,
    memory=191_514_411_008,
    bandwidth=7_672_320_000_000,
)
# From the makers' data sheets: GB (GPU) or GiB (TPU) of memory, GB/s, then TFLOP/s.
DEVICES = (
    _gpu(('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'), 42.4, 1555, 312, 156, 19.5),
    _gpu(('NVIDIA A100-SXM4-80GB',), 85.1, 2039, 312, 156, 19.5, topology='a100', target=_A100_TARGET),
    _gpu(('NVIDIA A100 80GB PCIe',), 85.1, 1935, 312, 156, 19.5),
    _gpu(('NVIDIA H100 80GB HBM3',), 84.9, 3350, 989.4, 494.7, 66.9, topology='h100', target=_H100_TARGET),
    _gpu(('NVIDIA H100 PCIe',), 84.9, 2000, 756, 378, 51),
    _gpu(('NVIDIA H200',), 151.4, 4800, 989.4, 494.7, 66.9, topology='h200', target=_H200_TARGET),
    _gpu(('NVIDIA B200',), 191.5, 7700, 2250, 1125, 75, topology='b200', target=_B200_TARGET),
    _gpu(('NVIDIA L4',), 24.0, 300, 121, 60, 30.3),
    _tpu(('TPU v4',), 32, 1228, 275, topology='v4', axes=3, largest=4096, gigahertz=1.05),
    _tpu(('TPU v5 lite', 'TPU v5e'), 16, 819, 197, topology='v5e', axes=2, largest=256, gigahertz=1.5),
    _tpu(('TPU v5p', 'TPU v5'), 95, 2765, 459, topology='v5p', axes=3, largest=8960, gigahertz=1.75),
    _tpu(('TPU v6 lite', 'TPU v6e'), 32, 1640, 918, topology='v6e', axes=2, largest=256, gigahertz=1.75),
)


def find_device(device_kind: str) -> Device | None:
    """Returns the figures of the device that JAX calls `device_kind`, or None: they are never guessed."""
    return next((device for device in DEVICES if device_kind in device.names), None)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Returns the peak in operations per second for 'bfloat16', 'tensorfloat32' or 'float32', or None if unknown."""
    device = find_device(device_kind)
    return device.peak.get(dtype) if device else None


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution of one clip, as the matrix product [positions, inputs * taps] × [inputs * taps, outputs].

    A transposed convolution is the product at its input's positions, with s * t * C' outputs.

    Attributes:
        layer: what is convolved with what.
        positions: frames * bins of its input.
    """

    layer: Layer
    positions: int

    @property
    def name(self) -> str:
        """Path in the network."""
        return f'{self.layer.block}/{self.layer.name}'.lstrip('/')

    @property
    def flops(self) -> int:
        """Operations of the forward pass."""
        return 2 * self.positions * self.layer.inputs * self.layer.outputs * math.prod(self.layer.kernel)

    @property
    def read(self) -> int:
        """Numbers in its input."""
        return self.positions * self.layer.inputs

    @property
    def written(self) -> int:
        """Numbers in its output."""
        factor = math.prod(self.layer.kernel) if self.layer.kind == 'transposed' else 1
        return self.positions * self.layer.outputs * factor

    @property
    def normalized(self) -> bool:
        """Whether its input is normalized, shifted and activated first."""
        return self.layer.kind in ('conv3x3', 'transposed')

    @property
    def rematerialized(self) -> bool:
        """Whether it is in a block that `remat` recomputes."""
        return self.layer.block.startswith(('encoder', 'decoder'))

    @property
    def kept(self) -> int:
        """The numbers that the backward pass finds in memory without `remat`, as resunet.py keeps them."""
        layer = self.layer
        if layer.name in ('shortcut', 'after_conv'):  # they read what is counted elsewhere, or never computed
            return 0
        if not self.normalized:
            return self.read
        # Before the norm, for its gradient; and after it, for the kernel's.
        if layer.scale != (1, 1):
            return 2 * self.read
        at_full_resolution = {'encoder_block1/conv1': 0, 'encoder_block1/conv2': 1, 'decoder_block6/conv1': 1}
        return at_full_resolution.get(self.name, 2) * self.read

    @property
    def block_inputs(self) -> int:
        """The numbers in its input that come from outside its block: all that `remat: blocks` keeps."""
        if self.layer.name == 'conv1' and self.layer.block.startswith('decoder'):
            return self.read // 2  # the skip connection
        return self.read if self.layer.name in ('conv1', 'upsample') else 0


def convolutions(config: ModelConfig, num_samples: int) -> list[Convolution]:
    """The convolutions of a clip of `num_samples` samples, in the order of the forward pass."""
    n = num_frames(num_samples, config.hop_size)
    n += -n % TIME_DOWNSAMPLING
    f = config.window_size // 2
    return [
        Convolution(layer, (n // layer.scale[0]) * (f // layer.scale[1]))
        for layer in _layers(config)
        if layer.kind not in ('norm', 'film')
    ]


def forward_flops(config: ModelConfig, num_samples: int) -> int:
    """Operations of one clip's forward pass: 2.3e11 for five seconds with the default configuration."""
    return _film_flops(config) + sum(convolution.flops for convolution in convolutions(config, num_samples))


def training_flops(config: ModelConfig, num_samples: int) -> int:
    """Operations of one clip's forward and backward pass: by convention without what remat repeats.

    The backward pass of a layer computes the gradients of its input and of its weights, each of which costs as much as
    the layer itself. The embedding is data, so that FiLM needs no gradient of its input.
    """
    return 3 * sum(convolution.flops for convolution in convolutions(config, num_samples)) + 2 * _film_flops(config)


def _film_flops(config: ModelConfig) -> int:
    return sum(2 * layer.inputs * layer.outputs for layer in _layers(config) if layer.kind == 'film')


def _layers(config: ModelConfig) -> list[Layer]:
    return network_layers(config.widths, window_size=config.window_size, condition_size=config.condition_size)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A pass over memory that no compiler fuses with its neighbors: operations and bytes of one clip."""

    name: str
    flops: int
    bytes: int


def training_kernels(config: ModelConfig, num_samples: int) -> list[Kernel]:
    """The kernels of a clip's forward and backward pass, in the best case.

    Each convolution reads its input and writes its output; the gradients of its input and of its weights each move as
    many bytes again. Each normalization reads its input to compute the statistics, then reads and writes it to apply
    them; backwards it reads input and gradient to compute their sums, then reads both and writes one to apply the sums.
    Everything else (shortcut sums, pooling, concatenation, masks, weights, optimizer) is taken to be free. Work that
    remat repeats is listed twice.
    """
    size = _activation_bytes(config)
    found = []
    for convolution in convolutions(config, num_samples):
        name, flops = convolution.name, convolution.flops
        moved = (convolution.read + convolution.written) * size
        norms = 2 if config.remat != 'none' and convolution.rematerialized else 1
        repeats = 2 if config.remat == 'blocks' and convolution.rematerialized else 1
        if convolution.normalized:
            found += [Kernel(f'{name}/norm', 0, 3 * convolution.read * size)] * norms
            found.append(Kernel(f'{name}/norm gradient', 0, 5 * convolution.read * size))
        found += [Kernel(name, flops, moved)] * repeats
        found += [Kernel(f'{name}/{what} gradient', flops, moved) for what in ('input', 'weight')]
    return found


def training_bytes(config: ModelConfig, num_samples: int) -> int:
    """The fewest bytes of activations and of their gradients that a training step must move through memory per clip."""
    return sum(kernel.bytes for kernel in training_kernels(config, num_samples))


def clips_per_second_bound(config: ModelConfig, num_samples: int, device_kind: str) -> float | None:
    """The most clips per second that one device can train on: each kernel is limited by the peak or by the bandwidth.

    None if `DEVICES` does not have the device, or if no peak is published for the model's type.
    """
    device, peak = find_device(device_kind), peak_flops(device_kind, config.dtype)
    if device is None or peak is None:
        return None
    kernels = training_kernels(config, num_samples)
    return 1 / sum(max(kernel.flops / peak, kernel.bytes / device.bandwidth) for kernel in kernels)


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """An estimate of bytes per device in the backward pass, where memory use is highest.

    Attributes:
        params: the parameters, float32.
        gradients: their gradients, float32.
        optimizer: the optimizer's moments, float32.
        ema: the average of the weights, float32.
        activations: what the forward pass keeps for the backward pass, for all clips of the device.
        workspace: the gradients of activations in flight and, with remat, the block that is being recomputed.
    """

    params: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


def training_memory(
    config: ModelConfig,
    num_samples: int,
    clips_per_device: int,
    *,
    amsgrad: bool = True,
    ema: bool = False,
    shards: int = 1,
) -> TrainingMemory:
    """The memory that training needs on each device, without what the compiler adds.

    Args:
        config: the model; its `dtype` and `remat` matter.
        num_samples: samples of a clip.
        clips_per_device: clips that go through the forward and backward pass together (a micro-batch if gradients are
            accumulated).
        amsgrad: whether the optimizer keeps three moments instead of two.
        ema: whether an average of the weights is kept.
        shards: number of devices over which parameters, gradients, optimizer state and averages are split.
    """
    size = _activation_bytes(config)
    weights = _FLOAT32_BYTES * parameter_count(config)
    sharded = -(-weights // shards)
    kept, widest = 0, 0
    by_block: dict[str, int] = {}
    for convolution in convolutions(config, num_samples):
        inputs = convolution.kept
        remat = config.remat != 'none' and convolution.rematerialized
        if remat and config.remat == 'blocks':
            kept += convolution.block_inputs
        else:
            kept += convolution.read * convolution.normalized if remat else inputs
        if remat:
            block = convolution.layer.block
            by_block[block] = by_block.get(block, 0) + inputs
        # These exist together: the gradients of the output, of the input after the norm, and of the input before it.
        widest = max(widest, convolution.written + inputs)
    recomputed = max(by_block.values(), default=0)
    return TrainingMemory(
        params=sharded,
        gradients=sharded,
        optimizer=(3 if amsgrad else 2) * sharded,
        ema=sharded if ema else 0,
        activations=kept * size * clips_per_device,
        workspace=(widest + recomputed) * size * clips_per_device,
    )


def parameter_count(config: ModelConfig) -> int:
    """Numbers in the model's parameters: 25.6 million with the default configuration."""
    shapes = [item for layer in _layers(config) for item in layer.shapes.items()]
    return sum(math.prod(shape) for path, shape in shapes if path[0] == 'params')


def _activation_bytes(config: ModelConfig) -> int:
    return jnp.dtype(config.dtype).itemsize
