"""Audio files and sample rates: what happens at the edge, on the host, in numpy.

Arrays are float32 `[channels, T]` at full scale 1.0. Whole files here; block by block in sound_input.py and
sound_output.py.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soxr

from audiosep_jax.errors import AudioFileError
from audiosep_jax.sound_input import open_sound
from audiosep_jax.sound_output import Subtype, written_together


def read_audio(
    path: str | os.PathLike, *, sample_rate: int | None = None, mono: bool = False
) -> tuple[np.ndarray, int]:
    """Reads a whole file, as float32 `[channels, T]`, with the rate of what is returned.

    Args:
        path: anything that libsndfile decodes, and with PyAV (extra `video`) MP4, M4A, WebM, Matroska and more.
        sample_rate: resample to this rate, in Hz; None keeps the file's own.
        mono: average the channels (then channels = 1).

    Returns:
        The samples and their sample rate in Hz.

    Raises:
        AudioFileError: missing, a folder, not audio, damaged or cut short, empty, or with NaN or infinite samples.
        ConfigError: PyAV is needed and not installed.
    """
    with open_sound(path) as file:
        rate = file.rate
        try:
            audio = np.concatenate(list(file.blocks()), axis=-1)
        except MemoryError as error:
            raise AudioFileError(f'{path}: too long for the memory that there is; read it in blocks') from error
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
    """Writes float `[channels, T]` in the format of the suffix of `path`; replaces an existing file.

    The file appears under its name only when it is complete. Where samples beyond full scale would wrap or clip, that
    is everywhere but in float files, the whole file is attenuated instead.

    Args:
        path: ends in one of `sound_output.SUFFIXES`: .wav, .flac, .ogg, .mp3 and others.
        audio: float `[channels, T]`.
        sample_rate: in Hz, a whole number.
        subtype: of the samples; FLAC has no PCM_32 and no FLOAT, OGG, Opus and MP3 are what they are.

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
    for audio in sounds.values():
        if audio.ndim != 2:
            raise ValueError(f'audio must be [channels, T], got shape {audio.shape}')
    if not sounds:
        return 1.0
    channels = len(next(iter(sounds.values())))
    with written_together(list(sounds), sample_rate, channels=channels, subtype=subtype) as files:
        files.write(list(sounds.values()))
        return files.finish()
