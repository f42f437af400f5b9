"""The tensors of the original's `ResUNet30`: names, shapes, layouts, and which of our arrays holds their values.

`variables_from_torch` and `tensors_from_variables` are inverses, bit for bit.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from audiosep_jax.errors import CheckpointError, listed
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.layers import DOWNSAMPLING, Layer, Path, Shape, network_layers

# How the original's layout becomes ours: the order of the axes, or 'pointwise'.
Layout = tuple[int, ...] | Literal['pointwise']
_AS_IS: Layout = ()
_CONV: Layout = (2, 3, 1, 0)  # [C', C, kN, kF] -> [kN, kF, C, C']
_TRANSPOSED_CONV: Layout = (0, 2, 3, 1)  # [C, C', kN, kF] -> [C, kN, kF, C']
_LINEAR: Layout = (1, 0)  # [C', E] -> [E, C']
_POINTWISE: Layout = 'pointwise'  # [C', C, 1, 1] -> [C, C']

# What a new tensor holds.
Fill = Literal['zeros', 'ones', 'steps', 'stft', 'istft', 'window']
_COMPUTED: tuple[Fill, ...] = ('steps', 'stft', 'istft', 'window')
# A norm's tensors: the original's name, our collection and leaf, and what a new one holds.
_NORM_TENSORS: tuple[tuple[str, str, str, Fill], ...] = (
    ('weight', 'params', 'scale', 'ones'),
    ('bias', 'params', 'bias', 'zeros'),
    ('running_mean', 'batch_stats', 'mean', 'zeros'),
    ('running_var', 'batch_stats', 'var', 'ones'),
)

# Our names of a block's layers -> the original's, in the original's order.
_CONV_BLOCK_NAMES = {'norm1': 'bn1', 'norm2': 'bn2', 'conv1': 'conv1', 'conv2': 'conv2', 'shortcut': 'shortcut'}
_DECODER_NAMES = {'upsample': 'conv1', 'norm_up': 'bn1'}
_NAMES_OUTSIDE = {'norm0': 'bn0', 'pre_conv': 'pre_conv', 'after_conv': 'after_conv'}
_ORDER = [*_NAMES_OUTSIDE, *_DECODER_NAMES, *_CONV_BLOCK_NAMES]


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """One tensor of the original's state dict.

    Attributes:
        name: in the state dict, without prefix.
        shape: in the state dict.
        path: path of our array that holds its values. None: our network does not use it, and `fill` says what a new
            one holds.
        layout: how its axes become ours.
        columns: its part of our array's last axis, where several tensors share an array (the fused FiLM matrix).
        fill: what a new tensor without a path holds.
    """

    name: str
    shape: Shape
    path: Path | None = None
    layout: Layout = _AS_IS
    columns: slice | None = None
    fill: Fill = 'zeros'

    @property
    def dtype(self) -> str:
        """The type in which the original saves it."""
        return 'int64' if self.fill == 'steps' else 'float32'


def torch_tensors(config: ModelConfig) -> list[TorchTensor]:
    """Every tensor of the original's state dict for this configuration, in its order: 332 at the default widths."""
    film, *layers = network_layers(config.widths, window_size=config.window_size, condition_size=config.condition_size)
    return [*_fixed(config.window_size), *_network(layers), *_film(film, layers)]


def _fixed(window_size: int) -> Iterator[TorchTensor]:
    """The DFT matrices of torchlibrosa."""
    for part in ('real', 'imag'):
        yield TorchTensor(f'base.stft.conv_{part}.weight', (window_size // 2 + 1, 1, window_size), fill='stft')
    yield TorchTensor('base.istft.ola_window', (window_size,), fill='window')
    for part in ('real', 'imag'):
        yield TorchTensor(f'base.istft.conv_{part}.weight', (window_size, window_size, 1), fill='istft')


def _network(layers: list[Layer]) -> Iterator[TorchTensor]:
    for block, of_block in itertools.groupby(layers, key=lambda layer: layer.block):
        in_order = sorted(of_block, key=lambda layer: _ORDER.index(layer.name))
        for layer in in_order:
            yield from _tensors(layer)
        if block.startswith('decoder'):
            # The original's decoder blocks have a second norm that they never call.
            yield from _norm(f'base.{block}.bn2', in_order[0].inputs, None)


def _tensors(layer: Layer) -> Iterator[TorchTensor]:
    name, path, inputs, outputs = f'base.{_torch_name(layer)}', ('params', *layer.path), layer.inputs, layer.outputs
    if layer.kind == 'norm':
        yield from _norm(name, outputs, layer.path)
    elif layer.kind == 'conv3x3':
        yield TorchTensor(f'{name}.weight', (outputs, inputs, *layer.kernel), path, _CONV)
    elif layer.kind == 'transposed':
        yield TorchTensor(f'{name}.weight', (inputs, outputs, *layer.kernel), path, _TRANSPOSED_CONV)
    else:
        yield TorchTensor(f'{name}.weight', (outputs, inputs, 1, 1), (*path, 'kernel'), _POINTWISE)
        yield TorchTensor(f'{name}.bias', (outputs,), (*path, 'bias'))


def _torch_name(layer: Layer) -> str:
    if not layer.block:
        return _NAMES_OUTSIDE[layer.name]
    if layer.name in _DECODER_NAMES:
        return f'{layer.block}.{_DECODER_NAMES[layer.name]}'
    block = 'conv_block7a' if layer.block == 'bottleneck' else layer.block
    conv_block = 'conv_block2' if block.startswith('decoder') else 'conv_block1'
    return f'{block}.{conv_block}.{_CONV_BLOCK_NAMES[layer.name]}'


def _norm(name: str, channels: int, path: Path | None) -> Iterator[TorchTensor]:
    for torch, collection, leaf, fill in _NORM_TENSORS:
        yield TorchTensor(f'{name}.{torch}', (channels,), path and (collection, *path, leaf), fill=fill)
    yield TorchTensor(f'{name}.num_batches_tracked', (), fill='steps')


def _film(film: Layer, layers: list[Layer]) -> Iterator[TorchTensor]:
    """The original has a linear layer for each norm; ours are the columns of one matrix, in the same order."""
    first, path = 0, ('params', *film.path)
    for layer in layers:
        if layer.kind != 'norm' or not layer.block:
            continue
        name = 'film.' + _torch_name(layer).replace('.', '->').replace('bn', 'beta')
        columns, shape = slice(first, first + layer.outputs), (layer.outputs, film.inputs)
        yield TorchTensor(f'{name}.weight', shape, (*path, 'kernel'), _LINEAR, columns)
        yield TorchTensor(f'{name}.bias', shape[:1], (*path, 'bias'), _AS_IS, columns)
        if layer.name == 'norm_up':  # the layer of the norm that is never called
            yield TorchTensor(f'film.{layer.block}->beta2.weight', shape)
            yield TorchTensor(f'film.{layer.block}->beta2.bias', shape[:1])
        first += layer.outputs


def sizes_from_torch(state: Mapping[str, np.ndarray], *, prefix: str = '') -> dict[str, Any]:
    """Returns `window_size`, `widths` and `condition_size` from the shapes of a state dict, which has no rate or hop.

    Raises:
        CheckpointError: a tensor with one of these sizes is missing or has too few axes.
    """

    def size(name: str, axis: int) -> int:
        try:
            return state[prefix + name].shape[axis]
        except KeyError:
            raise CheckpointError(
                f'not a separator of the original code: tensor {prefix + name!r} is missing'
            ) from None
        except IndexError:
            raise CheckpointError(
                f'not a separator of the original: tensor {prefix + name!r} has the shape '
                f'{list(state[prefix + name].shape)}'
            ) from None

    blocks = {name.removeprefix(prefix + 'base.').split('.')[0] for name in state}
    count = max(2, sum(f'encoder_block{i}' in blocks for i in range(1, len(DOWNSAMPLING) + 1)))
    return {
        'window_size': 2 * (size('base.bn0.weight', 0) - 1),
        'widths': tuple(size(f'base.encoder_block{i}.conv_block1.conv2.weight', 0) for i in range(1, count + 1)),
        'condition_size': size('film.encoder_block1->conv_block1->beta1.weight', 1),
    }


def check_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, *, ignore_unknown: bool = False
) -> list[str]:
    """Checks that a state dict has exactly the original's tensors. Those that can be computed may be missing.

    Args:
        shapes: its tensors' shapes by name, without prefix.
        config: of the model.
        ignore_unknown: accept further tensors.

    Returns:
        The names of the tensors that are missing and can be computed, which the network does not read from a file: the
        matrices and the window of the STFT, and counters.

    Raises:
        CheckpointError: lists the tensors that are missing, unknown or misshapen.
    """
    tensors = torch_tensors(config)
    expected = {tensor.name: tensor.shape for tensor in tensors}
    computed = {tensor.name for tensor in tensors if tensor.path is None and tensor.fill in _COMPUTED}
    missing = [name for name in expected if name not in shapes]
    hint = '; --ignore-unknown goes past the unknown ones'
    problems = [
        ('missing', [name for name in missing if name not in computed]),
        ('unknown', [] if ignore_unknown else [name for name in shapes if name not in expected]),
        (
            'misshapen',
            [
                f'{name} is {list(shapes[name])} and should be {list(shape)}'
                for name, shape in expected.items()
                if name in shapes and tuple(shapes[name]) != shape
            ],
        ),
    ]
    report = '; '.join(f'{len(names)} {kind} ({listed(names)})' for kind, names in problems if names)
    if report:
        raise CheckpointError(f'not the tensors of the original separator: {report}{hint if problems[1][1] else ""}')
    return [name for name in missing if name in computed]


def variables_from_torch(state: Mapping[str, np.ndarray], *, prefix: str = '') -> dict[str, Any]:
    """Turns the original's state dict into float32 `params` and `batch_stats` of an `AudioSep`.

    The widths follow from the tensors' shapes. Tensors that the network does not use (the DFT matrices, the decoders'
    `bn2` and their FiLM layers) are left out.

    Args:
        state: numpy arrays by name.
        prefix: before each name (`ss_model.` in the released Lightning checkpoint).

    Raises:
        CheckpointError: a tensor is missing, has the wrong shape or does not hold floating-point numbers.
    """
    # The configuration determines the shapes only, so the hop does not matter.
    config = ModelConfig(hop_size=1, **sizes_from_torch(state, prefix=prefix))
    parts: dict[tuple[str, ...], list[np.ndarray]] = {}
    for tensor in torch_tensors(config):
        if tensor.path is None:
            continue
        try:
            value = np.asarray(state[prefix + tensor.name])
        except KeyError:
            raise CheckpointError(
                f'not a separator of the original code: tensor {prefix + tensor.name!r} is missing'
            ) from None
        if value.shape != tensor.shape:
            raise CheckpointError(
                f'not a separator of the original: tensor {prefix + tensor.name!r} has the shape {list(value.shape)} '
                f'and should have {list(tensor.shape)}'
            )
        if value.dtype.kind not in 'fV':  # V: the types of ml_dtypes, such as bfloat16
            raise CheckpointError(
                f'tensor {prefix + tensor.name!r} holds {value.dtype.name}, not floating-point numbers'
            )
        parts.setdefault(tensor.path, []).append(_to_ours(value.astype(np.float32), tensor.layout))
    # The FiLM layers are in the order of their columns.
    return unflatten_dict({path: np.ascontiguousarray(np.concatenate(v, -1)) for path, v in parts.items()})


def tensors_from_variables(
    variables: Mapping[str, Any], config: ModelConfig, *, step: int = 0
) -> dict[str, np.ndarray]:
    """Turns the `params` and `batch_stats` of an `AudioSep` into the original's whole state dict, in its order.

    Tensors that our network does not use hold what they hold in a new model of the original: DFT matrices, identity
    norms and zeros.

    Args:
        variables: of the AudioSep.
        config: of the AudioSep.
        step: the value of `num_batches_tracked`.
    """
    flat = flatten_dict({name: dict(variables[name]) for name in ('params', 'batch_stats')})
    result = {}
    for tensor in torch_tensors(config):
        if tensor.path is None:
            result[tensor.name] = _new_tensor(tensor, config, step)
        else:
            leaf = np.asarray(flat[tensor.path])
            leaf = leaf if tensor.columns is None else leaf[..., tensor.columns]
            result[tensor.name] = np.ascontiguousarray(_to_torch(leaf, tensor.layout))
    return result


def _to_ours(value: np.ndarray, layout: Layout) -> np.ndarray:
    if layout == 'pointwise':
        return value[:, :, 0, 0].T
    return value.transpose(layout) if layout else value


def _to_torch(value: np.ndarray, layout: Layout) -> np.ndarray:
    if layout == 'pointwise':
        return value.T[:, :, None, None]
    return value.transpose(np.argsort(layout)) if layout else value


def _new_tensor(tensor: TorchTensor, config: ModelConfig, step: int) -> np.ndarray:
    """Makes a tensor that does not depend on our variables."""
    if tensor.fill == 'steps':
        return np.array(step, np.int64)
    if tensor.fill in ('zeros', 'ones'):
        return np.full(tensor.shape, float(tensor.fill == 'ones'), np.float32)
    size = config.window_size
    samples = np.arange(size)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * samples / size)  # periodic Hann
    if tensor.fill == 'window':
        return (window**2).astype(np.float32)
    # The product modulo the size is exact, unlike powers of a rounded root of unity.
    angle = 2 * np.pi * (np.outer(samples, samples) % size) / size
    part = np.cos(angle) if 'conv_real' in tensor.name else np.sin(angle)
    if tensor.fill == 'stft':  # e^-jωt, windowed: [F, 1, samples]
        part = part if 'conv_real' in tensor.name else -part
        return (part * window).astype(np.float32)[: size // 2 + 1, None, :]
    return (part * window[:, None] / size).astype(np.float32)[:, :, None]  # e^jωt: [samples, frequencies, 1]
