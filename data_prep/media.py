"""Sound and pictures of files as datasets have them: whole audio files, parts of them, video, members of archives."""

import pathlib

import numpy as np

from audiosep_jax.audio import read_audio
from data_prep.datasets import LeftOutError


def read_sound(path: pathlib.Path, *, sample_rate: int, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """float32 [T] mono at `sample_rate` Hz: the part of a file from `start` on, `seconds` long or to its end.

    Raises:
        LeftOutError: missing.
        AudioFileError: unreadable.
    """
    if not path.exists():
        raise LeftOutError('missing', f'{path}: no such file')
    audio, _ = read_audio(path, sample_rate=sample_rate, mono=True)
    first = round(start * sample_rate)
    return audio[0, first : None if seconds is None else first + round(seconds * sample_rate)]


def read_frames(path: pathlib.Path, count: int, *, start: float = 0.0, seconds: float | None = None) -> list[bytes]:
    """`count` pictures, evenly spaced over the part, as JPEG."""
    raise LeftOutError('unreadable', f'{path}: no pictures of {path.suffix} files')
