"""Weights of the original PyTorch code as variables of this one: names, layouts, and the fused FiLM matrix."""

from collections.abc import Iterator, Mapping

import numpy as np
from flax.traverse_util import unflatten_dict

from audiosep_jax.errors import CheckpointError
from audiosep_jax.resunet import film_layout

# How a tensor of the original becomes ours.
_AS_IS = ()
_CONV = (2, 3, 1, 0)  # [C', C, kN, kF] -> [kN, kF, C, C']
_TRANSPOSED_CONV = (0, 2, 3, 1)  # [C, C', kN, kF] -> [C, kN, kF, C']
_POINTWISE = 'pointwise'  # [C', C, 1, 1] -> [C, C']


def _norm(torch: str, ours: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], object]]:
    yield f'{torch}.weight', ('params', *ours, 'scale'), _AS_IS
    yield f'{torch}.bias', ('params', *ours, 'bias'), _AS_IS
    yield f'{torch}.running_mean', ('batch_stats', *ours, 'mean'), _AS_IS
    yield f'{torch}.running_var', ('batch_stats', *ours, 'var'), _AS_IS


def _pointwise(torch: str, ours: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], object]]:
    yield f'{torch}.weight', ('params', *ours, 'kernel'), _POINTWISE
    yield f'{torch}.bias', ('params', *ours, 'bias'), _AS_IS


def _conv_block(torch: str, ours: tuple[str, ...], has_shortcut: bool) -> Iterator[tuple]:
    for i in (1, 2):
        yield from _norm(f'{torch}.bn{i}', (*ours, f'norm{i}', 'norm'))
        yield f'{torch}.conv{i}.weight', ('params', *ours, f'conv{i}'), _CONV
    if has_shortcut:
        yield from _pointwise(f'{torch}.shortcut', (*ours, 'shortcut'))


def tensor_table(widths: tuple[int, ...]) -> Iterator[tuple[str, tuple[str, ...], object]]:
    """(name in the original's `ResUNet30`, path in `AudioSep`'s variables, layout) of every tensor but FiLM's."""
    root = ('resunet',)
    yield from _norm('base.bn0', (*root, 'norm0'))
    yield from _pointwise('base.pre_conv', (*root, 'pre_conv'))
    into = widths[0]
    for i, out in enumerate(widths, 1):
        block = f'encoder_block{i}'
        yield from _conv_block(f'base.{block}.conv_block1', (*root, block, 'conv_block'), into != out)
        into = out
    yield from _conv_block('base.conv_block7a.conv_block1', (*root, 'bottleneck'), False)
    for i in range(1, len(widths) + 1):
        block = f'decoder_block{i}'
        yield from _norm(f'base.{block}.bn1', (*root, block, 'norm_up', 'norm'))
        yield f'base.{block}.conv1.weight', ('params', *root, block, 'upsample'), _TRANSPOSED_CONV
        yield from _conv_block(f'base.{block}.conv_block2', (*root, block, 'conv_block'), True)
    yield from _pointwise('base.after_conv', (*root, 'after_conv'))


def film_names(widths: tuple[int, ...]) -> list[str]:
    """The original's FiLM layers, in the column order of the fused matrix."""
    names = []
    for key in film_layout(widths):
        block, norm = key.split('/')
        beta = 'beta2' if norm == 'norm2' else 'beta1'
        if block == 'bottleneck':
            names.append(f'film.conv_block7a->conv_block1->{beta}')
        elif block.startswith('encoder'):
            names.append(f'film.{block}->conv_block1->{beta}')
        elif norm == 'norm_up':
            names.append(f'film.{block}->{beta}')
        else:
            names.append(f'film.{block}->conv_block2->{beta}')
    return names


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

    def tensor(name: str) -> np.ndarray:
        try:
            return np.asarray(state[prefix + name], np.float32)
        except KeyError:
            raise CheckpointError(
                f'not a separator of the original code: tensor {prefix + name!r} is missing'
            ) from None

    widths = tuple(tensor(f'base.encoder_block{i}.conv_block1.conv2.weight').shape[0] for i in range(1, 7))
    flat = {}
    for name, path, layout in tensor_table(widths):
        value = tensor(name)
        if layout is _POINTWISE:
            value = value[:, :, 0, 0].T
        elif layout:
            value = value.transpose(layout)
        flat[path] = value
    names = film_names(widths)
    film = ('params', 'resunet', 'film')
    flat[*film, 'kernel'] = np.concatenate([tensor(f'{name}.weight') for name in names]).T
    flat[*film, 'bias'] = np.concatenate([tensor(f'{name}.bias') for name in names])
    return unflatten_dict(flat)
