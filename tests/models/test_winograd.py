"""Winograd's convolution against XLA's, by itself and in the folded network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.noisy_separator import sound

from audiosep_jax.models import folded, winograd
from audiosep_jax.models.audiosep import ModelConfig, init_variables
from audiosep_jax.models.convolution import native_conv3x3
from audiosep_jax.separation.network import Network
from audiosep_jax.separation.separator import Separator

WIDE = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2, 128))


def arrays(*shape, seed=0):
    x, kernel = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    b, n, f, c, d = shape
    kernel = kernel.standard_normal((3, 3, c, d)) / np.sqrt(9 * c)
    return jnp.asarray(x.standard_normal((b, n, f, c)), jnp.float32), jnp.asarray(kernel, jnp.float32)


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('shape', [(2, 8, 12, 5, 7), (1, 3, 1, 4, 4), (1, 7, 6, 128, 130), (1, 34, 17, 3, 2)])
def test_it_is_the_convolution(shape, padding):
    x, kernel = arrays(*shape)
    expected = native_conv3x3(x, kernel, frame_padding=padding)
    found = jax.jit(functools.partial(winograd.convolve, frame_padding=padding))(x, winograd.transform_kernel(kernel))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(jnp.abs(expected).max()))


def test_its_error_is_a_few_times_that_of_the_plain_convolution():
    x, kernel = arrays(1, 16, 16, 256, 256)
    exact = native_in_float64(np.asarray(x), np.asarray(kernel))
    plain = np.abs(native_conv3x3(x, kernel) - exact).max()
    found = np.abs(winograd.convolve(x, winograd.transform_kernel(kernel)) - exact).max()
    assert plain < found < 30 * plain
    assert found < 2e-5 * np.abs(exact).max()


def native_in_float64(x, kernel):
    padded = np.pad(x.astype(np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)])
    n, f = x.shape[1:3]
    return sum(padded[:, i : i + n, j : j + f] @ kernel[i, j].astype(np.float64) for i in range(3) for j in range(3))


def test_gradients_are_those_of_the_convolution():
    x, kernel = arrays(1, 6, 9, 4, 4)
    weight = jnp.cos(jnp.arange(1 * 6 * 9 * 4.0)).reshape(1, 6, 9, 4)
    transformed = winograd.transform_kernel(kernel)
    found = jax.grad(lambda x: jnp.sum(weight * winograd.convolve(x, transformed)))(jnp.asarray(x))
    expected = jax.grad(lambda x: jnp.sum(weight * native_conv3x3(x, kernel)))(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_only_wide_kernels_in_float32_are_transformed():
    kernels = {
        name: winograd.pays(arrays(1, 1, 1, *shape)[1])
        for name, shape in {'wide': (128, 384), 'narrow': (64, 64), 'one side': (384, 3)}.items()
    }
    assert kernels == {'wide': True, 'narrow': False, 'one side': False}
    assert not winograd.pays(arrays(1, 1, 1, 128, 128)[1].astype(jnp.bfloat16))
    blocks = folded.fold(WIDE, init_variables(WIDE, jax.random.key(0)), transformed=True)['blocks']
    found = {f'{block}/{name}' for block, kernels in blocks.items() for name in kernels if 'conv' in name}
    found = {name for name in found if winograd.is_transformed(blocks[name.split('/')[0]][name.split('/')[1]])}
    expected = ['encoder_block2/conv2', 'decoder_block1/conv1', 'decoder_block1/conv2']
    assert found == {*expected, 'bottleneck/conv1', 'bottleneck/conv2'}


def test_kernels_of_the_deepest_blocks_are_left_as_they_are():
    """There, a piece of a recording has one to four frames."""
    deep = dataclasses.replace(WIDE, widths=(128,) * 6)
    variables = jax.eval_shape(functools.partial(init_variables, deep), jax.random.key(0))
    blocks = jax.eval_shape(functools.partial(folded.fold, deep, transformed=True), variables)['blocks']
    plain = {name for name, block in blocks.items() if block['conv1'].shape[0] == 3}
    assert plain == {'encoder_block6', 'bottleneck', 'decoder_block1'}


def test_recordings_and_pieces_are_those_of_the_plain_network():
    variables, x = init_variables(WIDE, jax.random.key(0)), sound(5000)
    embedding = np.random.default_rng(0).standard_normal(WIDE.condition_size).astype(np.float32)
    separators = [Separator(WIDE, variables), Separator(WIDE, variables, max_whole_seconds=0.1)]
    plain = Separator(WIDE, variables)
    plain._network = Network(WIDE, folded.fold(WIDE, variables))
    expected = plain.separate(x, embedding, sample_rate=8000).targets
    assert np.abs(expected).max() > 0.01
    for separator in separators:
        assert separator.network.weights['blocks']['bottleneck']['conv1'].shape[0] == 6
        found = separator.separate(x, embedding, sample_rate=8000).targets
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        assert not np.array_equal(found, expected)
