"""3×3 convolutions on a CPU with a quarter of the multiplications, by Winograd's F(4×4, 3×3).

The input is cut into tiles of 6×6 that overlap by two, and each gives 4×4 outputs. A linear transformation turns tiles
and kernel into 36 numbers for each channel, between which the convolution is a product of matrices; another one turns
the products into outputs (Lavin and Gray, arXiv 1509.09308). It pays where there are so many channels that the products
outweigh the transformations. In float32 a convolution's error is about 1e-5 of its largest output, ten times as much as
of the plain one; the masks of the whole network differ by about 1e-6.

Letters: B clips, N frames, F frequency bins, C and D channels, t tiles.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

_SIDE = 4  # of the outputs of a tile
_TILE = _SIDE + 2
_LEAST_CHANNELS = 128
# The transformations for the points 0, 1, -1, 2, -2 and infinity.
_OF_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_OF_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_OF_PRODUCTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def pays(kernel: Float[Array, '3 3 C D']) -> bool:
    """Whether a convolution with this kernel is faster if the kernel is transformed."""
    return kernel.dtype == jnp.float32 and min(kernel.shape[2:]) >= _LEAST_CHANNELS


def transform_kernel(kernel: Float[Array, '3 3 C D']) -> Float[Array, '6 6 C D']:
    """Transforms a kernel for `convolve`."""
    matrix = jnp.asarray(_OF_KERNEL, kernel.dtype)
    return jnp.einsum('ia,jb,abcd->ijcd', matrix, matrix, kernel, precision=lax.Precision.HIGHEST)


def is_transformed(kernel: Float[Array, 's s C D']) -> bool:
    """Whether a kernel is one for `convolve`."""
    return kernel.shape[0] == _TILE


def convolve(
    x: Float[Array, 'B N F C'], kernel: Float[Array, '6 6 C D'], *, frame_padding: int = 1
) -> Float[Array, 'B N-2+2*{frame_padding} F D']:
    """Does the same as `convolution.native_conv3x3` with the kernel before its transformation."""
    b, n, bins, c = x.shape
    frames, d = n - 2 + 2 * frame_padding, kernel.shape[-1]
    rows, columns = -(-frames // _SIDE), -(-bins // _SIDE)
    # A tile reaches two numbers into the next one, so there is one more of them at the end.
    after = (rows + 1) * _SIDE - n - frame_padding, (columns + 1) * _SIDE - bins - 1
    x = jnp.pad(x, [(0, 0), (frame_padding, after[0]), (1, after[1]), (0, 0)])
    x = x.reshape(b, rows + 1, _SIDE, columns + 1, _SIDE, c)

    def part(x: Array, axis: int, number: int, count: int) -> Array:
        """Takes one frame, or bin, of every tile."""
        first, place = divmod(number, _SIDE)
        tiles = lax.slice_in_dim(x, first, first + count, axis=axis)
        return lax.index_in_dim(tiles, place, axis=axis + 1, keepdims=False)

    # Each transformation is in two steps, first of the frames and then of the bins. Without the barriers, XLA computes
    # the first step again for each result of the second.
    x = jnp.stack(_combined(_OF_INPUT, [part(x, 1, i, rows) for i in range(_TILE)]))
    x = lax.optimization_barrier(x)
    x = jnp.stack(_combined(_OF_INPUT, [part(x, 3, j, columns) for j in range(_TILE)]), axis=1)
    x = lax.optimization_barrier(x).reshape(_TILE**2, -1, c)
    y = jnp.matmul(x, kernel.reshape(_TILE**2, c, d), precision=lax.Precision.HIGHEST)
    y = lax.optimization_barrier(y).reshape(_TILE, _TILE, b, rows, columns, d)
    y = lax.optimization_barrier(jnp.stack(_combined(_OF_PRODUCTS, list(y))))
    y = jnp.stack(_combined(_OF_PRODUCTS, [y[:, j] for j in range(_TILE)]), axis=4)
    y = y.transpose(1, 2, 0, 3, 4, 5).reshape(b, rows * _SIDE, columns * _SIDE, d)
    return y[:, :frames, :bins]


def _combined(matrix: np.ndarray, arrays: list[Array]) -> list[Array]:
    """Multiplies a matrix of few and simple numbers by a vector of arrays."""
    results = []
    for row in matrix:
        terms = [
            array if factor == 1 else -array if factor == -1 else float(factor) * array
            for factor, array in zip(row, arrays, strict=True)
            if factor
        ]
        results.append(sum(terms[1:], terms[0]))
    return results
