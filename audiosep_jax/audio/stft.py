"""Short-time Fourier transform and its inverse: pure functions of arrays for any window length and hop.

The conventions are the original's (torchlibrosa, librosa): a periodic Hann window, no scaling, and frames centered on
multiples of the hop, for which half a window is padded by reflection on either side. T samples give N = 1 + T // hop
frames.

Frames are cut by a gather of contiguous slices and transformed by `rfft`. On a CPU this is many times faster than the
DFT as a matrix product, as the original computes it (`benchmarks/stft.py`).

Letters: T samples, N frames, F frequency bins.
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Complex, Complex64, Float, Float32, Int, Num

_Waveform = TypeVar('_Waveform', Array, np.ndarray)

# The least divisor of the overlap-add. As in torchlibrosa, it keeps samples finite that hardly any window reaches.
WINDOW_SUM_FLOOR = 1e-11


def hann_window(window_size: int) -> Float32[np.ndarray, ' {window_size}']:
    """Returns the periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)).astype(np.float32)


def num_frames(num_samples: int, hop_size: int) -> int:
    """Returns N, the number of centered frames of a signal of `num_samples` samples."""
    return 1 + num_samples // hop_size


def reflect_pad(waveform: _Waveform, window_size: int) -> _Waveform:
    """Pads half a window by reflection on either side: [..., T] -> [..., T + 2 * (window_size // 2)].

    A signal shorter than half a window is reflected back and forth as often as necessary, and a single sample is
    repeated, as `numpy.pad` does; the original raises an error there. Returns a numpy array for a numpy array.

    Raises:
        ValueError: T is 0.
    """
    if waveform.shape[-1] == 0:
        raise ValueError('cannot pad a signal of no samples')
    half = window_size // 2
    widths = [(0, 0)] * (waveform.ndim - 1) + [(half, half)]
    pad = np.pad if isinstance(waveform, np.ndarray) else jnp.pad
    return pad(waveform, widths, mode='reflect' if waveform.shape[-1] > 1 else 'edge')


def stft(
    waveform: Num[Array | np.ndarray, '*batch T'], window_size: int, hop_size: int, *, center: bool = True
) -> Complex64[Array, '*batch N {window_size}//2+1']:
    """Computes the spectrum in float32, with N = 1 + T // hop_size and F = window_size // 2 + 1.

    Args:
        waveform: samples of any real type.
        window_size: samples of the Hann window, which is also the length of the transform.
        hop_size: samples between frames; need not divide the window.
        center: pad half a window by reflection first. False means that the caller has padded the waveform; then
            N = 1 + (T - window_size) // hop_size.

    Raises:
        ValueError: a window size that is not positive or not even, a hop that is not between 1 and the window, or a
            waveform without one whole frame.
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
    spectrum: Complex[Array | np.ndarray, '*batch N F'],
    window_size: int,
    hop_size: int,
    *,
    length: int,
    frame_count: int | Int[Array | np.ndarray, '#*batch'] | None = None,
) -> Float32[Array, '*batch {length}']:
    """Computes the least-squares inverse of `stft`, which is exact on the range of `stft`.

    Args:
        spectrum: N frames of F = window_size // 2 + 1 bins.
        window_size: as in `stft`.
        hop_size: as in `stft`.
        length: T of the result; samples past the reach of the last frame are zero.
        frame_count: how many leading frames are real. The others are left out of the overlap-add *and* of its
            normalization, so that one compiled shape serves many lengths. None: all are real.

    Raises:
        ValueError: invalid sizes as in `stft`, or a number of bins that does not belong to the window.
    """
    _check_sizes(window_size, hop_size)
    n, f = spectrum.shape[-2:]
    if f != window_size // 2 + 1:
        raise ValueError(f'{f} bins do not belong to a window of {window_size} (it has {window_size // 2 + 1})')
    window = hann_window(window_size)
    frames = jnp.fft.irfft(spectrum.astype(jnp.complex64), n=window_size, axis=-1) * window
    weight: Array | np.ndarray
    if frame_count is None:
        # The sum of windows is known when the program is traced, so numpy computes it as a constant.
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


def _frame(x: Float32[Array, '*batch T'], window_size: int, hop_size: int) -> Float32[Array, '*batch N {window_size}']:
    """Cuts overlapping frames by one gather of contiguous slices."""
    starts = hop_size * jnp.arange(1 + (x.shape[-1] - window_size) // hop_size)
    return jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(x, start, window_size, axis=-1), out_axes=-2)(starts)


def overlap_add(
    frames: Float[Array, '*batch N window'], hop_size: int
) -> Float[Array, '*batch (N-1)*{hop_size}+window']:
    """Adds overlapping frames as shifted sums of pieces as wide as a hop."""
    n, window_size = frames.shape[-2:]
    pieces = math.ceil(window_size / hop_size)
    lead = [(0, 0)] * (frames.ndim - 2)
    total: Array | int = 0
    for i in range(pieces):
        piece = frames[..., i * hop_size : (i + 1) * hop_size]
        short = hop_size - piece.shape[-1]
        total = total + jnp.pad(piece, [*lead, (i, pieces - 1 - i), (0, short)])
    assert isinstance(total, Array)
    signal = total.reshape(*frames.shape[:-2], (n + pieces - 1) * hop_size)
    return signal[..., : (n - 1) * hop_size + window_size]


def _overlap_add_numpy(frames: np.ndarray, hop_size: int) -> np.ndarray:
    n, window_size = frames.shape
    signal = np.zeros((n - 1) * hop_size + window_size, np.float32)
    for i, frame in enumerate(frames):
        signal[i * hop_size : i * hop_size + window_size] += frame
    return signal
