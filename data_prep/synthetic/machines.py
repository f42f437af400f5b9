"""Machines and people's doings: engine, helicopter, train, clock, typing, knocking, footsteps.

Each renderer: (rng, t [T], rate) -> [T].
"""

import numpy as np

from data_prep.synthetic.signals import (
    band,
    formants,
    harmonic_tone,
    noise,
    noise_burst,
    onsets,
    place,
    pluck,
    spray,
    strike,
    wander,
)


def engine(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """A motor: firing pulses, some stronger than others, through the exhaust pipe's resonances, revved now and then."""
    cylinders = rng.integers(2, 5)
    firing = rng.uniform(30, 60) * np.exp(0.25 * wander(rng, t, 0.8))
    k = np.arange(1, 181)
    f = k * 45 / cylinders
    amplitudes = formants(f, [130, 450, 1100, 2300], [80, 150, 250, 400], 0.05) * rng.uniform(0.2, 1.2, len(k))
    amplitudes *= np.where(k % cylinders == 0, 1, 0.35)  # cylinders differ a little: weak lines between the strong ones
    pulses = harmonic_tone(firing / cylinders, amplitudes, rate)
    return pulses + 0.1 * np.std(pulses) * noise(rng, len(t), band(200, 2500), rate)


def helicopter(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Rotor blades slapping the air ten to eighteen times a second, over the whine of the turbine."""
    speed = rng.uniform(10, 17)
    since = ((t * speed + rng.random()) % 1) / speed
    slap = np.exp(-since / 0.018) * (1 - np.exp(-since / 0.003))
    chop = noise(rng, len(t), band(60, rng.uniform(500, 1200)), rate) * (0.08 + slap * 2)
    whine = harmonic_tone(rng.uniform(500, 900) * (1 + 0.003 * wander(rng, t, 2)), [1, 0.5, 0.4, 0.2], rate)
    return chop + rng.uniform(0.03, 0.08) * whine


def train(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """A steam locomotive: puffs of wide-band noise in fours, the first one the strongest."""
    period = rng.uniform(0.17, 0.32)
    signal = np.zeros(len(t))
    gain = band(rng.uniform(150, 350), rng.uniform(1800, 3500))
    first = int(rng.integers(4))
    for beat, start in enumerate(onsets(rng, t[-1], period, 0.02), first):
        puff = noise_burst(rng, rng.uniform(0.25, 0.35) * period, gain, rate, attack=0.015)
        place(signal, puff * (1 if beat % 4 == 0 else 0.65), start, rate)
    return signal


def clock(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Tick, tock: two kinds of tiny metallic clatter in turn, perfectly regular."""
    period = rng.uniform(0.2, 0.4)
    sides = []
    for pitch in rng.uniform(0.85, 1.15, 2):
        modes = pitch * rng.uniform([900, 1500, 2300, 3000], [1400, 2200, 2900, 3700])
        hit = strike(modes, rng.uniform(0.4, 1, 4), rng.uniform(0.006, 0.016, 4), rate, len(t))
        side = np.zeros(int(0.12 * rate))
        for delay, loudness in ((0, 0.6), (rng.uniform(0.01, 0.02), 1.0), (rng.uniform(0.03, 0.045), 0.6)):
            place(side, hit * loudness, delay, rate)
        sides.append(side)
    signal = np.zeros(len(t))
    for beat, start in enumerate(onsets(rng, t[-1], period)):
        place(signal, sides[beat % 2], start, rate)
    return signal


def typing(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """A keyboard: uneven clacks, a deeper thock down and a lighter click up, with pauses for thought."""
    low, high = rng.uniform(500, 900), rng.uniform(2000, 4500)
    signal = np.zeros(len(t))
    for start in onsets(rng, t[-1], rng.uniform(0.1, 0.16), 0.4):
        if start > 0.25 * t[-1] and rng.random() < 0.15:
            continue
        down = noise_burst(rng, rng.uniform(0.006, 0.012), band(low, high), rate) * rng.uniform(0.5, 1)
        up = noise_burst(rng, 0.004, band(2 * low, 1.5 * high), rate) * rng.uniform(0.15, 0.35)
        place(signal, down, start, rate)
        place(signal, up, start + rng.uniform(0.05, 0.08), rate)
    return signal


def knocking(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Knuckles on a wooden door: groups of two to five hollow knocks."""
    modes = rng.uniform([150, 300, 480, 800, 1400, 2200], [240, 450, 750, 1300, 2100, 3200])
    decays = rng.uniform(0.6, 1.2, 6) * [0.035, 0.03, 0.024, 0.018, 0.012, 0.008]
    hit = strike(modes, rng.uniform(0.4, 1, 6) * [1, 1, 1, 0.9, 0.8, 0.6], decays, rate, len(t))
    period, pause = rng.uniform(0.12, 0.22), rng.uniform(0.25, 0.5)
    signal = np.zeros(len(t))
    start = rng.uniform(0, min(pause, 0.2 * t[-1]))
    while start < t[-1]:
        for _ in range(rng.integers(2, 6)):
            place(signal, hit * rng.uniform(0.6, 1), start, rate)
            start += period * rng.uniform(0.93, 1.07)
        start += pause
    return signal


def footsteps(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Walking on gravel: a dull heel, then the crunch of stones under the sole."""
    signal = np.zeros(len(t))
    gain = band(rng.uniform(400, 900), rng.uniform(2500, 5000), 1)
    for start in onsets(rng, t[-1], rng.uniform(0.32, 0.55), 0.06):
        heel = strike([rng.uniform(70, 110), rng.uniform(150, 230)], [1.2, 0.8], [0.03, 0.02], rate, len(t))
        n = int(rng.uniform(0.12, 0.2) * rate)
        crunch = spray(rng, n, 900, gain, rate) * pluck(n, rate, 0.03, 0.05)
        place(signal, heel, start, rate)
        place(signal, crunch * rng.uniform(0.5, 0.9), start + 0.02, rate)
    return signal
