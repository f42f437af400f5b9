"""Measures how loud a recording of any length is, in blocks, by ITU-R BS.1770-4 and EBU R 128."""

import math
from collections.abc import Sequence

import numpy as np

# BS.1770-4, annex 1: the shelf models the head, and the high-pass how hearing falls off at low frequencies. The tables
# there are for 48 kHz; the analog filters behind them, found by inverting the bilinear transform, serve every rate.
_SHELF_HZ, _SHELF_DB, _SHELF_Q = 1681.974450955533, 3.999843853973347, 0.7071752369554196
_HIGH_PASS_HZ, _HIGH_PASS_Q = 38.13547087602444, 0.5003270373238773
_OFFSET_DB = -0.691
_STEP = 0.1  # seconds; the blocks of 400 ms (_STEPS steps) overlap by three quarters
_STEPS = 4
_ABSOLUTE_GATE = -70.0  # LUFS
_MAX_GAIN_DB = 24.0  # of LoudnessMatch
_RELATIVE_GATE = -10.0  # LU, relative to the mean of the blocks above the first gate


class LoudnessMeter:
    """Measures the loudness of a recording that comes in blocks. All channels have the same weight.

    Args:
        sample_rate: in Hz.
        channels: how many channels the blocks have.
    """

    def __init__(self, sample_rate: int, channels: int):
        self._filters = _k_weighting(sample_rate)
        self._state = np.zeros((len(self._filters), channels, 2))
        self._step = max(round(_STEP * sample_rate), 1)
        self._rest = np.zeros(0)
        self._powers: list[np.ndarray] = []  # of steps of 0.1 s

    def push(self, block: np.ndarray) -> None:
        """Takes the next float32 block [channels, n]."""
        from scipy.signal import sosfilt  # here, because importing it would delay every program that separates

        weighted, self._state = sosfilt(self._filters, block, zi=self._state)
        power = np.concatenate([self._rest, np.sum(weighted**2, axis=0)])
        whole = len(power) // self._step * self._step
        self._powers.append(power[:whole].reshape(-1, self._step).mean(axis=1))
        self._rest = power[whole:]

    def integrated(self) -> float:
        """Returns the loudness of all blocks so far in LUFS, and minus infinity for silence.

        A recording shorter than 0.4 s is measured as one block.
        """
        steps = np.concatenate(self._powers) if self._powers else np.zeros(0)
        if len(steps) < _STEPS:
            samples = len(steps) * self._step + len(self._rest)
            total = steps.sum() * self._step + self._rest.sum()
            return _lufs(total / samples) if samples else -math.inf
        blocks = np.convolve(steps, np.full(_STEPS, 1 / _STEPS), mode='valid')
        blocks = blocks[blocks > _power(_ABSOLUTE_GATE)]
        if not len(blocks):
            return -math.inf
        return _lufs(blocks[blocks > blocks.mean() * 10 ** (_RELATIVE_GATE / 10)].mean())


def _lufs(power: float) -> float:
    """Returns the loudness of a mean square."""
    return _OFFSET_DB + 10 * math.log10(power) if power > 0 else -math.inf


def _power(lufs: float) -> float:
    """Returns the mean square of a loudness."""
    return 10 ** ((lufs - _OFFSET_DB) / 10)


def _k_weighting(rate: int) -> np.ndarray:
    """Returns the filters as second-order sections [2, 6]."""
    # At very low rates the filters' frequencies would pass half the rate.
    k = math.tan(math.pi * min(_SHELF_HZ / rate, 0.49))
    high, band = 10 ** (_SHELF_DB / 20), (10 ** (_SHELF_DB / 20)) ** 0.4996667741545416
    a0 = 1 + k / _SHELF_Q + k * k
    shelf = [
        (high + band * k / _SHELF_Q + k * k) / a0,
        2 * (k * k - high) / a0,
        (high - band * k / _SHELF_Q + k * k) / a0,
        1,
        2 * (k * k - 1) / a0,
        (1 - k / _SHELF_Q + k * k) / a0,
    ]
    k = math.tan(math.pi * min(_HIGH_PASS_HZ / rate, 0.49))
    a0 = 1 + k / _HIGH_PASS_Q + k * k
    high_pass = [1, -2, 1, 1, 2 * (k * k - 1) / a0, (1 - k / _HIGH_PASS_Q + k * k) / a0]
    return np.array([shelf, high_pass])


class LoudnessMatch:
    """Measures a mixture and the sounds separated from it, to find the gains that make them equally loud.

    Args:
        sounds: how many are separated.
        sample_rate: Hz.
        channels: of the mixture and of each sound.
    """

    def __init__(self, sounds: int, sample_rate: int, channels: int):
        self._mixture = LoudnessMeter(sample_rate, channels)
        self._sounds = [LoudnessMeter(sample_rate, channels) for _ in range(sounds)]

    def push(self, mixture: np.ndarray, sounds: Sequence[np.ndarray]) -> None:
        """Takes the next samples of the mixture and of each sound, float32 [channels, n]."""
        self._mixture.push(mixture)
        for meter, sound in zip(self._sounds, sounds, strict=True):
            meter.push(sound)

    def gains(self) -> list[float]:
        """Returns the factor for each sound, within ±24 dB; 1 for a silent one."""
        mixture, gains = self._mixture.integrated(), []
        for meter in self._sounds:
            decibels = mixture - meter.integrated()
            bounded = np.clip(decibels, -_MAX_GAIN_DB, _MAX_GAIN_DB) if np.isfinite(decibels) else 0.0
            gains.append(float(10 ** (bounded / 20)))
        return gains
