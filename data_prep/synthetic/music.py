"""Musical sounds: guitar, violin, drums, whistling. Each renderer: (rng, t [T], rate) -> [T]."""

import numpy as np

from data_prep.synthetic.signals import (
    arch,
    band,
    harmonic_tone,
    noise,
    noise_burst,
    onsets,
    place,
    pluck,
    seconds,
    strike,
    wander,
)

_SCALE = np.array([0, 2, 4, 7, 9, 12, 14, 16])  # major pentatonic, in semitones


def guitar(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Plucked strings, one after another; the high harmonics die first, as in a Karplus-Strong string."""
    root, pluck_point = rng.uniform(110, 220), rng.uniform(0.1, 0.3)
    k = np.arange(1, 31)
    amplitudes = np.abs(np.sin(np.pi * k * pluck_point)) / k**0.7
    signal = np.zeros(len(t))
    for start in onsets(rng, t[-1], rng.uniform(0.18, 0.4), 0.04):
        frequency = root * 2 ** (rng.choice(_SCALE) / 12)
        n = min(int(0.9 * rate), len(t) - int(start * rate))
        pitch = np.full(n, frequency)
        ring = rng.uniform(0.25, 0.45)
        note = np.zeros(n)
        for first, last, decay in ((1, 3, ring), (4, 9, 0.5 * ring), (10, 30, 0.2 * ring)):
            part = np.where((k >= first) & (k <= last), amplitudes, 0)
            note += harmonic_tone(pitch, part, rate) * pluck(n, rate, 0.002, decay)
        place(signal, note * rng.uniform(0.6, 1), start, rate)
    return signal


def violin(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Bowed notes with vibrato: a sawtooth under the box's resonances, gliding from note to note."""
    root = rng.uniform(220, 420)
    steps = root * 2 ** (rng.choice(_SCALE, int(t[-1] * 4) + 3) / 12)
    index = np.minimum((t * rng.uniform(1.5, 3.5) + rng.random()).astype(int), len(steps) - 1)
    glide = max(1, int(0.03 * rate))
    frequency = np.convolve(np.pad(steps[index], glide // 2, mode='edge'), np.ones(glide) / glide, mode='same')
    frequency = frequency[glide // 2 : glide // 2 + len(t)]
    vibrato = np.sin(2 * np.pi * rng.uniform(5, 6.5) * t + rng.uniform(0, 6))
    frequency = frequency * (1 + rng.uniform(0.008, 0.018) * vibrato)
    k = np.arange(1, 25)
    amplitudes = k ** -rng.uniform(0.6, 1.0) * rng.uniform(0.4, 1.3, len(k))
    bow = 1 + 0.25 * wander(rng, t, 4)
    tone = harmonic_tone(frequency, amplitudes, rate) * bow
    return tone + 0.03 * noise(rng, len(t), band(800, 4000), rate)


def drums(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """A drum kit on a grid of eighth notes: bass drum, snare drum and hi-hat."""
    eighth = rng.uniform(0.13, 0.24)
    body = seconds(int(0.3 * rate), rate)
    sweep = rng.uniform(50, 70) + rng.uniform(90, 150) * np.exp(-body / 0.03)
    bass = 1.3 * np.sin(2 * np.pi * np.cumsum(sweep) / rate) * pluck(len(body), rate, 0.002, 0.09)
    shell = strike(rng.uniform(170, 230) * np.array([1, 1.6, 2.3]), [0.8, 0.5, 0.3], [0.05, 0.04, 0.03], rate, len(t))
    snare = noise_burst(rng, rng.uniform(0.05, 0.09), band(400, 5000), rate) * 0.7
    snare[: len(shell)] += shell[: len(snare)]
    hat = noise_burst(rng, rng.uniform(0.015, 0.03), band(2500, 9000), rate) * 0.35
    signal = np.zeros(len(t))
    first = int(rng.integers(8))
    for beat, start in enumerate(onsets(rng, t[-1], eighth), first):
        place(signal, hat * rng.uniform(0.6, 1), start, rate)
        if beat % 4 == 2:
            place(signal, snare * rng.uniform(0.8, 1), start, rate)
        elif beat % 4 == 0 or rng.random() < 0.2:
            place(signal, bass * rng.uniform(0.8, 1), start, rate)
    return signal


def whistling(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Someone whistling a tune: a nearly pure tone that slides between notes, with a little breath."""
    root = rng.uniform(750, 1200)
    signal = np.zeros(len(t))
    previous = root
    for start in onsets(rng, t[-1], rng.uniform(0.22, 0.4), 0.15):
        n = int(rng.uniform(0.16, 0.36) * rate)
        target = root * 2 ** (rng.choice(_SCALE[:6]) / 12)
        s = seconds(n, rate)
        pitch = target + (previous - target) * np.exp(-s / 0.025)
        pitch *= 1 + 0.012 * np.sin(2 * np.pi * rng.uniform(5, 7) * s)
        breath = 0.05 * noise(rng, n, band(800, 3500), rate)
        place(signal, (harmonic_tone(pitch, [1, 0.08, 0.03], rate) + breath) * arch(n, 0.4), start, rate)
        previous = target
    return signal
