"""The convolutions by hand, and their gradients against those that JAX derives."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from audiosep_jax.models import convolution
from audiosep_jax.models.audiosep import AudioSep, ModelConfig, init_variables
from audiosep_jax.models.convolution import average_pool, conv3x3, upsample
from audiosep_jax.parallel.mesh import batch_sharded, make_mesh, replicated


def plain(x, kernel):
    """The convolution with the gradient that JAX derives."""
    layout = ('NHWC', 'HWIO', 'NHWC')
    highest = lax.Precision.HIGHEST
    return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=layout, precision=highest)


def arrays(*shapes, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def gradients(function, x, kernel, g):
    """The gradients of sum(function(x, kernel) * g) for x and the kernel."""
    return jax.jit(lambda x, kernel, g: jax.vjp(function, x, kernel)[1](g))(x, kernel, g)


def assert_close(ours, theirs, tolerance):
    assert ours.dtype == theirs.dtype
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_upsample_is_a_transposed_convolution():
    x, kernel = (0.1 * np.asarray(a) for a in arrays((2, 3, 4, 5), (5, 2, 2, 6)))
    expected = np.zeros((2, 6, 8, 6), np.float32)
    for n in range(3):
        for f in range(4):
            for i in range(2):
                for j in range(2):
                    expected[:, 2 * n + i, 2 * f + j] = x[:, n, f] @ kernel[:, i, j]
    np.testing.assert_allclose(upsample(jnp.asarray(x), jnp.asarray(kernel)), expected, atol=1e-6)


def test_conv3x3_and_average_pool_by_hand():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 1] = 1  # the frame before
    assert np.asarray(conv3x3(jnp.asarray(x), jnp.asarray(kernel)))[0, :, 0, 0].tolist() == [0, 0, 4, 8]
    assert np.asarray(average_pool(jnp.asarray(x), (1, 2)))[0, 0, :, 0].tolist() == [0.5, 2.5]


@hypothesis.settings(max_examples=12)
@hypothesis.given(
    b=st.integers(1, 3), n=st.integers(1, 5), f=st.integers(1, 7), c=st.integers(1, 4), c_out=st.integers(1, 4)
)
def test_row_products_are_the_kernel_s_gradient(b, n, f, c, c_out):
    x, kernel, g = arrays((b, n, f, c), (3, 3, c, c_out), (b, n, f, c_out))
    _, expected = gradients(plain, x, kernel, g)
    assert_close(jax.jit(convolution._kernel_gradient_by_rows)(x, g), expected, 1e-5)


@pytest.mark.parametrize('bins', [convolution._ROW_PRODUCT_BINS - 1, convolution._ROW_PRODUCT_BINS + 3])
def test_gradients_on_either_side_of_the_choice(bins):
    x, kernel, g = arrays((2, 6, bins, 5), (3, 3, 5, 3), (2, 6, bins, 3))
    np.testing.assert_array_equal(jax.jit(conv3x3)(x, kernel), jax.jit(plain)(x, kernel))
    for ours, theirs in zip(gradients(conv3x3, x, kernel, g), gradients(plain, x, kernel, g), strict=True):
        assert_close(ours, theirs, 1e-5)


def test_bfloat16_sums_in_float32():
    shapes = (2, 40, 130, 4), (3, 3, 4, 4), (2, 40, 130, 4)
    x, kernel, g = arrays(*shapes, dtype=jnp.bfloat16)
    exact = gradients(plain, *(a.astype(jnp.float32) for a in (x, kernel, g)))
    dx, dkernel = gradients(conv3x3, x, kernel, g)
    assert dx.dtype == dkernel.dtype == jnp.bfloat16
    assert_close(dkernel, exact[1].astype(jnp.bfloat16), 2**-8)
    assert_close(dx, exact[0].astype(jnp.bfloat16), 2**-7)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_gradients_of_a_product(dtype):
    x, kernel, g = arrays((2, 3, 5, 4), (4, 6), (2, 3, 5, 6), dtype=dtype)
    theirs = gradients(convolution.matmul, x, kernel, g)
    for ours, expected in zip(gradients(convolution.product, x, kernel, g), theirs, strict=True):
        assert_close(ours, expected, 1e-6 if dtype == jnp.float32 else 2**-7)


def squared(convolve):
    return lambda kernel, x: jnp.sum(jnp.tanh(convolve(x, kernel)) ** 2)


def test_under_remat():
    x, kernel = arrays((1, 4, 130, 3), (3, 3, 3, 3))
    ours = jax.jit(jax.grad(jax.checkpoint(squared(conv3x3))))(kernel, x)
    assert_close(ours, jax.jit(jax.grad(squared(plain)))(kernel, x), 1e-5)


def test_second_derivatives_are_right_or_refused():
    x, kernel, direction = arrays((1, 3, 130, 2), (3, 3, 2, 2), (3, 3, 2, 2))

    def along(convolve):
        return lambda kernel: jnp.vdot(jax.grad(squared(convolve))(kernel, x), direction)

    assert_close(jax.jit(jax.grad(along(conv3x3)))(kernel), jax.jit(jax.grad(along(plain)))(kernel), 1e-5)
    with pytest.raises(TypeError, match='forward-mode'):
        jax.jvp(lambda k: conv3x3(x, k), (kernel,), (direction,))


def test_vmap_over_kernels_of_one_input():
    x, kernels, g = arrays((1, 3, 130, 2), (2, 3, 3, 2, 2), (1, 3, 130, 2))
    each = jax.jit(jax.vmap(lambda k: jax.vjp(lambda k: conv3x3(x, k), k)[1](g)[0]))(kernels)
    for i in range(2):
        assert_close(each[i], gradients(plain, x, kernels[i], g)[1], 1e-5)


@pytest.mark.slow
@pytest.mark.nightly
def test_the_network_s_gradients_are_those_that_jax_derives(monkeypatch):
    """Compares every leaf, on maps whose widest level uses the gradient by rows."""
    config = ModelConfig(window_size=256, hop_size=64, widths=(4, 4, 6, 6, 8, 8), condition_size=8)
    assert config.window_size // 2 >= convolution._ROW_PRODUCT_BINS
    variables = init_variables(config, jax.random.key(0))
    mixtures, embeddings, targets = arrays((2, 2000), (2, 8), (2, 2000))

    def loss(params):
        weights = {**variables, 'params': params}
        out, _ = AudioSep(config).apply(weights, mixtures, embeddings, train=True, mutable=['batch_stats'])
        return jnp.mean((out - targets) ** 2)

    ours = jax.jit(jax.grad(loss))(variables['params'])
    monkeypatch.setattr(jax.custom_vjp, '__call__', lambda function, *arguments: function.fun(*arguments))
    derived = jax.jit(jax.grad(lambda params: loss(params)))(variables['params'])
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(derived))
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(derived), strict=True):
        tolerance = 1e-4 * np.abs(b).max() + 1e-6 * largest  # some gradients are rounding only
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(('platform', 'loops'), [('cpu', 1), ('cuda', 0), ('tpu', 0)])
def test_only_programs_for_the_cpu_loop_over_rows(platform, loops):
    """The platform that counts is that of the program, not of this process."""
    x, kernel, g = arrays((1, 4, 256, 2), (3, 3, 2, 2), (1, 4, 256, 2))
    traced = jax.jit(lambda x, kernel, g: jax.vjp(conv3x3, x, kernel)[1](g)).trace(x, kernel, g)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count('stablehlo.while') == loops
    # One convolution is the input's gradient; the other is the kernel's, unless it is computed by rows.
    assert program.count('stablehlo.convolution') == 2 - loops


def test_a_batch_split_over_devices_is_not_moved():
    """The partitioned program exchanges only the kernel's gradient, which is the sum over the whole batch."""
    mesh = make_mesh()
    x, kernel, g = arrays((16, 4, 130, 3), (3, 3, 3, 3), (16, 4, 130, 3))
    x, g = (jax.device_put(a, batch_sharded(mesh)) for a in (x, g))
    kernel = jax.device_put(kernel, replicated(mesh))
    backward = jax.jit(
        lambda x, kernel, g: jax.vjp(conv3x3, x, kernel)[1](g), out_shardings=(batch_sharded(mesh), replicated(mesh))
    )
    program = backward.lower(x, kernel, g).compile().as_text()
    assert re.findall(r'(?:all|reduce|collective)[-a-z]*(?=\()', program).count('all-reduce') == 1
    assert not re.search(r' (all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(', program)
    dx, dkernel = backward(x, kernel, g)
    assert dx.sharding.is_equivalent_to(batch_sharded(mesh), dx.ndim)
    for ours, theirs in zip((dx, dkernel), gradients(plain, *map(np.asarray, (x, kernel, g))), strict=True):
        assert_close(ours, theirs, 1e-5)
