"""Mixtures to learn a query from: random crops of the examples and of backgrounds, at random relative levels.

Letters: B mixtures, T samples of a crop.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from audiosep_jax.audio.reading import open_sound
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.samples import check_audio
from audiosep_jax.errors import AudioFileError, ConfigError

Waveform = Float32[np.ndarray, ' _']
Sound = str | Path | np.ndarray  # a file, or samples [T] or [channels, T]

_MAX_SECONDS = 3600.0  # of all examples, and of all backgrounds: more takes memory and teaches little
_MIN_SECONDS_OF_A_FILE = 60.0
_HELD_OUT = 0.3  # the share of files, or of the only file, that scores are measured on
_SILENCE = 1e-9  # mean square at which a file counts as silent, -90 dB
_EDGE = 1e-3  # of the peak, -60 dB: what is below at both ends of a file is cut off, so that no part of it is silent
_MIN_SECONDS = 0.05
_TRIES = 32  # places tried for a crop with some sound in it
_LOUD_ENOUGH = 0.1  # of the mean square of the whole file
_DECLIPPED_PEAK = 0.9  # as in training (training/mixing.py)

Background = Callable[[np.random.Generator], Waveform]  # draws a crop


def read_sounds(
    sounds: Sequence[Sound], sample_rate: int, rate_of_arrays: int | None, rng: np.random.Generator
) -> list[Waveform]:
    """Reads sounds as mono at a sample rate, without silence at their ends.

    Of more than an hour, it reads an hour, from files in random order.

    Args:
        sounds: files or arrays.
        sample_rate: of what is returned, in Hz.
        rate_of_arrays: of the arrays, in Hz.
        rng: draws the order.

    Raises:
        AudioFileError: a file that cannot be read, samples that are none, silence, or hardly any sound.
        ConfigError: arrays without a sample rate.
    """
    limit, left, waveforms = max(_MIN_SECONDS_OF_A_FILE, _MAX_SECONDS / max(len(sounds), 1)), _MAX_SECONDS, []
    for i in map(int, rng.permutation(len(sounds))):
        if left <= 0:
            break
        sound = sounds[i]
        if isinstance(sound, str | Path):
            name = str(sound)
            with open_sound(sound, mono=True) as file:
                audio, rate = file.read(0, round(min(limit, left) * file.rate)), file.rate
        else:
            name = f'sound {i + 1}'
            if rate_of_arrays is None:
                raise ConfigError('arrays of samples need sample_rate, in Hz')
            try:
                audio, rate = check_audio(sound, rate_of_arrays), rate_of_arrays
            except AudioFileError as error:
                raise AudioFileError(f'{name}: {error}') from None
        waveform = resample(audio.mean(axis=0, keepdims=True, dtype=np.float32), rate, sample_rate)[0]
        if not waveform.size or np.mean(np.square(waveform, dtype=np.float64)) < _SILENCE:
            raise AudioFileError(f'{name}: silent: leave it out, or give another recording')
        loud = np.flatnonzero(np.abs(waveform) > _EDGE * np.abs(waveform).max())
        waveform = waveform[loud[0] : loud[-1] + 1]
        if len(waveform) < _MIN_SECONDS * sample_rate:
            raise AudioFileError(f'{name}: shorter than {_MIN_SECONDS} s: leave it out, or give a longer recording')
        waveforms.append(waveform)
        left -= len(waveform) / sample_rate
    return waveforms


def split(waveforms: Sequence[Waveform]) -> tuple[list[Waveform], list[Waveform]]:
    """Splits sounds into those to learn from and those to measure on: by file, or a single one by time."""
    if not waveforms:
        return [], []
    if len(waveforms) == 1:
        whole = waveforms[0]
        place = max(1, len(whole) - max(1, round(_HELD_OUT * len(whole))))
        return [whole[:place]], [whole[place:]]
    count = max(1, round(_HELD_OUT * len(waveforms)))
    return list(waveforms[count:]), list(waveforms[:count])


def crop(rng: np.random.Generator, waveform: Waveform, length: int) -> Waveform:
    """Cuts a random crop with some sound in it; zeros surround a waveform that is shorter, at random."""
    missing = length - len(waveform)
    if missing >= 0:
        before = rng.integers(missing + 1)
        return np.pad(waveform, (before, missing - before))
    wanted = _LOUD_ENOUGH * np.mean(np.square(waveform))
    crops = []
    for _ in range(_TRIES):
        start = rng.integers(-missing + 1)
        crops.append(waveform[start : start + length])
        if np.mean(np.square(crops[-1])) >= wanted:
            return crops[-1]
    return max(crops, key=lambda samples: float(np.mean(np.square(samples))))


def crops_of(waveforms: Sequence[Waveform], length: int) -> Background:
    """Returns a function that draws a crop of one of the waveforms, each as often as the others."""
    return lambda rng: crop(rng, waveforms[int(rng.integers(len(waveforms)))], length)


@dataclasses.dataclass(frozen=True)
class Mixer:
    """Draws mixtures.

    Attributes:
        target: draws a crop of the sound to extract.
        background: draws a crop of something else.
        snr_db: the least and the greatest level of the target relative to the background, uniform in between.
        absent: the share of mixtures without the target.
    """

    target: Background
    background: Background
    snr_db: tuple[float, float]
    absent: float

    def draw(
        self, rng: np.random.Generator, count: int
    ) -> tuple[Float32[np.ndarray, '{count} T'], Float32[np.ndarray, '{count} T']]:
        """Returns mixtures and their targets; the target of a mixture without it is zeros."""
        pairs = [self._draw_one(rng) for _ in range(count)]
        return np.stack([mixture for mixture, _ in pairs]), np.stack([target for _, target in pairs])

    def _draw_one(self, rng: np.random.Generator) -> tuple[Waveform, Waveform]:
        target, background = self.target(rng), self.background(rng)
        powers = [max(float(np.mean(np.square(x))), 1e-12) for x in (target, background)]
        background = background * np.float32(np.sqrt(powers[0] / powers[1]) * 10 ** (-rng.uniform(*self.snr_db) / 20))
        if rng.random() < self.absent:
            target = np.zeros_like(target)
        mixture = target + background
        scale = np.float32(_DECLIPPED_PEAK / max(float(np.abs(mixture).max()), 1)) if np.abs(mixture).max() > 1 else 1
        return mixture * scale, target * scale
