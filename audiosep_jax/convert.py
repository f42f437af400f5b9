"""Weights of the original PyTorch code as variables of this one: names, layouts, and the fused FiLM matrix."""

import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from audiosep_jax.errors import CheckpointError
from audiosep_jax.model import ModelConfig, init_variables
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
    names = film_names(widths)
    condition_size = tensor(f'{names[0]}.weight').shape[-1]
    window_size = 2 * (tensor('base.bn0.weight').size - 1)
    # Nothing but the shapes depends on this configuration; the hop and the rate are not in the weights.
    config = ModelConfig(window_size=window_size, hop_size=1, widths=widths, condition_size=condition_size)
    expected = _shapes(config)
    flat = {}
    for name, path, layout in tensor_table(widths):
        flat[path] = _laid_out(tensor(name), layout, expected[path], prefix + name)
    film, sizes = ('params', 'resunet', 'film'), film_layout(widths).values()
    shares = list(zip(names, sizes, strict=True))
    weights = [_laid_out(tensor(f'{n}.weight'), (1, 0), (condition_size, c), f'{prefix}{n}.weight') for n, c in shares]
    biases = [_laid_out(tensor(f'{n}.bias'), _AS_IS, (c,), f'{prefix}{n}.bias') for n, c in shares]
    flat[*film, 'kernel'], flat[*film, 'bias'] = np.concatenate(weights, axis=1), np.concatenate(biases)
    return unflatten_dict(flat)


@functools.cache
def _shapes(config: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    variables = jax.eval_shape(lambda key: init_variables(config, key), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_dict(variables).items()}


def _laid_out(value: np.ndarray, layout: object, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A tensor in our layout, or a CheckpointError where it has not the shape that its neighbours ask for."""
    if layout is _POINTWISE:
        fits = value.ndim == 4 and value.shape[2:] == (1, 1)
        result = value[:, :, 0, 0].T if fits else value
    else:
        result = value.transpose(layout) if layout and value.ndim == len(layout) else value
    if result.shape != shape:
        raise CheckpointError(f'not a separator of the original: tensor {name!r} has the shape {list(value.shape)}')
    return result
