"""The table of layers against everything that spells the network out: all have the same parameters."""

import functools
import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from audiosep_jax.models import cost, folded
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.layers import DOWNSAMPLING, film_layout, network_layers
from audiosep_jax.models.torch_names import torch_tensors

CONFIGS = [
    ModelConfig(),
    ModelConfig(window_size=128, hop_size=32, widths=(1, 2, 2, 3, 3, 4), condition_size=8),
    ModelConfig(window_size=128, hop_size=32, widths=(2, 3), condition_size=8),
]


def layers_of(config):
    return network_layers(config.widths, window_size=config.window_size, condition_size=config.condition_size)


def table_shapes(config):
    return {path: shape for layer in layers_of(config) for path, shape in layer.shapes.items()}


def shapes_of(tree):
    return {path: leaf.shape for path, leaf in flatten_dict(tree).items()}


def new_variables(config):
    return jax.eval_shape(functools.partial(init_variables, config), jax.random.key(0))


@pytest.mark.parametrize('config', CONFIGS)
def test_the_training_network_has_these_parameters(config):
    assert shapes_of(new_variables(config)) == table_shapes(config)


@pytest.mark.parametrize('config', CONFIGS)
def test_the_original_has_these_parameters(config):
    """Ours hold as many numbers as the original's tensors, and the fused FiLM matrix all of their columns."""
    sizes: dict[tuple[str, ...], int] = {}
    for tensor in torch_tensors(config):
        if tensor.path is not None:
            sizes[tensor.path] = sizes.get(tensor.path, 0) + math.prod(tensor.shape)
    assert sizes == {path: math.prod(shape) for path, shape in table_shapes(config).items()}
    assert len(torch_tensors(ModelConfig())) == 332


@pytest.mark.parametrize('config', CONFIGS)
def test_the_parameter_count_is_theirs(config):
    params = jax.tree.leaves(new_variables(config)['params'])
    assert cost.parameter_count(config) == sum(leaf.size for leaf in params)


@pytest.mark.parametrize('config', CONFIGS)
def test_the_folded_network_has_these_weights(config):
    weights = jax.eval_shape(functools.partial(folded.fold, config), new_variables(config))
    layers = {(layer.block, layer.name): layer for layer in layers_of(config)}
    norms = {f'{block}/{name}' for (block, name), layer in layers.items() if block and layer.kind == 'norm'}
    assert set(weights['norms']) == norms
    blocks = {}
    for (block, name), layer in layers.items():
        if block and layer.kind != 'norm':
            (shape, *bias) = layer.shapes.values()
            if block == f'decoder_block{len(config.widths)}' and name != 'upsample':
                # `after_conv` is folded into the last convolution and its shortcut, which then have 3 outputs.
                shape, bias = ((*shape[:-1], 3), [(3,)] if bias else []) if name != 'conv1' else (shape, bias)
            blocks.setdefault(block, {})[name] = {'kernel': shape, 'bias': bias[0]} if bias else shape
    assert jax.tree.map(lambda leaf: leaf.shape, weights['blocks']) == blocks


def test_levels_follow_the_pooling():
    scales = {layer.block: layer.scale for layer in layers_of(ModelConfig()) if layer.name == 'conv2'}
    lowest = tuple(np.prod(DOWNSAMPLING, axis=0))
    assert scales['encoder_block1'] == scales['decoder_block6'] == (1, 1)
    assert scales['encoder_block3'] == scales['decoder_block4'] == (4, 4)
    assert scales['bottleneck'] == lowest == (32, 64)


def test_film_layout_counts_every_shifted_norm():
    layout = film_layout((32, 64, 128, 256, 384, 384))
    assert len(layout) == 6 * 2 + 2 + 6 * 3
    assert sum(layout.values()) == 8256
    assert layout['decoder_block6/norm1'] == 64
