"""The building blocks of the synthetic sounds: harmonic tones, shaped noise, struck objects, onsets and envelopes.

Signals are float64 or float32 [T]; `rate` is samples per second, frequencies are in Hz, times in seconds.
"""

from collections.abc import Callable, Sequence

import numpy as np

# Partials this close to half the sample rate are left out: a zero-phase table cannot alias below it.
_HIGHEST = 0.48
_TABLE_SIZE = 8192


def harmonic_tone(frequency: np.ndarray, amplitudes: Sequence[float] | np.ndarray, rate: int) -> np.ndarray:
    """A periodic tone that follows `frequency` [T] with the given `amplitudes` [K] of its harmonics 1..K -> [T].

    One cycle is tabulated and read along the phase: the cost does not depend on K. Harmonics that would pass half the
    sample rate at the highest frequency are dropped.
    """
    keep = int(_HIGHEST * rate / np.max(frequency))
    amplitudes = np.asarray(amplitudes)[:keep]
    spectrum = np.zeros(_TABLE_SIZE // 2 + 1, np.complex128)
    spectrum[1 : 1 + len(amplitudes)] = -0.5j * _TABLE_SIZE * amplitudes
    table = np.fft.irfft(spectrum)
    phase = np.cumsum(frequency) * (_TABLE_SIZE / rate)
    return table[phase.astype(np.int64) & (_TABLE_SIZE - 1)]


def sine(frequency: np.ndarray, rate: int) -> np.ndarray:
    """A pure tone that follows `frequency` [T] -> [T]."""
    return np.sin(np.cumsum(frequency) * (2 * np.pi / rate))


def shaped(signal: np.ndarray, gain: Callable[[np.ndarray], np.ndarray], rate: int) -> np.ndarray:
    """[T] filtered (circularly, without delay) by `gain`, a function of frequency, and scaled to an RMS of 1 -> [T]."""
    frequencies = np.fft.rfftfreq(len(signal), 1 / rate)
    out = np.fft.irfft(np.fft.rfft(signal) * gain(np.maximum(frequencies, 1.0)), len(signal))
    return out / (np.sqrt(np.mean(out**2)) + 1e-12)


def noise(rng: np.random.Generator, num_samples: int, gain: Callable[[np.ndarray], np.ndarray], rate: int):
    """Gaussian noise with the spectrum `gain` and an RMS of 1 -> [num_samples]."""
    return shaped(rng.standard_normal(num_samples), gain, rate)


def spray(rng: np.random.Generator, num_samples: int, density: float, gain, rate: int) -> np.ndarray:
    """Random impulses, `density` per second, coloured by `gain`, with an RMS of 1 -> [num_samples]: drops, grit."""
    hits = rng.random(num_samples) < density / rate
    return shaped(rng.standard_normal(num_samples) * hits, gain, rate)


def band(low: float, high: float, order: int = 2) -> Callable[[np.ndarray], np.ndarray]:
    """The gain of a band-pass filter between `low` and `high` Hz, 6 dB per octave and order outside."""
    return lambda f: 1 / np.sqrt((1 + (low / f) ** (2 * order)) * (1 + (f / high) ** (2 * order)))


def formants(frequencies: np.ndarray, centres, widths, floor: float = 0.03) -> np.ndarray:
    """The gain of a throat or a box with resonances at `centres` of half-widths `widths`, at `frequencies` [K]."""
    f = np.asarray(frequencies, float)[:, None]
    return floor + np.sum(1 / (1 + ((f - np.asarray(centres)) / np.asarray(widths)) ** 2), axis=1)


def strike(frequencies, amplitudes, decays, rate: int, num_samples: int) -> np.ndarray:
    """A struck object: sine modes [K] that die away with the time constants `decays` -> float32 [<= num_samples].

    It ends where the slowest mode is 60 dB down. Modes beyond the sample rate's reach are dropped.
    """
    frequencies, amplitudes, decays = (np.asarray(x, np.float32) for x in (frequencies, amplitudes, decays))
    audible = frequencies < _HIGHEST * rate
    frequencies, amplitudes, decays = frequencies[audible], amplitudes[audible], decays[audible]
    t = seconds(min(num_samples, int(6.9 * decays.max() * rate) + 1), rate)
    modes = np.exp(-t / decays[:, None]) * np.sin((2 * np.pi * frequencies)[:, None] * t)
    return amplitudes @ modes


def noise_burst(rng: np.random.Generator, decay: float, gain, rate: int, attack: float = 0.001) -> np.ndarray:
    """Noise with the spectrum `gain` that rises over `attack` and dies away with `decay` -> [about 5 decays]."""
    n = int((attack + 5 * decay) * rate) + 8
    return noise(rng, n, gain, rate) * pluck(n, rate, attack, decay)


def pluck(num_samples: int, rate: int, attack: float, decay: float) -> np.ndarray:
    """The envelope of an impact: linear rise over `attack`, then exponential decay -> float32 [num_samples]."""
    t = seconds(num_samples, rate)
    return np.minimum(t / attack, 1) * np.exp(-np.maximum(t - attack, 0) / decay)


def arch(num_samples: int, power: float = 0.5) -> np.ndarray:
    """The envelope of a call: half a sine to the given power, from 0 to 1 to 0 -> [num_samples]."""
    return np.sin(np.pi * (np.arange(num_samples) + 0.5) / num_samples) ** power


def gate(t: np.ndarray, start: float, stop: float, ramp: float = 0.004) -> np.ndarray:
    """1 between `start` and `stop`, 0 outside, with linear ramps -> [T]."""
    return np.clip(np.minimum(t - start, stop - t) / ramp, 0, 1)


def wander(rng: np.random.Generator, t: np.ndarray, speed: float) -> np.ndarray:
    """A smooth random curve of about unit variance that changes `speed` times per second -> [T]."""
    knots = rng.standard_normal(int(t[-1] * speed) + 4)
    position = t * speed + rng.random()
    whole = position.astype(int)
    step = position - whole
    step = step * step * (3 - 2 * step)
    return knots[whole] * (1 - step) + knots[whole + 1] * step


def onsets(rng: np.random.Generator, duration: float, period: float, jitter: float = 0.0) -> np.ndarray:
    """Times of events about `period` apart; the first one falls into the first quarter of the clip."""
    count = int(duration / period * 1.5) + 2
    steps = period * np.maximum(1 + jitter * rng.standard_normal(count), 0.3)
    times = rng.uniform(0, min(period, 0.25 * duration)) + np.concatenate([[0], np.cumsum(steps)])
    return times[times < duration]


def place(signal: np.ndarray, event: np.ndarray, start: float, rate: int) -> None:
    """Adds `event` to `signal` [T] in place from `start` seconds on; what passes the end is cut."""
    first = int(start * rate)
    last = min(first + len(event), len(signal))
    if last > first:
        signal[first:last] += event[: last - first]


def seconds(num_samples: int, rate: int) -> np.ndarray:
    """The time of each sample -> float32 [num_samples]."""
    return np.arange(num_samples, dtype=np.float32) / np.float32(rate)
