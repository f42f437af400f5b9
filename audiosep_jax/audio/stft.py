"""Short-time Fourier transform and its inverse: pure functions of arrays, any window length and hop, jit-able.

The conventions are those of the original (torchlibrosa, librosa): a periodic Hann window, frames centered on multiples
of the hop by reflect padding of half a window on either side, no scaling. T samples give N = 1 + T // hop frames.

Frames are cut by a gather of contiguous slices and transformed by `rfft`: on a CPU many times faster than the DFT as a
matrix product, which is how the original computes it (`benchmarks/stft.py`).
"""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# Summed squared windows below this are raised to it, as in torchlibrosa, so that every sample stays finite.
WINDOW_SUM_FLOOR = 1e-11

ArrayT = TypeVar('ArrayT', np.ndarray, jax.Array)


def hann_window(window_size: int) -> np.ndarray:
    """Returns the periodic Hann window, float32 [window_size]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)).astype(np.float32)


def num_frames(num_samples: int, hop_size: int) -> int:
    """Returns N, the number of centered frames of a signal of `num_samples` samples."""
    return 1 + num_samples // hop_size


def reflect_pad(waveform: ArrayT, window_size: int) -> ArrayT:
    """Pads half a window of reflection on either side: [..., T] -> [..., T + 2 * (window_size // 2)].

    A signal shorter than half a window is reflected back and forth as often as it takes, and a single sample is
    repeated (`numpy.pad`'s definition; the original raises an error there). Takes numpy or jax arrays and returns the
    same kind.

    Raises:
        ValueError: T is 0.
    """
    if waveform.shape[-1] == 0:
        raise ValueError('cannot pad a signal of no samples')
    half = window_size // 2
    widths = [(0, 0)] * (waveform.ndim - 1) + [(half, half)]
    pad: Any = np.pad if isinstance(waveform, np.ndarray) else jnp.pad
    return pad(waveform, widths, mode='reflect' if waveform.shape[-1] > 1 else 'edge')


def stft(waveform: jax.Array, window_size: int, hop_size: int, *, center: bool = True) -> jax.Array:
    """Transforms float [..., T] to complex64 [..., N, F], with F = window_size // 2 + 1 and N = 1 + T // hop_size.

    Args:
        waveform: of any float type; the transform is computed in float32.
        window_size: samples of the Hann window, which is also the length of the transform.
        hop_size: samples between frames; it need not divide the window.
        center: reflect-pad by half a window first; False: the caller has padded (N = 1 + (T - window) // hop).

    Raises:
        ValueError: sizes that are not positive, a hop beyond the window, or a signal with no whole frame.
    """
    _check_sizes(window_size, hop_size)
    x = jnp.asarray(waveform, jnp.float32)
    if center:
        x = reflect_pad(x, window_size)
    if x.shape[-1] < window_size:
        raise ValueError(f'{x.shape[-1]} samples hold no frame of {window_size}')
    frames = _frame(x, window_size, hop_size) * hann_window(window_size)
    return jnp.fft.rfft(frames, axis=-1)


def istft(
    spectrum: jax.Array,
    window_size: int,
    hop_size: int,
    *,
    length: int,
    frame_count: jax.Array | None = None,
) -> jax.Array:
    """Transforms complex [..., N, F] to float32 [..., length]: the least-squares inverse of `stft`, exact on its range.

    Args:
        spectrum: N frames of window_size // 2 + 1 bins.
        window_size: as in `stft`.
        hop_size: as in `stft`.
        length: T of the signal; samples past the reach of the last frame are zero.
        frame_count: int [...] or a scalar: how many leading frames are real. The later ones are excluded from
            the overlap-add *and* from its normalization, so that one compiled shape serves many lengths.

    Raises:
        ValueError: sizes that do not fit together.
    """
    _check_sizes(window_size, hop_size)
    n, f = spectrum.shape[-2:]
    if f != window_size // 2 + 1:
        raise ValueError(f'{f} bins do not belong to a window of {window_size} (it has {window_size // 2 + 1})')
    window = hann_window(window_size)
    # The window enters both the frames and the normalization, which are overlap-added alike.
    frames = jnp.fft.irfft(spectrum.astype(jnp.complex64), n=window_size, axis=-1) * window
    if frame_count is None:
        # It is known at trace time, so numpy makes the sum of windows a constant.
        weight = _overlap_add_numpy(np.broadcast_to(window**2, (n, window_size)), hop_size)
    else:
        valid = jnp.arange(n) < jnp.asarray(frame_count)[..., None]
        frames = jnp.where(valid[..., None], frames, 0)
        weight = overlap_add(valid[..., None] * (window**2), hop_size)
    signal = overlap_add(frames, hop_size) / jnp.maximum(weight, WINDOW_SUM_FLOOR)
    half = window_size // 2
    signal = signal[..., half : half + length]
    missing = length - signal.shape[-1]
    if missing > 0:
        signal = jnp.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, missing)])
    return signal


def _check_sizes(window_size: int, hop_size: int) -> None:
    if window_size < 2 or window_size % 2 or not 0 < hop_size <= window_size:
        raise ValueError(f'window {window_size} must be even and hop {hop_size} between 1 and the window')


def _frame(x: jax.Array, window_size: int, hop_size: int) -> jax.Array:
    """Cuts [..., T] into overlapping frames [..., N, window_size], as one gather of contiguous slices."""
    starts = hop_size * jnp.arange(1 + (x.shape[-1] - window_size) // hop_size)
    return jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(x, start, window_size, axis=-1), out_axes=-2)(starts)


def overlap_add(frames: jax.Array, hop_size: int) -> jax.Array:
    """Adds overlapping frames [..., N, window] to [..., (N - 1) * hop + window], as shifted sums of hop-wide pieces."""
    n, window_size = frames.shape[-2:]
    pieces = math.ceil(window_size / hop_size)
    lead = [(0, 0)] * (frames.ndim - 2)
    total = jnp.zeros((), frames.dtype)
    for i in range(pieces):
        piece = frames[..., i * hop_size : (i + 1) * hop_size]
        short = hop_size - piece.shape[-1]
        total = total + jnp.pad(piece, [*lead, (i, pieces - 1 - i), (0, short)])
    signal = total.reshape(*frames.shape[:-2], (n + pieces - 1) * hop_size)
    return signal[..., : (n - 1) * hop_size + window_size]


def _overlap_add_numpy(frames: np.ndarray, hop_size: int) -> np.ndarray:
    n, window_size = frames.shape
    signal = np.zeros((n - 1) * hop_size + window_size, np.float32)
    for i, frame in enumerate(frames):
        signal[i * hop_size : i * hop_size + window_size] += frame
    return signal
