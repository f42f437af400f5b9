"""Animal sounds: dog, cat, bird, cricket, frog, bee. Each renderer: (rng, t [T], rate) -> [T]."""

import numpy as np

from data_prep.synthetic.signals import (
    arch,
    band,
    formants,
    gate,
    harmonic_tone,
    noise,
    onsets,
    place,
    pluck,
    seconds,
    sine,
    wander,
)


def dog(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Barks: short, rough, harmonic bursts whose pitch jumps up and falls, in ones and twos."""
    pitch = rng.uniform(250, 480)
    size = 350 / pitch
    k = np.arange(1, 25)
    throat = formants(k * pitch, [750 * size**0.4, 1500 * size**0.4, 2600], [250, 300, 400])
    signal = np.zeros(len(t))
    for start in onsets(rng, t[-1], rng.uniform(0.35, 0.6), 0.25):
        n = int(rng.uniform(0.13, 0.22) * rate)
        s = seconds(n, rate) * rate / n
        frequency = pitch * rng.uniform(0.9, 1.15) * (0.8 + 0.6 * np.sin(np.pi * s**0.6))
        rough = noise(rng, n, band(500, 3000), rate)
        bark = harmonic_tone(frequency, throat * k**-0.2, rate) * (1 + 0.3 * rough) + 0.25 * rough
        place(signal, bark * pluck(n, rate, 0.012, 0.09) * arch(n, 0.2) * rng.uniform(0.6, 1), start, rate)
    return signal


def cat(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Meows: a held, arched pitch while the mouth opens and closes (the vowels ee, ah, oo)."""
    pitch = rng.uniform(420, 700)
    k = np.arange(1, 17)
    vowels = [formants(k * pitch, c, w) / k**0.3 for c, w in (([500, 2600], [120, 250]), ([1100, 1900], [250, 300]))]
    signal = np.zeros(len(t))
    for start in onsets(rng, t[-1], rng.uniform(0.8, 1.3), 0.15):
        n = int(rng.uniform(0.45, 0.8) * rate)
        s = seconds(n, rate) * rate / n
        frequency = pitch * (0.85 + 0.3 * np.sin(np.pi * s**0.7)) * (1 + 0.012 * np.sin(2 * np.pi * 28 * s * n / rate))
        opened = np.sin(np.pi * s) ** 1.5
        meow = (1 - opened) * harmonic_tone(frequency, vowels[0], rate) + opened * harmonic_tone(
            frequency, vowels[1], rate
        )
        place(signal, meow * arch(n, 0.6) * rng.uniform(0.7, 1), start, rate)
    return signal


def bird(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Birdsong: a motif of quick whistles that sweep up and down, sung over and over."""
    motif = [
        (rng.uniform(0.04, 0.13), *rng.uniform(1500, 3600, 3), rng.uniform(0.5, 1)) for _ in range(rng.integers(2, 5))
    ]
    gap, pause = rng.uniform(0.02, 0.06), rng.uniform(0.08, 0.3)
    chirps = []
    for length, first, middle, last, loudness in motif:
        s = np.linspace(0, 1, int(length * rate))
        frequency = first * (1 - s) ** 2 + 2 * middle * s * (1 - s) + last * s**2
        chirps.append((length, loudness * sine(frequency, rate) * arch(len(s), 0.7)))
    signal = np.zeros(len(t))
    start = rng.uniform(0, min(pause, 0.2 * t[-1]))
    while start < t[-1]:
        for length, chirp in chirps:
            place(signal, chirp, start, rate)
            start += length + gap
        start += pause * rng.uniform(0.8, 1.2)
    return signal


def cricket(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Stridulation: pulses of a high tone, some 30 a second, three to five to a chirp, chirp after chirp."""
    pitch = rng.uniform(2400, min(4600, 0.45 * rate))
    speed, pulses = rng.uniform(24, 40), rng.integers(3, 7)
    period = pulses / speed + rng.uniform(0.08, 0.25)
    position = (t + rng.random() * 0.5 * pulses / speed) % period
    envelope = np.sin(np.pi * ((position * speed) % 1)) ** 2 * gate(position, 0, pulses / speed)
    return envelope * harmonic_tone(pitch * (1 + 0.004 * wander(rng, t, 20)), [1, 0.1], rate)


def frog(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Croaks: slow trains of pulses, each one a damped ring of the vocal sac."""
    pitch, speed = rng.uniform(450, 900), rng.uniform(28, 55)
    signal = np.zeros(len(t))
    for start in onsets(rng, t[-1], rng.uniform(0.45, 0.8), 0.15):
        n = int(rng.uniform(0.2, 0.4) * rate)
        s = seconds(n, rate)
        since = ((s * speed * (1 + 0.3 * s)) % 1) / speed
        ring = np.sin(2 * np.pi * pitch * since) + 0.7 * np.sin(2 * np.pi * 2.4 * pitch * since)
        place(signal, ring * np.exp(-since / 0.006) * arch(n, 0.5) * rng.uniform(0.7, 1), start, rate)
    return signal


def bee(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Buzzing wings: a rich harmonic tone that never holds its pitch, coming near and going away."""
    frequency = rng.uniform(170, 260) * (1 + 0.04 * wander(rng, t, 6) + 0.01 * wander(rng, t, 40))
    k = np.arange(1, 21)
    amplitudes = formants(k * 210, [500, 1500, 2600], [400, 500, 500]) * rng.uniform(0.4, 1.2, len(k)) * k**-0.3
    return harmonic_tone(frequency, amplitudes, rate) * np.exp(0.5 * wander(rng, t, 1.5))
