"""Audio files and sample rates: what happens at the edge, on the host, in numpy.

Arrays are float32 `[channels, T]` at full scale 1.0. Reading takes whatever libsndfile decodes (WAV, FLAC, OGG, MP3,
AIFF, ...); writing gives WAV, FLAC or OGG by suffix and never leaves half a file under the name asked for.
"""

import contextlib
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr

from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.files import replacing
from audiosep_jax.truncation import has_guessed_length, is_cut_short

Subtype = Literal['PCM_16', 'PCM_24', 'FLOAT']
SUFFIXES = ('.wav', '.flac', '.ogg')
MAX_FLAC_RATE = 655350  # Hz

# libsndfile overflows its stack when a long block goes to the Vorbis encoder at once; smaller blocks also keep the
# quantised copy small.
_BLOCK = 65536
# A plain WAV counts its bytes in 32 bits; beyond that the RF64 header (EBU Tech 3306) takes over, suffix unchanged.
_WAV_BYTES = 2**32 - 2**16


def read_audio(
    path: str | os.PathLike, *, sample_rate: int | None = None, mono: bool = False
) -> tuple[np.ndarray, int]:
    """Reads a whole file, as float32 `[channels, T]`, with the rate of what is returned.

    Args:
        path: anything that libsndfile decodes. (Of an MP3 with a variable bit rate and no Xing header, which few
            encoders write, it decodes only as much as it estimates from the first frame.)
        sample_rate: resample to this rate, in Hz; None keeps the file's own.
        mono: average the channels (then channels = 1).

    Returns:
        The samples and their sample rate in Hz.

    Raises:
        AudioFileError: missing, a folder, not audio, damaged or cut short, empty, or with NaN or infinite samples.
    """
    path = Path(path)
    _check_readable(path)
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:  # bytes: names need not be valid UTF-8
            rate = file.samplerate
            promised = file.frames
            cut = is_cut_short(path, file)
            # In one call: between two, soundfile seeks, which MP3 does only roughly.
            audio = file.read(dtype='float32', always_2d=True)
    except TypeError as error:  # soundfile goes by the suffix .raw before it looks inside
        raise AudioFileError(f'{path}: headerless audio; convert it to WAV or FLAC first') from error
    except (MemoryError, ValueError, OverflowError) as error:  # no length in the header becomes 2^63 samples
        raise AudioFileError(
            f'{path}: its header gives no usable length ({promised} samples); write the file again, to disk'
        ) from error
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix('Error : ').rstrip('.')
        if not reason or reason.startswith('File does not exist'):  # what it says of an MP3 without a frame
            reason = 'nothing in it can be decoded'
        raise AudioFileError(f'{path}: damaged, cut short or not an audio file ({reason})') from error
    if promised == 0:
        raise AudioFileError(f'{path}: the file holds no samples')
    if cut or (len(audio) < promised and not has_guessed_length(path, file)):
        raise AudioFileError(f'{path}: damaged or cut short, its header promises more audio than it holds; get it anew')
    if not np.isfinite(audio).all():
        count = int(np.count_nonzero(~np.isfinite(audio)))
        raise AudioFileError(f'{path}: {count} samples are NaN or infinite; repair or export the file again')
    audio = audio.T
    if mono:
        audio = audio.mean(axis=0, keepdims=True)
    if sample_rate is not None:
        audio, rate = resample(audio, rate, sample_rate), sample_rate
    return np.ascontiguousarray(audio, np.float32), rate


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples float `[..., T]` to float32 `[..., T']` with T' = round(T * to_rate / from_rate), soxr's HQ recipe.

    Rates are in Hz. The same recipe as librosa's default, with which the original evaluation reads its files.
    """
    audio = np.asarray(audio, np.float32)
    if from_rate == to_rate:
        return audio
    length = round(audio.shape[-1] * to_rate / from_rate)
    flat = audio.reshape(math.prod(audio.shape[:-1]), audio.shape[-1])  # -1 is undefined where T = 0
    out = np.zeros((len(flat), length), np.float32)
    if flat.size:
        frames = soxr.resample(np.ascontiguousarray(flat.T), from_rate, to_rate, quality='HQ').T
        kept = min(length, frames.shape[-1])  # soxr rounds T' its own way: one sample more or less
        out[:, :kept] = frames[:, :kept]
    return out.reshape(*audio.shape[:-1], length)


def write_audio(path: str | os.PathLike, audio: np.ndarray, sample_rate: int, *, subtype: Subtype = 'PCM_16') -> float:
    """Writes float `[channels, T]` as WAV, FLAC or OGG (Vorbis) by the suffix of `path`; replaces an existing file.

    The file appears under its name only when it is complete. Except in a float WAV, samples beyond full scale would
    wrap or clip: the whole file is attenuated instead.

    Args:
        path: ends in .wav, .flac or .ogg.
        audio: float `[channels, T]`.
        sample_rate: in Hz, a whole number.
        subtype: PCM_16, PCM_24 or FLOAT; FLAC has no FLOAT, OGG is always Vorbis.

    Returns:
        The gain that was applied to keep within full scale; 1.0 if none.

    Raises:
        ConfigError: a suffix, subtype, rate or channel count that the format does not have.
        AudioFileError: non-finite samples, or the file cannot be written there.
    """
    return write_together({path: audio}, sample_rate, subtype=subtype)


def write_together(
    sounds: Mapping[str | os.PathLike, np.ndarray], sample_rate: int, *, subtype: Subtype = 'PCM_16'
) -> float:
    """As `write_audio`, several files as one: all of them are written or none is, with one gain for all.

    For what was separated from one mixture: with one gain, targets and residual still add up to the (attenuated)
    mixture.
    """
    sounds = {Path(path): np.asarray(audio, np.float32) for path, audio in sounds.items()}
    for path, audio in sounds.items():
        if audio.ndim != 2:
            raise ValueError(f'audio must be [channels, T], got shape {audio.shape}')
        check_format(path, subtype, channels=len(audio), sample_rate=sample_rate)
        if path.is_dir():
            raise AudioFileError(f'{path}: cannot be written: a folder has that name')
        if not np.isfinite(audio).all():
            raise AudioFileError(f'{path}: not written, the samples to write are NaN or infinite')
    gain = min((_overshoot_gain(path, audio, subtype) for path, audio in sounds.items()), default=1.0)
    with contextlib.ExitStack() as renames:  # not before the last one is written
        for path, audio in sounds.items():
            try:
                temporary = renames.enter_context(replacing(path))
                _encode(temporary, path.suffix.lower(), audio, gain, sample_rate, subtype)
            except OSError as error:
                raise AudioFileError(f'{path}: cannot be written: {error.strerror or error}') from error
            except soundfile.LibsndfileError as error:
                reason = error.error_string.rstrip('.').replace('System error', 'the disk is full or failing')
                raise AudioFileError(f'{path}: cannot be written: {reason}') from error
    return gain


def check_format(path: str | os.PathLike, subtype: Subtype, *, channels: int = 1, sample_rate: int = 44100) -> None:
    """Raises ConfigError where no file of this suffix can hold this subtype, channel count and rate (in Hz)."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f'{path}: cannot write {suffix or "a file without suffix"}; use .wav, .flac or .ogg')
    if subtype not in ('PCM_16', 'PCM_24', 'FLOAT'):
        raise ConfigError(f'{path}: unknown subtype {subtype!r}; use PCM_16, PCM_24 or FLOAT')
    if suffix == '.flac' and subtype == 'FLOAT':
        raise ConfigError(f'{path}: FLAC holds 16 or 24 bits, not float; use .wav for float')
    # Asked beyond its limits, libsndfile ends the process (Vorbis) or gives an empty message.
    most_channels, highest_rate = {'.wav': (1024, 2**31 - 1), '.flac': (8, MAX_FLAC_RATE), '.ogg': (255, 200000)}[
        suffix
    ]
    if not 1 <= channels <= most_channels:
        raise ConfigError(f'{path}: {suffix} holds 1 to {most_channels} channels, not {channels}; use .wav')
    if not 1 <= sample_rate <= highest_rate:
        raise ConfigError(f'{path}: {suffix} holds rates up to {highest_rate} Hz, not {sample_rate}; use .wav')


def _overshoot_gain(path: Path, audio: np.ndarray, subtype: Subtype) -> float:
    """What keeps float [channels, T] within full scale; 1.0 for float WAV, which has none."""
    peak = float(np.abs(audio).max(initial=0.0))
    if peak <= 1.0 or (path.suffix.lower() == '.wav' and subtype == 'FLOAT'):
        return 1.0
    # The largest positive 16-bit value is one step below full scale.
    return (1.0 - 2.0**-15) / peak


def _encode(temporary: Path, suffix: str, audio: np.ndarray, gain: float, sample_rate: int, subtype: Subtype) -> None:
    kind = suffix[1:].upper()
    if kind == 'WAV' and audio.size * {'PCM_16': 2, 'PCM_24': 3, 'FLOAT': 4}[subtype] > _WAV_BYTES:
        kind = 'RF64'
    encoding = 'VORBIS' if kind == 'OGG' else subtype
    with soundfile.SoundFile(os.fsencode(temporary), 'w', sample_rate, len(audio), encoding, format=kind) as file:
        for start in range(0, audio.shape[-1], _BLOCK):
            block = audio[:, start : start + _BLOCK].T * np.float32(gain)
            file.write(np.ascontiguousarray(_quantise(block, encoding)))


def _quantise(block: np.ndarray, encoding: str) -> np.ndarray:
    """Float `[T, channels]` rounded to what `encoding` stores: left-aligned int32, of which libsndfile keeps the top.

    Its own conversion from float truncates in WAV (half a step of DC) and rounds in FLAC.
    """
    if encoding not in ('PCM_16', 'PCM_24'):
        return block
    bits = int(encoding[-2:])
    full = np.float32(2 ** (bits - 1))
    return np.clip(np.rint(block * full), -full, full - 1).astype(np.int32) << (32 - bits)


def _check_readable(path: Path) -> None:
    """The reasons that libsndfile reports as 'System error', or waits for (a pipe)."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AudioFileError(f'{path}: is a folder; name the audio files in it')
        if not stat.S_ISREG(mode):
            raise AudioFileError(f'{path}: not a regular file; save the audio to a file first')
        with path.open('rb') as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise AudioFileError(f'{path}: no such file; check the name') from error
    except OSError as error:
        raise AudioFileError(f'{path}: cannot be read: {error.strerror}') from error
    except ValueError as error:  # a NUL byte in the name
        raise AudioFileError(f'{str(path)!r}: not a file name') from error
    if empty:
        raise AudioFileError(f'{path}: the file is empty (0 bytes)')
