"""The convolutions of the ResUNet on NHWC arrays [B, N, F, C]: 3×3, 1×1, and the transposed one (kernel = stride)."""

import jax
import jax.numpy as jnp
from jax import lax


def _precision(x: jax.Array) -> lax.Precision | None:
    """float32 means float32: by default GPUs would compute it as TF32 and TPUs in bfloat16 passes."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., C] with [C, C'] -> [..., C'], in the precision that the type says."""
    return jnp.matmul(x, kernel, precision=_precision(x))


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, N, F, C] with a kernel [3, 3, C, C'] -> [B, N, F, C'], zero padding of one frame and one bin."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=_precision(x),
    )


def conv1x1(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[B, N, F, C] with a kernel [C, C'] and a bias [C'] -> [B, N, F, C']."""
    return matmul(x, kernel) + bias


def upsample(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution whose stride is its kernel's size: a dot and a depth-to-space.

    [B, N, F, C] with a kernel [C, s, t, C'] -> [B, N * s, F * t, C'].
    """
    b, n, f, _ = x.shape
    c, s, t, c_out = kernel.shape
    y = matmul(x, kernel.reshape(c, s * t * c_out)).reshape(b, n, f, s, t, c_out)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, n * s, f * t, c_out)


def average_pool(x: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Mean over windows of (frames, bins): [B, N, F, C] -> [B, N / s, F / t, C]."""
    b, n, f, c = x.shape
    s, t = window
    return jnp.mean(x.reshape(b, n // s, s, f // t, t, c), axis=(2, 4))
