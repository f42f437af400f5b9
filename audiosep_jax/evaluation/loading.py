"""Items to waveforms, as the original's evaluators get them (`librosa.load(path, sr=…, mono=True)`)."""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import soundfile
import soxr

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.errors import AudioFileError, DataError
from audiosep_jax.evaluation.benchmark import Item, Reason

_PEAK = 0.9  # to which the DCASE evaluator scales what would clip
_LOUDEST = 1e6  # full scale is 1; the energies of what is far beyond leave the range of float32
_SILENCE = 1e-10  # mean square at which SDR's floor takes over


@dataclasses.dataclass(frozen=True)
class Sound:
    """Waveforms of one item, float32 [T] each, at the rate of the scores; the target is None where there is none."""

    mixture: np.ndarray
    target: np.ndarray | None

    @property
    def is_silent(self) -> bool:
        """Whether the target is: then its SDR is that of the floor."""
        return self.target is not None and is_silent(self.target)


class UnusableItemError(DataError):
    """An item that the protocol cannot score."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason


def load_item(item: Item, sample_rate: int) -> Sound:
    """The mixture and target of an item at `sample_rate` Hz.

    Raises:
        UnusableItemError: a file that is missing, unreadable, or shorter than a sample; a mixture and a target of
            different lengths, on which the original stops; a silent noise, which has no energy ratio.
    """
    if item.noise is not None:
        return _mix(item, sample_rate)
    mixture = load_mono(item.mixture, sample_rate)
    if item.target is None:
        return Sound(mixture, None)
    target = load_mono(item.target, sample_rate)
    _check_lengths('mixture', item.mixture, mixture, item.target, target, sample_rate)
    return Sound(mixture, target)


def load_mono(path: Path, sample_rate: int) -> np.ndarray:
    """float32 [T]: the mean of the channels, resampled by soxr HQ to the length that librosa gives it: rounded up."""
    try:
        audio, rate = read_audio(path, mono=True)
    except AudioFileError as error:
        raise UnusableItemError('unreadable' if path.exists() else 'missing', str(error)) from error
    samples = audio[0]
    if np.abs(samples).max() > _LOUDEST:
        raise UnusableItemError('unreadable', f'{path}: samples up to {np.abs(samples).max():g}, where full scale is 1')
    if rate == sample_rate:
        return samples
    length = math.ceil(len(samples) * (float(sample_rate) / rate))
    resampled = soxr.resample(samples, rate, sample_rate, quality='HQ')[:length]
    return np.pad(resampled, (0, length - len(resampled)))


def seconds_of(item: Item) -> float:
    """How long an item is by a header; 0 where that cannot be read, which is reported when its audio is."""
    try:
        return float(soundfile.info(os.fsencode(item.mixture or item.target)).duration)
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError):
        return 0.0


def is_silent(samples: np.ndarray) -> bool:
    """Whether the mean square of [T] is at most that of -100 dB."""
    return bool(np.mean(np.square(samples, dtype=np.float64)) <= _SILENCE)


def _mix(item: Item, sample_rate: int) -> Sound:
    """Target and noise at the given energy ratio (`dcase_evaluator.py` of the DCASE 2024 Task 9 baseline)."""
    target, noise = load_mono(item.target, sample_rate), load_mono(item.noise, sample_rate)
    _check_lengths('noise', item.noise, noise, item.target, target, sample_rate)
    noise_power = np.mean(noise**2)
    if noise_power == 0:
        raise UnusableItemError('silent noise', f'{item.noise}: silent, it cannot be mixed at {item.snr_db:g} dB')
    wanted = np.mean(target**2) / 10 ** (item.snr_db / 10)
    mixture = target + noise * np.sqrt(wanted / noise_power).astype(np.float32)
    peak = np.max(np.abs(mixture))
    if peak > 1:
        target, mixture = target * (_PEAK / peak), mixture * (_PEAK / peak)
    return Sound(mixture, target)


def _check_lengths(
    what: str, path: Path, samples: np.ndarray, target_path: Path, target: np.ndarray, sample_rate: int
) -> None:
    if len(samples) != len(target):
        raise UnusableItemError(
            'length',
            f'{path}: the {what} has {len(samples)} samples at {sample_rate} Hz, '
            f'but its target {target_path.name} has {len(target)}',
        )
