"""The ResUNet's convolutions on NHWC arrays [B, N, F, C]: 3×3, 1×1, and transposed with a stride equal to the kernel.

Letters: B clips, N frames, F frequency bins, C and D channels.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from audiosep_jax.models.barriers import barrier_except_on_tpus, barrier_on_tpus
from audiosep_jax.models.packing import pack_upsampling

_FEW_CHANNELS = 3  # as many as there are maps
_ROW_PRODUCT_BINS = 64  # with fewer bins XLA's own gradient is about as fast


def _precision(x: Array | np.ndarray) -> lax.Precision | None:
    """Asks for full precision in float32: by default GPUs would use TF32 and TPUs passes of bfloat16."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def matmul(x: Float[Array | np.ndarray, '... C'], kernel: Float[Array, 'C D']) -> Float[Array, '... D']:
    """The matrix product, in the full precision of its inputs' type."""
    return jnp.matmul(x, kernel, precision=_precision(x))


@jax.custom_vjp
def conv3x3(x: Float[Array, 'B N F C'], kernel: Float[Array, '3 3 C D']) -> Float[Array, 'B N F D']:
    """Convolves with zero padding of one frame and one bin; its gradients are those of `conv3x3_gradients`."""
    return native_conv3x3(x, kernel)


def _conv3x3_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,), (dkernel,) = conv3x3_gradients(x, [kernel], g)
    return dx, dkernel


conv3x3.defvjp(lambda x, kernel: (native_conv3x3(x, kernel), (x, kernel)), _conv3x3_backward)


def joined(arrays: Sequence[Array], axis: int) -> Array:
    """Puts arrays side by side."""
    return jnp.concatenate(arrays, axis) if len(arrays) > 1 else arrays[0]


def native_conv3x3(
    x: Float[Array, 'B N F C'], kernel: Float[Array, '3 3 C D'], *, frame_padding: int = 1
) -> Float[Array, 'B N-2+2*{frame_padding} F D']:
    """Does the same as `conv3x3` by XLA's convolution alone, derivatives included."""
    return _convolve(x, kernel, padding=((frame_padding, frame_padding), (1, 1)))


def _convolve(
    x: Float[Array, 'B N F C'],
    kernel: Float[Array, 's t C D'],
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
) -> Float[Array, 'B N_out F_out D']:
    layout = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=layout, precision=_precision(x))


def conv3x3_gradients(
    x: Float[Array, 'B N F C'], kernels: list[Float[Array, '3 3 _ D']], g: Float[Array, 'B N F D']
) -> tuple[list[Array], list[Array]]:
    """Returns the gradients of joined arrays and of their parts of the kernel.

    They are those of XLA's convolution, except that programs for the CPU compute the kernel's row by row.

    Args:
        x: arrays side by side in the channels.
        kernels: of each array.
        g: the output's gradient.
    """

    def input_gradient(kernel: Array) -> Array:
        like = jax.ShapeDtypeStruct((*x.shape[:-1], kernel.shape[2]), x.dtype)
        (dx,) = jax.linear_transpose(lambda x: native_conv3x3(x, kernel), like)(g)
        return dx

    def by_convolution(x: Array, g: Array) -> Array:
        kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
        (dkernel,) = jax.linear_transpose(lambda kernel: native_conv3x3(x, kernel), kernel)(g)
        return dkernel

    if x.shape[2] < _ROW_PRODUCT_BINS:
        dkernel = by_convolution(x, g)
    else:
        # The choice is made at lowering, for the platform that the program is lowered for.
        dkernel = lax.platform_dependent(x, g, cpu=_kernel_gradient_by_rows, default=by_convolution)
    ends = np.cumsum([kernel.shape[2] for kernel in kernels])[:-1]
    # A barrier has the kernel's gradient computed now, while x is there, rather than at the end of the step. On a TPU
    # it must not be between dx and what is computed of it, which is one operation with the convolution.
    dkernel, g = barrier_on_tpus((dkernel, g))
    dx, dkernel = barrier_except_on_tpus(([input_gradient(kernel) for kernel in kernels], dkernel))
    return dx, jnp.split(dkernel, ends, axis=2)


def _kernel_gradient_by_rows(x: Float[Array, 'B N F C'], g: Float[Array, 'B N F D']) -> Float[Array, '3 3 C D']:
    """Computes the kernel's gradient of a 3×3 convolution of x, whose output has the gradient g.

    On a CPU, XLA computes it as a convolution with a kernel of N × F, which is two to four times slower. Here each
    frame adds three products of matrices that stay in the cache: [3 * C, F], the frame and its neighbors, times [F, D],
    the output's gradient shifted by one bin for each column of the kernel. The left matrix is transposed beforehand,
    because XLA's product with a transposed matrix is slow; the shifts are contiguous slices of the right matrix. Batch
    and frames remain separate axes, so that a batch split over devices is not moved and only the sum is exchanged.
    """
    b, n, f, c = x.shape
    c_out = g.shape[-1]
    # Without the barrier XLA would repeat the transposition in every iteration.
    rows = lax.optimization_barrier(jnp.pad(x.transpose(0, 1, 3, 2), [(0, 0), (1, 1), (0, 0), (0, 0)]))
    g = jnp.pad(g, [(0, 0), (0, 0), (1, 1), (0, 0)])

    def add_frame(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        three = lax.dynamic_slice_in_dim(rows, i, 3, axis=1).reshape(b, 3 * c, f)
        shifted = lax.dynamic_index_in_dim(g, i, axis=1, keepdims=False)
        return tuple(
            total
            + jnp.matmul(
                three,
                shifted[:, 2 - column : 2 - column + f],
                precision=lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
            for column, total in enumerate(sums)
        )

    zeros = jnp.zeros((b, 3 * c, c_out), jnp.float32)
    sums = lax.fori_loop(0, n, add_frame, (zeros, zeros, zeros))
    kernel = jnp.stack(sums).sum(axis=1).reshape(3, 3, c, c_out).transpose(1, 0, 2, 3)
    return kernel.astype(x.dtype)


@jax.custom_vjp
def product(x: Float[Array, '... C'], kernel: Float[Array, 'C D']) -> Float[Array, '... D']:
    """`matmul`, as fast as each platform can; for arrays with four axes, as activations have.

    The kernel's gradient is one product of two matrices in the order that they have in memory. JAX would write it with
    the factors swapped, and XLA for the CPU would then make transposed copies of both.
    """
    if x.ndim != 4:
        return matmul(x, kernel)
    # XLA for GPUs pads the results of products to eight channels; those of convolutions need not be. XLA for TPUs lays
    # out products differently from convolutions, with copies of whole activations in between.
    default = _convolve1x1 if _is_narrow(kernel) else matmul
    return lax.platform_dependent(x, kernel, cpu=matmul, tpu=_convolve1x1, default=default)


def _convolve1x1(x: Float[Array, 'B N F C'], kernel: Float[Array, 'C D']) -> Float[Array, 'B N F D']:
    return _convolve(x, kernel[None, None])


def _is_narrow(kernel: Array) -> bool:
    return kernel.shape[1] <= _FEW_CHANNELS


def _product_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def by_convolution(x: Array, g: Array) -> Array:
        (dkernel,) = jax.linear_transpose(lambda kernel: _convolve1x1(x, kernel), kernel)(g)
        return dkernel

    def by_product(x: Array, g: Array) -> Array:
        rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        return lax.dot_general(rows, g_rows, (((0,), (0,)), ((), ())), precision=_precision(x))

    if x.ndim != 4:
        return matmul(g, kernel.T), by_product(x, g)
    if _is_narrow(kernel):
        dkernel = lax.platform_dependent(x, g, cpu=by_product, default=by_convolution)
        # Written out, XLA computes it where it is needed rather than keep it in memory.
        parts = (g[..., i : i + 1].astype(jnp.float32) * kernel[:, i].astype(jnp.float32) for i in range(g.shape[-1]))
        return functools.reduce(jnp.add, parts).astype(x.dtype), dkernel
    dkernel = lax.platform_dependent(x, g, tpu=by_convolution, default=by_product)
    return lax.platform_dependent(g, kernel.T, tpu=_convolve1x1, default=matmul), dkernel


product.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _product_backward)


def conv1x1(x: Float[Array, '... C'], kernel: Float[Array, 'C D'], bias: Float[Array, ' D']) -> Float[Array, '... D']:
    """Applies the kernel to the channels at each position."""
    return product(x, kernel) + bias


def upsample(
    x: Float[Array, 'B N G _'], kernel: Float[Array, 'C s t D'], packing: tuple[int, int] = (1, 1)
) -> Float[Array, 'B N_up G_up _']:
    """The transposed convolution whose stride is its kernel's size.

    Args:
        x: packed or not.
        kernel: of s frames and t bins.
        packing: of x and of the result.
    """
    before, after = packing
    return _upsample(x, pack_upsampling(kernel, before).astype(x.dtype), after * kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _upsample(x: Float[Array, 'B N G C'], kernel: Float[Array, 'C s tD'], channels: int) -> Float[Array, 'B N_up _ _']:
    # On a CPU a matrix product, whose results are then put in order, is faster.
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_upsample_by_product, channels=channels),
        default=functools.partial(_upsample_by_convolution, channels=channels),
    )


def _upsample_by_product(x: Array, kernel: Array, channels: int) -> Array:
    b, n, g, _ = x.shape
    c, s, width = kernel.shape
    y = matmul(x, kernel.reshape(c, s * width)).reshape(b, n, g, s, width // channels, channels)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, n * s, -1, channels)


def _upsample_by_convolution(x: Array, kernel: Array, channels: int) -> Array:
    taps = _taps(kernel, channels)
    s, t = taps.shape[:2]
    # The gradient of a strided convolution, in the form in which XLA for GPUs knows it.
    return lax.conv_general_dilated(
        x,
        lax.rev(taps, (0, 1)),
        (1, 1),
        ((s - 1, s - 1), (t - 1, t - 1)),
        lhs_dilation=(s, t),
        dimension_numbers=('NHWC', 'HWOI', 'NHWC'),
        precision=_precision(x),
    )


def _strided(y: Float[Array, 'B N_up G_up D'], kernel: Float[Array, 'C s tD'], channels: int) -> Array:
    """The convolution of which `upsample` is the transpose."""
    taps = _taps(kernel, channels)
    return _convolve(y, taps, stride=taps.shape[:2])


def _taps(kernel: Float[Array, 'C s tD'], channels: int) -> Float[Array, 's t D C']:
    c, s, width = kernel.shape
    return kernel.reshape(c, s, width // channels, channels).transpose(1, 2, 3, 0)


def _upsample_forward(x: Array, kernel: Array, channels: int) -> tuple[Array, tuple[Array, Array]]:
    return _upsample(x, kernel, channels), (x, kernel)


def _upsample_backward(channels: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    def by_product(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        b, n, groups, _ = x.shape
        c, s, width = kernel.shape
        g = g.reshape(b, n, s, groups, width // channels, channels).transpose(0, 1, 3, 2, 4, 5)
        dx, dkernel = _product_backward((x, kernel.reshape(c, s * width)), g.reshape(b, n, groups, s * width))
        return dx, dkernel.reshape(kernel.shape)

    def by_convolution(x: Array, kernel: Array, g: Array) -> tuple[Array, Array]:
        (dkernel,) = jax.linear_transpose(lambda kernel: _strided(g, kernel, channels), kernel)(x)
        return _strided(g, kernel, channels), dkernel

    return lax.platform_dependent(*saved, g, cpu=by_product, default=by_convolution)


_upsample.defvjp(_upsample_forward, _upsample_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def average_pool(
    x: Float[Array, 'B N G C'], window: tuple[int, int], packing: int = 1
) -> Float[Array, 'B N//{window[0]} G_down C_down']:
    """Takes the mean over windows of (frames, bins).

    Args:
        x: packed or not. If bins are packed together, those of a window are, and the result is packed by that less.
        window: (frames, bins).
        packing: of x.
    """
    # Without the barrier, XLA keeps the sums in float32 for what follows, which are as large as twice the means.
    return lax.optimization_barrier(
        lax.platform_dependent(
            x,
            cpu=functools.partial(_mean_by_sums, window=window, packing=packing),
            cuda=functools.partial(_mean_by_sums, window=window, packing=packing),
            default=functools.partial(_mean_by_convolution, window=window, packing=packing),
        )
    )


def _mean_by_sums(x: Array, window: tuple[int, int], packing: int) -> Array:
    b, n, g, width = x.shape
    s, t = window
    bins = x.reshape(b, n // s, s, g * packing // t, t, width // packing)
    return jnp.mean(bins, axis=(2, 4)).reshape(b, n // s, -1, _pooled_width(window, packing, width))


def _mean_by_convolution(x: Array, window: tuple[int, int], packing: int) -> Array:
    """A TPU has no better way to add up frames, or channels, than to multiply them by a constant matrix."""
    s, t = window
    width = x.shape[-1]
    if packing > 1:
        mean = np.kron(np.kron(np.eye(packing // t), np.ones((t, 1))), np.eye(width // packing))[None, None] / (s * t)
        taps, stride = np.repeat(mean, s, axis=0), (s, 1)
    else:
        taps, stride = np.broadcast_to(np.eye(width) / (s * t), (s, t, width, width)), window
    return _convolve(x, jnp.asarray(taps, x.dtype), stride)


def _pooled_width(window: tuple[int, int], packing: int, width: int) -> int:
    return width // window[1] if packing > 1 else width


def _average_pool_backward(window: tuple[int, int], packing: int, shape: tuple[int, ...], g: Array) -> tuple[Array]:
    b, n, groups, width = shape
    s, t = window

    def by_broadcast(g: Array) -> Array:
        each = (g * (1 / (s * t))).reshape(b, n // s, 1, groups * packing // t, 1, width // packing)
        return jnp.broadcast_to(each, (b, n // s, s, groups * packing // t, t, width // packing)).reshape(shape)

    def by_convolution(g: Array) -> Array:
        x = jax.ShapeDtypeStruct(shape, g.dtype)
        return jax.linear_transpose(lambda x: _mean_by_convolution(x, window, packing), x)(g)[0]

    return (lax.platform_dependent(g, cpu=by_broadcast, cuda=by_broadcast, default=by_convolution),)


average_pool.defvjp(lambda x, window, packing: (average_pool(x, window, packing), x.shape), _average_pool_backward)
