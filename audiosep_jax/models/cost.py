"""What training costs: operations, bytes through memory and bytes kept, counted from the layers' shapes.

Counts are per clip and of the network alone: convolutions and matrix products in full (padding included), a
multiplication and an addition as two operations; elementwise work, the STFT and the optimizer have no operations here,
under 2 % of the whole, but their bytes are counted where they are those of activations.
"""

import dataclasses

import jax
import jax.numpy as jnp

from audiosep_jax.audio.stft import num_frames
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.resunet import DOWNSAMPLING, TIME_DOWNSAMPLING, film_layout

_FLOAT32_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator's published figures, without sparsity.

    Attributes:
        names: of JAX's `device_kind`.
        peak: operations per second of matrix products, by the type of their inputs; 'tensorfloat32' is what a GPU
            makes of float32 unless it is asked for more precision.
        bandwidth: bytes per second of its memory.
    """

    names: tuple[str, ...]
    peak: dict[str, float]
    bandwidth: float


def _gpu(names, bandwidth, bfloat16, tensorfloat32, float32) -> Device:
    peak = {'bfloat16': bfloat16, 'tensorfloat32': tensorfloat32, 'float32': float32}
    return Device(names, {dtype: tera * 1e12 for dtype, tera in peak.items()}, bandwidth * 1e9)


def _tpu(names, bandwidth, bfloat16) -> Device:
    return Device(names, {'bfloat16': bfloat16 * 1e12}, bandwidth * 1e9)  # none is published for float32


# The makers' data sheets. GB/s, then TFLOP/s.
DEVICES = (
    _gpu(('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'), 1555, 312, 156, 19.5),
    _gpu(('NVIDIA A100-SXM4-80GB',), 2039, 312, 156, 19.5),
    _gpu(('NVIDIA A100 80GB PCIe',), 1935, 312, 156, 19.5),
    _gpu(('NVIDIA H100 80GB HBM3',), 3350, 989.4, 494.7, 66.9),
    _gpu(('NVIDIA H100 PCIe',), 2000, 756, 378, 51),
    _gpu(('NVIDIA H200',), 4800, 989.4, 494.7, 66.9),
    _gpu(('NVIDIA L4',), 300, 121, 60, 30.3),
    _tpu(('TPU v4',), 1228, 275),
    _tpu(('TPU v5 lite', 'TPU v5e'), 819, 197),
    _tpu(('TPU v5p', 'TPU v5'), 2765, 459),
    _tpu(('TPU v6 lite', 'TPU v6e'), 1640, 918),
)


def find_device(device_kind: str) -> Device | None:
    """The figures of what JAX calls `device_kind`, or None: they are never guessed."""
    found = [device for device in DEVICES if device_kind in device.names]
    return found[0] if found else None


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Operations per second at most, in 'bfloat16', 'tensorfloat32' or 'float32'; None if not known."""
    device = find_device(device_kind)
    return device.peak.get(dtype) if device else None


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of one clip: [positions, into] -> [positions, out] over `taps` neighbours.

    A transposed convolution counts as the product that it is: at its input's positions, with `out` = s * t * C'.

    Attributes:
        name: path in the network.
        positions: frames * bins of the map that it runs over.
        into, out: channels.
        taps: 9 for 3×3, 1 for 1×1.
        normalised: whether its input is normalised, shifted and activated first.
        rematerialised: whether it lies in a block that `remat` recomputes.
        from_outside: of its input channels, those that enter that block: all that `remat` keeps.
    """

    name: str
    positions: int
    into: int
    out: int
    taps: int
    normalised: bool = False
    rematerialised: bool = False
    from_outside: int = 0

    @property
    def block(self) -> str:
        return self.name.rpartition('/')[0]

    @property
    def flops(self) -> int:
        return 2 * self.positions * self.into * self.out * self.taps

    @property
    def read(self) -> int:
        """Numbers in its input."""
        return self.positions * self.into

    @property
    def written(self) -> int:
        """Numbers in its output."""
        return self.positions * self.out


def layers(config: ModelConfig, num_samples: int) -> list[Layer]:
    """The convolutions of a clip of `num_samples` samples, in the order of the forward pass."""
    n = num_frames(num_samples, config.hop_size)
    n += -n % TIME_DOWNSAMPLING
    f = config.window_size // 2

    def conv_block(block, into, out, *, from_outside, remat=True):
        yield Layer(f'{block}/conv1', n * f, into, out, 9, True, remat, from_outside)
        yield Layer(f'{block}/conv2', n * f, out, out, 9, True, remat)
        if into != out:
            yield Layer(f'{block}/shortcut', n * f, into, out, 1, False, remat)

    into = config.widths[0]
    found = [Layer('pre_conv', n * f, 1, into, 1)]
    for i, (out, (s, t)) in enumerate(zip(config.widths, DOWNSAMPLING, strict=True), 1):
        found += conv_block(f'encoder_block{i}', into, out, from_outside=into)
        n, f, into = n // s, f // t, out
    found += conv_block('bottleneck', into, into, from_outside=into, remat=False)
    mirrored = zip(reversed(config.widths), reversed(DOWNSAMPLING), strict=True)
    for i, (out, (s, t)) in enumerate(mirrored, 1):
        found.append(Layer(f'decoder_block{i}/upsample', n * f, into, s * t * out, 1, True, True, into))
        n, f, into = n * s, f * t, out
        found += conv_block(f'decoder_block{i}', 2 * out, out, from_outside=out)  # the skip connection
    found.append(Layer('after_conv', n * f, into, 3, 1))
    return found


def forward_flops(config: ModelConfig, num_samples: int) -> int:
    """Operations of one clip's forward pass: 2.3e11 for five seconds with the default configuration."""
    return _film_flops(config) + sum(layer.flops for layer in layers(config, num_samples))


def training_flops(config: ModelConfig, num_samples: int) -> int:
    """Operations of one clip's forward and backward pass: the model's, by convention without what remat repeats.

    A layer's backward pass is its input's gradient and its weights', each as costly as the layer; the embedding, being
    data, needs none.
    """
    return 3 * sum(layer.flops for layer in layers(config, num_samples)) + 2 * _film_flops(config)


def _film_flops(config: ModelConfig) -> int:
    return 2 * config.condition_size * sum(film_layout(config.widths).values())


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A pass over memory that no compiler joins with its neighbours: operations and bytes of one clip."""

    name: str
    flops: int
    bytes: int


def training_kernels(config: ModelConfig, num_samples: int) -> list[Kernel]:
    """What a clip's forward and backward pass has to run, in the best case.

    Each convolution reads its input and writes its output, and again for its input's and for its weights' gradient.
    Each normalisation reads its input for the statistics, and reads and writes it to apply them; backwards it reads
    input and gradient for their sums, and reads both and writes one to apply those. Everything else (shortcut sums,
    pooling, concatenation, masks, weights, optimizer) is taken to be free. What remat repeats runs twice.
    """
    size = _activation_bytes(config)
    found = []
    for layer in layers(config, num_samples):
        moved = (layer.read + layer.written) * size
        norms = 2 if config.remat != 'none' and layer.rematerialised else 1
        convolutions = 2 if config.remat == 'blocks' and layer.rematerialised else 1
        if layer.normalised:
            found += [Kernel(f'{layer.name}/norm', 0, 3 * layer.read * size)] * norms
            found.append(Kernel(f'{layer.name}/norm gradient', 0, 5 * layer.read * size))
        found += [Kernel(layer.name, layer.flops, moved)] * convolutions
        found += [Kernel(f'{layer.name}/{what} gradient', layer.flops, moved) for what in ('input', 'weight')]
    return found


def training_bytes(config: ModelConfig, num_samples: int) -> int:
    """Bytes of activations and of their gradients that one clip's training step moves through memory, at best."""
    return sum(kernel.bytes for kernel in training_kernels(config, num_samples))


def clips_per_second_bound(config: ModelConfig, num_samples: int, device_kind: str) -> float | None:
    """The most clips a second that one device can train on: each kernel at the device's peak, or at its bandwidth.

    None for a device that `DEVICES` does not know, or of no published peak in the model's type.
    """
    device, peak = find_device(device_kind), peak_flops(device_kind, config.dtype)
    if device is None or peak is None:
        return None
    kernels = training_kernels(config, num_samples)
    return 1 / sum(max(kernel.flops / peak, kernel.bytes / device.bandwidth) for kernel in kernels)


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """An estimate of bytes per device in the backward pass, when most is held at once.

    Attributes:
        params, gradients, optimizer, ema: float32.
        activations: what the forward pass keeps for the backward pass, of all the device's clips.
        workspace: gradients of activations under way, and with remat the block that is being recomputed.
    """

    params: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
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
    """The memory that training needs on each device, by counting; what a compiler adds is not in it.

    Args:
        config: its dtype and remat matter.
        num_samples: of a clip.
        clips_per_device: clips that are in the forward and backward pass at once (a micro-batch, if gradients are
            accumulated).
        amsgrad: three moments, otherwise two.
        ema: whether an average of the weights is kept.
        shards: devices over which parameters, optimizer state and averages are split. Gradients are split as well.
    """
    size = _activation_bytes(config)
    weights = _FLOAT32_BYTES * parameter_count(config)
    sharded = -(-weights // shards)
    kept, widest, by_block = 0, 0, {}
    for layer in layers(config, num_samples):
        # A normalised layer needs its input before the norm, for the norm's gradient, and after it, for its weights';
        # a shortcut's input is conv1's.
        inputs = 2 * layer.read if layer.normalised else layer.read * (not layer.name.endswith('shortcut'))
        remat = config.remat != 'none' and layer.rematerialised
        if remat and config.remat == 'blocks':
            kept += layer.positions * layer.from_outside
        else:
            kept += layer.read * layer.normalised if remat else inputs
        if remat:
            by_block[layer.block] = by_block.get(layer.block, 0) + inputs
        # At once: the gradients of its output, of its input after the norm, and before it.
        widest = max(widest, layer.written + inputs)
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
    shapes = jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


def _activation_bytes(config: ModelConfig) -> int:
    return jnp.dtype(config.dtype).itemsize
