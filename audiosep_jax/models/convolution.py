"""The ResUNet's convolutions on NHWC arrays [B, N, F, C]: 3×3, 1×1, and transposed with a stride equal to the kernel.

Letters: B clips, N frames, F frequency bins, C and D channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

_ROW_PRODUCT_BINS = 128  # with fewer bins XLA's own gradient is as fast


def _precision(x: Array | np.ndarray) -> lax.Precision | None:
    """Asks for full precision in float32: by default GPUs would use TF32 and TPUs passes of bfloat16."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def matmul(x: Float[Array | np.ndarray, '... C'], kernel: Float[Array, 'C D']) -> Float[Array, '... D']:
    """The matrix product, in the full precision of its inputs' type."""
    return jnp.matmul(x, kernel, precision=_precision(x))


@jax.custom_vjp
def conv3x3(x: Float[Array, 'B N F C'], kernel: Float[Array, '3 3 C D']) -> Float[Array, 'B N F D']:
    """Convolves with zero padding of one frame and one bin.

    Its gradients are those of XLA's convolution, except that programs for the CPU compute the kernel's row by row.
    """
    return native_conv3x3(x, kernel)


def native_conv3x3(
    x: Float[Array, 'B N F C'], kernel: Float[Array, '3 3 C D'], *, frame_padding: int = 1
) -> Float[Array, 'B N-2+2*{frame_padding} F D']:
    """Does the same as `conv3x3` by XLA's convolution alone, derivatives included."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((frame_padding, frame_padding), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=_precision(x),
    )


def _conv3x3_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return native_conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: native_conv3x3(x, kernel), x)(g)

    def by_convolution(x: Array, g: Array) -> Array:
        (dkernel,) = jax.linear_transpose(lambda kernel: native_conv3x3(x, kernel), kernel)(g)
        return dkernel

    if x.shape[2] < _ROW_PRODUCT_BINS:
        return dx, by_convolution(x, g)
    # The choice is made at lowering, for the platform that the program is lowered for.
    return dx, lax.platform_dependent(x, g, cpu=_kernel_gradient_by_rows, default=by_convolution)


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


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
def _product(x: Array, kernel: Array) -> Array:
    """`matmul` whose kernel's gradient is one product of two matrices in the order that they have in memory.

    JAX would write it with the factors swapped, and XLA for the CPU would then make transposed copies of both.
    """
    return matmul(x, kernel)


def _product_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    dkernel = lax.dot_general(rows, g_rows, (((0,), (0,)), ((), ())), precision=_precision(x))
    return matmul(g, kernel.T), dkernel


_product.defvjp(lambda x, kernel: (matmul(x, kernel), (x, kernel)), _product_backward)


def conv1x1(x: Float[Array, '... C'], kernel: Float[Array, 'C D'], bias: Float[Array, ' D']) -> Float[Array, '... D']:
    """Applies the kernel to the channels at each position."""
    return _product(x, kernel) + bias


def upsample(x: Float[Array, 'B N F C'], kernel: Float[Array, 'C s t D']) -> Float[Array, 'B N*s F*t D']:
    """The transposed convolution whose stride is its kernel's size: a matrix product and a depth-to-space."""
    b, n, f, _ = x.shape
    c, s, t, c_out = kernel.shape
    y = _product(x, kernel.reshape(c, s * t * c_out)).reshape(b, n, f, s, t, c_out)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, n * s, f * t, c_out)


def average_pool(
    x: Float[Array, 'B N F C'], window: tuple[int, int]
) -> Float[Array, 'B N//{window[0]} F//{window[1]} C']:
    """Takes the mean over windows of (frames, bins)."""
    b, n, f, c = x.shape
    s, t = window
    return jnp.mean(x.reshape(b, n // s, s, f // t, t, c), axis=(2, 4))
