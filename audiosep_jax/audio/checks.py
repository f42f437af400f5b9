"""Checks of audio that callers pass as arrays."""

import numpy as np

from audiosep_jax.errors import AudioFileError

_MAX_CHANNELS = 1024  # the most that a WAV file holds; an array with more is probably transposed


def check_audio(audio: np.ndarray, sample_rate: float) -> np.ndarray:
    """Returns audio [T] or [channels, T] as float32 [channels, T].

    Raises:
        AudioFileError: audio that is empty, not float, of another shape or not finite, or a sample rate that is not
            above 0 Hz.
    """
    audio = np.asarray(audio)
    if not np.issubdtype(audio.dtype, np.floating):
        raise AudioFileError(f'audio must be float in ±1, got {audio.dtype}: divide int16 samples by 32768')
    if audio.ndim not in (1, 2) or 0 in audio.shape:
        raise AudioFileError(f'audio must have the shape [T] or [channels, T] with T > 0, got {list(audio.shape)}')
    if audio.ndim == 2 and len(audio) > _MAX_CHANNELS:
        raise AudioFileError(
            f'audio must have the shape [channels, T], got {list(audio.shape)}: transpose it '
            '(soundfile reads [T, channels])'
        )
    if not sample_rate > 0:
        raise AudioFileError(f'the sample rate must be above 0 Hz, got {sample_rate}')
    with np.errstate(over='ignore'):  # float64 beyond float32 becomes infinite
        audio = np.atleast_2d(audio).astype(np.float32)
    if not np.isfinite(audio).all():
        raise AudioFileError('the audio holds NaN or infinite samples')
    return audio
