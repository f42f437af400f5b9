"""The convolutions of the ResUNet on NHWC arrays [B, N, F, C]: 3×3, 1×1, and the transposed one (kernel = stride)."""

import jax
import jax.numpy as jnp
from jax import lax

_ROW_PRODUCT_BINS = 128  # below so many bins XLA's gradient is as fast


def _precision(x: jax.Array) -> lax.Precision | None:
    """float32 means float32: by default GPUs would compute it as TF32 and TPUs in bfloat16 passes."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., C] with [C, C'] -> [..., C'], in the precision that the type says."""
    return jnp.matmul(x, kernel, precision=_precision(x))


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, N, F, C] with a kernel [3, 3, C, C'] -> [B, N, F, C'], zero padding of one frame and one bin.

    Its gradient is that of XLA's convolution, except that programs for the CPU compute the kernel's by rows.
    """
    return native_conv3x3(x, kernel)


def native_conv3x3(x: jax.Array, kernel: jax.Array, *, frame_padding: int = 1) -> jax.Array:
    """`conv3x3` as XLA has it, derivatives included: [B, N, F, C] -> [B, N - 2 + 2 * frame_padding, F, C']."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((frame_padding, frame_padding), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=_precision(x),
    )


def _conv3x3_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return native_conv3x3(x, kernel), (x, kernel)


def _conv3x3_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: native_conv3x3(x, kernel), x)(g)

    def by_convolution(x, g):
        (dkernel,) = jax.linear_transpose(lambda kernel: native_conv3x3(x, kernel), kernel)(g)
        return dkernel

    if x.shape[2] < _ROW_PRODUCT_BINS:
        return dx, by_convolution(x, g)
    # Chosen when a program is lowered, for the platform that it is lowered for.
    return dx, lax.platform_dependent(x, g, cpu=_kernel_gradient_by_rows, default=by_convolution)


conv3x3.defvjp(_conv3x3_forward, _conv3x3_backward)


def _kernel_gradient_by_rows(x: jax.Array, g: jax.Array) -> jax.Array:
    """Of a 3×3 convolution of x [B, N, F, C] whose output has the gradient g [B, N, F, C']: [3, 3, C, C'].

    XLA's own, on a CPU, is a convolution with a kernel of N × F, two to four times slower. Here each frame adds three
    products of matrices that stay in cache: [3 * C, F], the frame and its neighbours, by [F, C'], its gradient shifted
    by a bin for each column of the kernel. The left one is transposed beforehand, since XLA's product of a transposed
    matrix is slow; the shifts are contiguous slices of the right one. Batch and frames stay axes of their own, so that
    a batch split over devices stays where it is and only the sum over it is exchanged.
    """
    b, n, f, c = x.shape
    c_out = g.shape[-1]
    # The barrier keeps XLA from redoing the transposition in every turn of the loop.
    rows = lax.optimization_barrier(jnp.pad(x.transpose(0, 1, 3, 2), [(0, 0), (1, 1), (0, 0), (0, 0)]))
    g = jnp.pad(g, [(0, 0), (0, 0), (1, 1), (0, 0)])

    def add_frame(i, sums):
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
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`matmul` whose kernel's gradient is written as one product of two matrices as they lie in memory.

    JAX writes it with the factors swapped, and XLA for the CPU then copies both, transposed.
    """
    return matmul(x, kernel)


def _product_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows, g_rows = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    dkernel = lax.dot_general(rows, g_rows, (((0,), (0,)), ((), ())), precision=_precision(x))
    return matmul(g, kernel.T), dkernel


_product.defvjp(lambda x, kernel: (matmul(x, kernel), (x, kernel)), _product_backward)


def conv1x1(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[B, N, F, C] with a kernel [C, C'] and a bias [C'] -> [B, N, F, C']."""
    return _product(x, kernel) + bias


def upsample(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution whose stride is its kernel's size: a dot and a depth-to-space.

    [B, N, F, C] with a kernel [C, s, t, C'] -> [B, N * s, F * t, C'].
    """
    b, n, f, _ = x.shape
    c, s, t, c_out = kernel.shape
    y = _product(x, kernel.reshape(c, s * t * c_out)).reshape(b, n, f, s, t, c_out)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, n * s, f * t, c_out)


def average_pool(x: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Mean over windows of (frames, bins): [B, N, F, C] -> [B, N / s, F / t, C]."""
    b, n, f, c = x.shape
    s, t = window
    return jnp.mean(x.reshape(b, n // s, s, f // t, t, c), axis=(2, 4))
