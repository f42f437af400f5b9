"""Packed arrays: every layer does on them what it does on others, and so does the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiosep_jax.models.audiosep import AudioSep, ModelConfig, init_variables
from audiosep_jax.models.convolution import average_pool, conv1x1, native_conv3x3, upsample
from audiosep_jax.models.normalization import batch_statistics
from audiosep_jax.models.packing import (
    lanes_of,
    pack_conv1x1,
    pack_conv3x3,
    pack_upsampling,
    packing_of,
    packings_of,
    repack,
    tile,
    untile_sum,
)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def pack(x, packing):
    b, n, f, c = x.shape
    return x.reshape(b, n, f // packing, packing * c)


@pytest.mark.parametrize(
    ('lanes', 'channels', 'bins', 'packing'),
    [(1, 32, 1024, 1), (128, 32, 1024, 4), (128, 64, 512, 2), (128, 384, 64, 1), (128, 48, 64, 2), (128, 2, 6, 2)],
)
def test_channels_fill_the_lanes_as_far_as_the_bins_can_be_grouped(lanes, channels, bins, packing):
    assert packing_of(lanes, channels, bins) == packing


def test_bins_and_maps_fill_the_lanes_if_rows_fill_the_sublanes():
    assert [packings_of(128, 32, 1024, rows) for rows in (8, 16, 2)] == [(128, 4, 32), (4, 4, 4), (4, 4, 4)]
    assert packings_of(1, 32, 1024, rows=8) == (1, 1, 1)


def test_only_tpus_have_lanes_to_fill():
    assert [lanes_of(platform) for platform in ('tpu', 'cpu', 'gpu', 'cuda')] == [128, 1, 1, 1]


@pytest.mark.parametrize('packing', [1, 2, 8])
def test_a_packed_kernel_does_the_same(packing):
    x, kernel3, kernel1, bias = noise(2, 5, 16, 3), noise(3, 3, 3, 4, seed=1), noise(3, 4, seed=2), noise(4, seed=3)
    convolved = native_conv3x3(pack(x, packing), pack_conv3x3(kernel3, packing))
    np.testing.assert_allclose(convolved, pack(native_conv3x3(x, kernel3), packing), atol=1e-5)
    mapped = conv1x1(pack(x, packing), pack_conv1x1(kernel1, packing), tile(bias, packing))
    np.testing.assert_allclose(mapped, pack(conv1x1(x, kernel1, bias), packing), atol=1e-5)


@pytest.mark.parametrize('packing', [1, 2, 4])
def test_pooling_and_upsampling_change_the_packing(packing):
    x, kernel = noise(2, 4, 16, 3), noise(3, 2, 2, 5, seed=1)
    pooled = average_pool(pack(x, packing), (2, 2), packing)
    np.testing.assert_allclose(pooled, pack(average_pool(x, (2, 2)), max(packing // 2, 1)), atol=1e-6)
    larger = upsample(pack(x, packing), kernel, (packing, 2 * packing))
    np.testing.assert_allclose(larger, pack(upsample(x, kernel), 2 * packing), atol=1e-5)
    assert pack_upsampling(kernel, packing).shape == (3 * packing, 2, 2 * packing * 5)


def test_packing_again_is_packing_otherwise():
    x = noise(2, 4, 16, 3)
    for channels in (6, 12, 48):
        np.testing.assert_array_equal(repack(pack(x, 4), channels), pack(x, channels // 3))


def test_what_belongs_to_a_channel():
    x = noise(2, 3, 8, 5)
    vector = noise(5, seed=1)
    np.testing.assert_array_equal(pack(x + vector, 4), pack(x, 4) + tile(vector, 4))
    np.testing.assert_allclose(untile_sum(pack(x, 4).sum((0, 1, 2)), 4), x.sum((0, 1, 2)), atol=1e-5)
    for ours, theirs in zip(batch_statistics(pack(x, 4), vector), batch_statistics(x, vector), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
def test_the_network_is_the_same_packed():
    """Output, statistics and every gradient, with all packings from 64 to 1."""
    config = ModelConfig(sample_rate=8000, window_size=256, hop_size=64, widths=(8,) * 6, condition_size=8)
    assert packings_of(64, 8, 128, rows=8) == (64, 8, 16)
    variables = init_variables(config, jax.random.key(0))
    mixtures, embeddings, targets = noise(8, 300), noise(8, 8, seed=1), noise(8, 300, seed=2)

    def step(lanes):
        model = AudioSep(config, lanes=lanes)

        def loss(params):
            weights = {**variables, 'params': params}
            out, updated = model.apply(weights, mixtures, embeddings, train=True, mutable=['batch_stats'])
            return jnp.mean((out - targets) ** 2), (out, updated)

        (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'])
        return *found, gradients

    (out, statistics, gradients), (packed_out, packed_statistics, packed_gradients) = step(1), step(64)
    np.testing.assert_allclose(packed_out, out, atol=5e-5 * np.abs(out).max())
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    for ours, theirs in ((packed_statistics, statistics), (packed_gradients, gradients)):
        for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
            tolerance = 5e-4 * np.abs(b).max() + 1e-6 * largest  # some gradients are rounding only
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))
