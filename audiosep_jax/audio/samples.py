"""Float samples: checks of arrays, integers and full scale, and the order of channels."""

import numpy as np

from audiosep_jax.errors import AudioFileError

# Float audio in [-1, 1] is int16 / INT16_SCALE, as in libsndfile, so that 16-bit files pass unchanged.
INT16_SCALE = 32768
_MAX_CHANNELS = 1024  # the most that a WAV file holds; an array with more is probably transposed
# Hz. Nothing that is sound has another rate: whales and seismometers are recorded at 100 Hz and more, radio at up to
# 10 MHz. A header that gives another is damaged, and resampling to or from it would take memory and time without end.
LOWEST_RATE, HIGHEST_RATE = 100, 10_000_000
# Which channel of Vorbis and Opus, by the number of channels, is each channel of WAV: for six, Vorbis has
# FL FC FR BL BR LFE, and WAV FL FR FC LFE BL BR.
_VORBIS_CHANNELS = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}
# The loudspeakers, as the bits of WAV, that so many channels of Vorbis, Opus and FLAC have.
_USUAL_MASKS = {1: 0x4, 2: 0x3, 3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}
# The loudspeakers of WAV (WAVEFORMATEXTENSIBLE) in the order of their bits, as FFmpeg calls them.
_SPEAKERS = [
    'FL',
    'FR',
    'FC',
    'LFE',
    'BL',
    'BR',
    'FLC',
    'FRC',
    'BC',
    'SL',
    'SR',
    'TC',
    'TFL',
    'TFC',
    'TFR',
    'TBL',
    'TBC',
    'TBR',
]


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


def check_rate(rate: int, name: str) -> None:
    """Raises AudioFileError if the header of the file `name` gives a rate that no sound has."""
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioFileError(
            f'{name}: damaged, its header gives a sample rate of {rate} Hz; export it again, or convert it to WAV'
        )


def from_vorbis_order(block: np.ndarray) -> np.ndarray:
    """Returns [channels, n] of Vorbis or Opus in the order of WAV."""
    order = _VORBIS_CHANNELS.get(len(block))
    return block if order is None else block[list(order)]


def to_vorbis_order(block: np.ndarray) -> np.ndarray:
    """Returns [channels, n] in the order of Vorbis and Opus; the opposite of `from_vorbis_order`."""
    order = _VORBIS_CHANNELS.get(len(block))
    return block if order is None else block[np.argsort(order)]


def usual_mask(channels: int) -> int:
    """Returns the mask of WAV for the loudspeakers of Vorbis, Opus and FLAC; 0: so many channels have none."""
    return _USUAL_MASKS.get(channels, 0)


def speaker_mask(names: list[str]) -> int:
    """Returns the mask of WAV for loudspeakers that are called as FFmpeg calls them; 0: it has none for them."""
    bits = [_SPEAKERS.index(name) if name in _SPEAKERS else -1 for name in names]
    return sum(1 << bit for bit in bits) if -1 not in bits and len(set(bits)) == len(bits) else 0


def speaker_order(names: list[str]) -> list[int] | None:
    """Returns which channel comes where in the order of WAV; None: in the order of the names."""
    if not speaker_mask(names):
        return None
    order = sorted(range(len(names)), key=lambda channel: _SPEAKERS.index(names[channel]))
    return order if order != list(range(len(names))) else None
