"""Packed arrays: neighboring bins side by side in the channels, so that narrow layers fill wide hardware.

A TPU computes on 128 channels at once, and pads an array of 32 channels to four times its size, in memory and in the
matrix unit. Packing by 4 makes [B, N, F, 32] an array [B, N, F/4, 128] of the same numbers in the same order. A layer
has an equal on packed arrays, whose kernel is made of the same parameters: for a 1×1 convolution a block-diagonal
kernel, for a 3×3 one a banded kernel, since a bin's neighbors are in the same channels or in those of the next group.
Zeros make up the rest; the matrix unit multiplies them faster than it would leave its lanes empty.

Letters: B clips, N frames, F bins, C and D channels, p packing (a power of two).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

_SUBLANES = 8  # of a TPU


def lanes_of(platform: str) -> int:
    """Returns how many channels a platform computes at once, or 1 where packing would only add zeros to multiply."""
    return 128 if platform == 'tpu' else 1


def packing_of(lanes: int, channels: int, bins: int) -> int:
    """Returns by how much an array is packed so that its channels fill `lanes`, if the bins can be grouped so."""
    packing = 1
    while packing * channels * 2 <= lanes and bins % (packing * 2) == 0:
        packing *= 2
    return packing


class Packings(NamedTuple):
    """By how much arrays of all bins are packed.

    Attributes:
        bins: the spectrogram itself, which has one channel.
        first: the activations of the first and the last block.
        maps: the three maps that the network ends with.
    """

    bins: int
    first: int
    maps: int


def packings_of(lanes: int, channels: int, bins: int, rows: int) -> Packings:
    """Returns the packings of a network.

    A TPU keeps eight rows in its sublanes, so that packing their arrays anew moves nothing. With more or fewer rows it
    is a copy, which costs more than full lanes save; then bins and maps are packed as the activations are.

    Args:
        lanes: how many channels the hardware computes at once.
        channels: of the first block.
        bins: of the spectrogram, without the top one.
        rows: clips on each device.
    """
    first = packing_of(lanes, channels, bins)
    if rows != _SUBLANES:
        return Packings(first, first, first)
    return Packings(packing_of(lanes, 1, bins), first, packing_of(lanes, 3, bins))


def packing_at(first: int, bins: int) -> int:
    """Returns the packing at a level whose bins stand for so many of those that are packed by `first`.

    Pooling bins that are packed together leaves fewer of them together.
    """
    return max(first // bins, 1)


def repack(x: Float[Array, 'B N G _'], channels: int) -> Float[Array, 'B N _ {channels}']:
    """Packs more or fewer bins, so that there are so many channels with them."""
    return x if x.shape[-1] == channels else x.reshape(*x.shape[:2], -1, channels)


def tile(x: Float[Array, '*B C'], packing: int) -> Float[Array, '*B pC']:
    """Repeats what belongs to each channel for the packed channels."""
    return jnp.tile(x, packing) if packing > 1 else x


def untile_sum(x: Float[Array, '*B pC'], packing: int) -> Float[Array, '*B C']:
    """Adds up the packed channels that are the same channel: the transpose of `tile`."""
    return x.reshape(*x.shape[:-1], packing, -1).sum(axis=-2) if packing > 1 else x


def pack_conv3x3(kernel: Float[Array, '3 3 C D'], packing: int) -> Float[Array, '3 3 pC pD']:
    """Returns the kernel that does on packed arrays what a 3×3 kernel does on others."""
    if packing == 1:
        return kernel
    _, _, inputs, outputs = kernel.shape
    # For each column of the kernel, group of bins and bin in the group that it reads, and bin that it writes.
    places = np.zeros((3, 3, packing, packing), np.float32)
    for out in range(packing):
        for column in range(3):
            group, bin_ = divmod(out + column - 1, packing)
            places[column, group + 1, bin_, out] = 1
    banded = jnp.einsum('kgio,nkcd->ngicod', places.astype(kernel.dtype), kernel, precision='highest')
    return banded.reshape(3, 3, packing * inputs, packing * outputs)


def pack_conv1x1(kernel: Float[Array, 'C D'], packing: int) -> Float[Array, 'pC pD']:
    """Returns the kernel that does on packed arrays what a 1×1 kernel does on others."""
    return jnp.kron(jnp.eye(packing, dtype=kernel.dtype), kernel) if packing > 1 else kernel


def pack_upsampling(kernel: Float[Array, 'C s t D'], packing: int) -> Float[Array, 'C*{packing} s t*{packing}*D']:
    """Returns the kernel of a transposed convolution of packed arrays, whose results are packed t times as much."""
    c, s, t, d = kernel.shape
    if packing == 1:
        return kernel.reshape(c, s, t * d)
    wide = jnp.einsum('io,cstd->icsotd', np.eye(packing, dtype=np.float32).astype(kernel.dtype), kernel)
    return wide.reshape(packing * c, s, packing * t * d)
