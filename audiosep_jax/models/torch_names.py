"""The tensors of the original's `ResUNet30`: their names, shapes, layouts, and where each one's numbers are in ours.

The two directions are inverses, bit for bit: `variables_from_torch` and `tensors_from_variables`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from audiosep_jax.errors import CheckpointError, listed
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.resunet import DOWNSAMPLING, film_layout

# How a tensor of the original becomes ours.
_AS_IS = ()
_CONV = (2, 3, 1, 0)  # [C', C, kN, kF] -> [kN, kF, C, C']
_TRANSPOSED_CONV = (0, 2, 3, 1)  # [C, C', kN, kF] -> [C, kN, kF, C']
_LINEAR = (1, 0)  # [C', E] -> [E, C']
_POINTWISE = 'pointwise'  # [C', C, 1, 1] -> [C, C']


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """One tensor of the original's state dict.

    Attributes:
        name: there, without prefix.
        shape: there.
        path: in our variables; None: our network has no use for it, and `fill` says what a fresh one holds.
        layout: how it becomes ours.
        columns: its part of the last axis, where several share a leaf (the fused FiLM matrix).
        fill: of a tensor without a path.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...] | None = None
    layout: object = _AS_IS
    columns: slice | None = None
    fill: Literal['zeros', 'ones', 'steps', 'stft', 'istft', 'window'] = 'zeros'

    @property
    def dtype(self) -> str:
        """Of a fresh one."""
        return 'int64' if self.fill == 'steps' else 'float32'


def torch_tensors(config: ModelConfig) -> list[TorchTensor]:
    """Every tensor of the original's state dict for this configuration, in its order: 332 at the default widths."""
    return [*_fixed(config), *_network(config), *_film(config)]


def _fixed(config: ModelConfig) -> Iterator[TorchTensor]:
    """torchlibrosa's DFT matrices."""
    size = config.window_size
    for part in ('real', 'imag'):
        yield TorchTensor(f'base.stft.conv_{part}.weight', (size // 2 + 1, 1, size), fill='stft')
    yield TorchTensor('base.istft.ola_window', (size,), fill='window')
    for part in ('real', 'imag'):
        yield TorchTensor(f'base.istft.conv_{part}.weight', (size, size, 1), fill='istft')


def _network(config: ModelConfig) -> Iterator[TorchTensor]:
    root, widths = ('params', 'resunet'), config.widths
    yield from _norm('base.bn0', config.window_size // 2 + 1, ('norm0',))
    yield from _pointwise('base.pre_conv', 1, widths[0], (*root, 'pre_conv'))
    into = widths[0]
    for i, out in enumerate(widths, 1):
        name = f'encoder_block{i}'
        yield from _conv_block(f'base.{name}.conv_block1', into, out, (name, 'conv_block'))
        into = out
    yield from _conv_block('base.conv_block7a.conv_block1', into, into, ('bottleneck',))
    for i, (out, kernel) in enumerate(zip(reversed(widths), reversed(DOWNSAMPLING), strict=True), 1):
        name = f'decoder_block{i}'
        path = (*root, name, 'upsample')
        yield TorchTensor(f'base.{name}.conv1.weight', (into, out, *kernel), path, _TRANSPOSED_CONV)
        yield from _norm(f'base.{name}.bn1', into, (name, 'norm_up', 'norm'))
        yield from _conv_block(f'base.{name}.conv_block2', 2 * out, out, (name, 'conv_block'))
        yield from _norm(f'base.{name}.bn2', into, None)  # made, and never called
        into = out
    yield from _pointwise('base.after_conv', into, 3, (*root, 'after_conv'))


def _norm(name: str, channels: int, ours: tuple[str, ...] | None) -> Iterator[TorchTensor]:
    for torch, collection, leaf, fill in (
        ('weight', 'params', 'scale', 'ones'),
        ('bias', 'params', 'bias', 'zeros'),
        ('running_mean', 'batch_stats', 'mean', 'zeros'),
        ('running_var', 'batch_stats', 'var', 'ones'),
    ):
        path = None if ours is None else (collection, 'resunet', *ours, leaf)
        yield TorchTensor(f'{name}.{torch}', (channels,), path, fill=fill)
    yield TorchTensor(f'{name}.num_batches_tracked', (), fill='steps')


def _pointwise(name: str, into: int, out: int, path: tuple[str, ...]) -> Iterator[TorchTensor]:
    yield TorchTensor(f'{name}.weight', (out, into, 1, 1), (*path, 'kernel'), _POINTWISE)
    yield TorchTensor(f'{name}.bias', (out,), (*path, 'bias'))


def _conv_block(name: str, into: int, out: int, ours: tuple[str, ...]) -> Iterator[TorchTensor]:
    path = ('params', 'resunet', *ours)
    for i, channels in ((1, into), (2, out)):
        yield from _norm(f'{name}.bn{i}', channels, (*ours, f'norm{i}', 'norm'))
    for i, channels in ((1, into), (2, out)):
        yield TorchTensor(f'{name}.conv{i}.weight', (out, channels, 3, 3), (*path, f'conv{i}'), _CONV)
    if into != out:
        yield from _pointwise(f'{name}.shortcut', into, out, (*path, 'shortcut'))


def _film(config: ModelConfig) -> Iterator[TorchTensor]:
    """The original's FiLM layers: ours are the columns of one matrix, in the order of `film_layout`."""
    first, path = 0, ('params', 'resunet', 'film')
    for key, channels in film_layout(config.widths).items():
        block, norm = key.split('/')
        beta = 'beta2' if norm == 'norm2' else 'beta1'
        if block == 'bottleneck':
            name = f'conv_block7a->conv_block1->{beta}'
        elif block.startswith('encoder'):
            name = f'{block}->conv_block1->{beta}'
        elif norm == 'norm_up':
            name = f'{block}->{beta}'
        else:
            name = f'{block}->conv_block2->{beta}'
        columns, size = slice(first, first + channels), (channels, config.condition_size)
        yield TorchTensor(f'film.{name}.weight', size, (*path, 'kernel'), _LINEAR, columns)
        yield TorchTensor(f'film.{name}.bias', (channels,), (*path, 'bias'), _AS_IS, columns)
        if norm == 'norm_up':  # of the norm that is never called
            yield TorchTensor(f'film.{block}->beta2.weight', size)
            yield TorchTensor(f'film.{block}->beta2.bias', (channels,))
        first += channels


def sizes_from_torch(state: Mapping[str, np.ndarray], *, prefix: str = '') -> dict:
    """`window_size`, `widths` and `condition_size` of a state dict, from its shapes. Rate and hop are not in it.

    Raises:
        CheckpointError: a tensor that tells is missing or has too few axes.
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

    return {
        'window_size': 2 * (size('base.bn0.weight', 0) - 1),
        'widths': tuple(size(f'base.encoder_block{i}.conv_block1.conv2.weight', 0) for i in range(1, 7)),
        'condition_size': size('film.encoder_block1->conv_block1->beta1.weight', 1),
    }


def check_tensors(shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Whether a state dict (names without prefix, and shapes) is the original's, whole and nothing else.

    Raises:
        CheckpointError: one line that lists what is missing, unknown and misshapen.
    """
    expected = {tensor.name: tensor.shape for tensor in torch_tensors(config)}
    problems = [
        ('missing', [name for name in expected if name not in shapes]),
        ('unknown', [name for name in shapes if name not in expected]),
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
        raise CheckpointError(f'not the tensors of the original separator: {report}')


def variables_from_torch(state: Mapping[str, np.ndarray], *, prefix: str = '') -> dict:
    """The separator's state dict in the original's naming -> `params` and `batch_stats` of `AudioSep`, float32.

    The widths follow from the tensors' shapes. Tensors that the network does not use (the DFT matrices, the decoders'
    `bn2` and their FiLM layers) are left out.

    Args:
        state: numpy arrays by name.
        prefix: what stands before each name (`ss_model.` in the released Lightning checkpoint).

    Raises:
        CheckpointError: a tensor is missing or has a shape that does not fit.
    """
    # Nothing but the shapes depends on this configuration.
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
        if value.dtype.kind not in 'fV':  # V: the numbers of ml_dtypes, such as bfloat16
            raise CheckpointError(
                f'tensor {prefix + tensor.name!r} holds {value.dtype.name}, not floating-point numbers'
            )
        parts.setdefault(tensor.path, []).append(_to_ours(value.astype(np.float32), tensor.layout))
    # FiLM's layers come in the order of their columns.
    return unflatten_dict({path: np.ascontiguousarray(np.concatenate(v, -1)) for path, v in parts.items()})


def tensors_from_variables(variables: Mapping, config: ModelConfig, *, step: int = 0) -> dict[str, np.ndarray]:
    """`params` and `batch_stats` of `AudioSep` -> the original's whole state dict, in its order.

    The tensors that our network does not use are those of a fresh original: its DFT matrices, identity norms, zeros.

    Args:
        step: what `num_batches_tracked` says.
    """
    flat = flatten_dict({name: dict(variables[name]) for name in ('params', 'batch_stats')})
    result = {}
    for tensor in torch_tensors(config):
        if tensor.path is None:
            result[tensor.name] = _fresh(tensor, config, step)
        else:
            leaf = np.asarray(flat[tensor.path])
            leaf = leaf if tensor.columns is None else leaf[..., tensor.columns]
            result[tensor.name] = np.ascontiguousarray(_to_torch(leaf, tensor.layout))
    return result


def _to_ours(value: np.ndarray, layout: object) -> np.ndarray:
    if layout is _POINTWISE:
        return value[:, :, 0, 0].T
    return value.transpose(layout) if layout else value


def _to_torch(value: np.ndarray, layout: object) -> np.ndarray:
    if layout is _POINTWISE:
        return value.T[:, :, None, None]
    return value.transpose(np.argsort(layout)) if layout else value


def _fresh(tensor: TorchTensor, config: ModelConfig, step: int) -> np.ndarray:
    """What a tensor holds that nothing of ours determines."""
    if tensor.fill == 'steps':
        return np.array(step, np.int64)
    if tensor.fill in ('zeros', 'ones'):
        return np.full(tensor.shape, float(tensor.fill == 'ones'), np.float32)
    size = config.window_size
    samples = np.arange(size)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * samples / size)  # periodic Hann
    if tensor.fill == 'window':
        return (window**2).astype(np.float32)
    # The exponent modulo the size: exact, where a power of a rounded root is not.
    angle = 2 * np.pi * (np.outer(samples, samples) % size) / size
    part = np.cos(angle) if 'conv_real' in tensor.name else np.sin(angle)
    if tensor.fill == 'stft':  # e^-jωt, windowed: [F, 1, samples]
        part = part if 'conv_real' in tensor.name else -part
        return (part * window).astype(np.float32)[: size // 2 + 1, None, :]
    return (part * window[:, None] / size).astype(np.float32)[:, :, None]  # e^jωt: [samples, frequencies, 1]
