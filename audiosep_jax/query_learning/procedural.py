"""Procedural backgrounds: noises, tones and knocks for those who have no recordings of what surrounds a sound.

They only stand in for recordings. What they cannot teach is which similar sounds to leave out.
"""

import numpy as np
from jaxtyping import Float, Float32

_KNOCK_SECONDS = 0.5


def procedural_background(rng: np.random.Generator, length: int, sample_rate: int) -> Float32[np.ndarray, ' {length}']:
    """Makes one or two procedural sounds at once, with a root mean square of 0.1.

    Args:
        rng: draws the kinds and all that makes two sounds of one kind differ.
        length: in samples.
        sample_rate: in Hz.
    """
    signal = np.zeros(length)
    for kind in rng.choice(3, size=rng.integers(1, 3), replace=False):
        sound = (_noise, _tone, _knocks)[kind](rng, length, sample_rate)
        signal += rng.uniform(0.3, 1) * sound / max(float(np.sqrt(np.mean(sound**2))), 1e-9)
    return (0.1 * signal / max(float(np.sqrt(np.mean(signal**2))), 1e-9)).astype(np.float32)


def _noise(rng: np.random.Generator, length: int, sample_rate: int) -> Float[np.ndarray, ' {length}']:
    """Noise in a band, from white to brown, whose strength swells and fades: wind, traffic, a fan."""
    low, octaves = np.exp(rng.uniform(np.log(40), np.log(sample_rate / 8))), rng.uniform(1, 7)
    frequencies = np.maximum(np.fft.rfftfreq(length, 1 / sample_rate), 1.0)
    gain = frequencies ** -rng.uniform(0, 1) / np.sqrt(
        (1 + (low / frequencies) ** 4) * (1 + (frequencies / (low * 2**octaves)) ** 4)
    )
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * gain, length)
    return noise * np.exp(rng.uniform(0, 1) * _wander(rng, length, rng.uniform(0.5, 8), sample_rate))


def _tone(rng: np.random.Generator, length: int, sample_rate: int) -> Float[np.ndarray, ' {length}']:
    """A harmonic tone whose pitch glides: an engine, a siren, an instrument."""
    pitch = np.exp(rng.uniform(np.log(60), np.log(min(1500, sample_rate / 8))))
    frequency = pitch * np.exp(rng.uniform(0, 0.3) * _wander(rng, length, rng.uniform(0.5, 4), sample_rate))
    phase = np.cumsum(frequency) * (2 * np.pi / sample_rate)
    slope = rng.uniform(0.3, 2)
    harmonics = range(1, 1 + min(20, int(0.4 * sample_rate / frequency.max())))
    tone = sum((rng.uniform(0.3, 1) * k**-slope * np.sin(k * phase) for k in harmonics), start=np.zeros(length))
    return tone * np.exp(0.5 * _wander(rng, length, rng.uniform(0.5, 6), sample_rate))


def _knocks(rng: np.random.Generator, length: int, sample_rate: int) -> Float[np.ndarray, ' {length}']:
    """Things that are struck, now and then: steps, doors, dishes."""
    t = np.arange(int(_KNOCK_SECONDS * sample_rate)) / sample_rate
    signal = np.zeros(length + len(t))
    modes = np.exp(rng.uniform(np.log(100), np.log(0.4 * sample_rate), size=(5, 1)))
    decay = np.exp(rng.uniform(np.log(0.01), np.log(0.15), size=(5, 1)))
    noisiness = rng.uniform(0, 1)
    for start in rng.integers(length, size=1 + rng.poisson(rng.uniform(1, 6) * length / sample_rate)):
        ring = (rng.uniform(0.2, 1, (5, 1)) * np.sin(2 * np.pi * modes * t) * np.exp(-t / decay)).sum(0)
        burst = noisiness * rng.standard_normal(len(t)) * np.exp(-t / 0.02)
        signal[start : start + len(t)] += rng.uniform(0.3, 1) * (ring + burst)
    return signal[:length]


def _wander(rng: np.random.Generator, length: int, changes: float, sample_rate: int) -> Float[np.ndarray, ' {length}']:
    """A random curve of about unit variance that turns `changes` times a second."""
    position = np.arange(length) * (changes / sample_rate)
    knots = rng.standard_normal(int(position[-1]) + 2 if length else 2)
    return np.interp(position, np.arange(len(knots)), knots)
