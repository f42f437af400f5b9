"""Loads the waveforms of items as the original's evaluators do (`librosa.load(path, sr=…, mono=True)`)."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import soxr

from audiosep_jax.audio.reading import read_audio, sound_seconds
from audiosep_jax.errors import AudioFileError, LeftOutError
from audiosep_jax.evaluation.benchmark import Item

_PEAK = 0.9  # the DCASE evaluator scales a mixture that would clip to this peak
_MAX_SAMPLE = 1e6  # full scale is 1; the energies of far larger samples overflow float32
_SILENCE = 1e-10  # mean square at and below which SDR is determined by its floor


@dataclasses.dataclass(frozen=True)
class Sound:
    """Waveforms of one item, float32 [T] each, at the rate of the scores; `target` is None if the item has none."""

    mixture: np.ndarray
    target: np.ndarray | None

    @property
    def is_silent(self) -> bool:
        """Whether the target is silent. Its SDR is then determined by the floor."""
        return self.target is not None and is_silent(self.target)


def load_item(item: Item, sample_rate: int) -> Sound:
    """Returns the mixture and the target of an item at `sample_rate` Hz.

    Raises:
        LeftOutError: a file is missing, unreadable or shorter than a sample; the mixture and the target differ in
            length, at which the original stops; or the noise is silent, so that it has no energy ratio.
    """
    if item.noise is not None:
        return _mix(item, sample_rate)
    if item.mixture is None:
        raise ValueError(f'{item.name}: an item has a mixture or a noise')
    mixture = load_mono(item.mixture, sample_rate)
    if item.target is None:
        return Sound(mixture, None)
    target = load_mono(item.target, sample_rate)
    _check_lengths('mixture', item.mixture, mixture, item.target, target, sample_rate)
    return Sound(mixture, target)


def load_mono(path: Path, sample_rate: int) -> np.ndarray:
    """Returns the mean of a file's channels at `sample_rate` Hz, float32 [T].

    Resamples with soxr HQ. The length is rounded up, as librosa does.

    Raises:
        LeftOutError: the file is missing, unreadable or holds absurdly large samples.
    """
    try:
        audio, rate = read_audio(path, mono=True)
    except AudioFileError as error:
        raise LeftOutError('unreadable' if path.exists() else 'missing', str(error)) from error
    samples = audio[0]
    if np.abs(samples).max() > _MAX_SAMPLE:
        raise LeftOutError('unreadable', f'{path}: samples up to {np.abs(samples).max():g}, where full scale is 1')
    if rate == sample_rate:
        return samples
    length = math.ceil(len(samples) * (float(sample_rate) / rate))
    resampled = soxr.resample(samples, rate, sample_rate, quality='HQ')[:length]
    return np.pad(resampled, (0, length - len(resampled)))


def item_seconds(item: Item) -> float:
    """Returns the length of an item in seconds, from the file's header.

    Returns 0 if the header cannot be read; the problem is reported when the audio is loaded.
    """
    if item.seconds is not None:
        return item.seconds
    path = item.mixture or item.target
    try:
        return 0.0 if path is None else sound_seconds(path)
    except AudioFileError:
        return 0.0


def is_silent(samples: np.ndarray) -> bool:
    """Returns whether the mean square of samples [T] is -100 dB or less."""
    return bool(np.mean(np.square(samples, dtype=np.float64)) <= _SILENCE)


def _mix(item: Item, sample_rate: int) -> Sound:
    """Adds the noise to the target at the item's SNR (`dcase_evaluator.py` of the DCASE 2024 Task 9 baseline)."""
    if item.target is None or item.noise is None or item.snr_db is None:
        raise ValueError(f'{item.name}: an item with a noise has a target and an SNR')
    target, noise = load_mono(item.target, sample_rate), load_mono(item.noise, sample_rate)
    if item.seconds is not None:
        target, noise = (_fitted(samples, round(item.seconds * sample_rate)) for samples in (target, noise))
    _check_lengths('noise', item.noise, noise, item.target, target, sample_rate)
    noise_power = np.mean(noise**2)
    if noise_power == 0:
        raise LeftOutError('silent noise', f'{item.noise}: silent, so it cannot be mixed at {item.snr_db:g} dB')
    wanted_power = np.mean(target**2) / 10 ** (item.snr_db / 10)
    mixture = target + noise * np.sqrt(wanted_power / noise_power).astype(np.float32)
    peak = np.max(np.abs(mixture))
    if peak > 1:
        target, mixture = target * (_PEAK / peak), mixture * (_PEAK / peak)
    return Sound(mixture, target)


def _fitted(samples: np.ndarray, length: int) -> np.ndarray:
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def _check_lengths(
    what: str, path: Path, samples: np.ndarray, target_path: Path, target: np.ndarray, sample_rate: int
) -> None:
    if len(samples) != len(target):
        raise LeftOutError(
            'length',
            f'{path}: the {what} has {len(samples)} samples at {sample_rate} Hz, '
            f'but its target {target_path.name} has {len(target)}',
        )
