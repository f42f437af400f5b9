"""Float samples as integers: full scale, rounding, and what happens beyond full scale."""

import numpy as np

# Float audio in [-1, 1] is int16 / INT16_SCALE, as in libsndfile, so that 16-bit files pass unchanged.
INT16_SCALE = 32768


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Returns a float waveform [T] in [-1, 1] as int16 [T]; a louder one is attenuated as a whole, never clipped."""
    scale = INT16_SCALE / max(float(np.abs(waveform).max(initial=0.0)), 1.0)
    return np.clip(np.rint(waveform * scale), -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)


def quantize(block: np.ndarray, subtype: str) -> np.ndarray:
    """Rounds float `[n, channels]` to what libsndfile's `subtype` stores; without `PCM_` in its name, changes nothing.

    Returns:
        Left-aligned int32, of which libsndfile stores the upper bits. Its own conversion from float truncates in WAV,
        which is a bias of half a step, and rounds in FLAC.
    """
    if not subtype.startswith('PCM_'):
        return block
    bits = int(subtype[-2:])
    full = 2.0 ** (bits - 1)
    # In float64, because float32 does not hold the largest 32-bit integer: full scale would wrap to its negative.
    integers = np.clip(np.rint(block.astype(np.float64) * full), -full, full - 1)
    return integers.astype(np.int32) << (32 - bits)
