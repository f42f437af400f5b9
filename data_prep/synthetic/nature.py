"""Weather and water: rain, wind, waves, dripping. Each renderer: (rng, t [T], rate) -> [T]."""

import numpy as np

from data_prep.synthetic.signals import band, noise, onsets, place, pluck, seconds, sine, spray, wander


def rain(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Steady wide-band hiss with the patter of single drops on top."""
    hiss = noise(rng, len(t), band(rng.uniform(250, 700), rng.uniform(3000, 8000), 1), rate)
    patter = spray(rng, len(t), rng.uniform(60, 250), band(rng.uniform(500, 1000), rng.uniform(2500, 5000)), rate)
    return hiss * (1 + 0.05 * wander(rng, t, 1)) + rng.uniform(0.2, 0.5) * patter


def wind(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Gusts: noise in a few narrow bands whose strengths drift, and a howl that slides in pitch."""
    centre = rng.uniform(250, 500)
    signal = np.zeros(len(t))
    for octave in range(4):
        middle = centre * 2 ** (octave - 1.0)
        signal += (
            0.6**octave
            * noise(rng, len(t), band(0.8 * middle, 1.25 * middle), rate)
            * np.exp(0.6 * wander(rng, t, 1.2))
        )
    howl = centre * rng.uniform(1.5, 2.5) * np.exp(0.15 * wander(rng, t, 1.0))
    breath = noise(rng, len(t), band(1, 25), rate)  # slow noise on a carrier is a narrow band that can slide
    return signal + rng.uniform(0.5, 1.2) * sine(howl, rate) * breath * np.exp(0.5 * wander(rng, t, 1.0))


def waves(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Surf: a rumble that swells, then the bright rush of the breaking wave, again and again."""
    period = rng.uniform(2.5, 5)
    position = t / period + rng.uniform(0, 0.8)
    swell = (0.5 - 0.5 * np.cos(2 * np.pi * (position % 1) ** 0.8)) ** 2
    rush = (0.5 - 0.5 * np.cos(2 * np.pi * np.clip((position % 1) * 1.4 - 0.4, 0, 1) ** 0.7)) ** 2
    rumble = noise(rng, len(t), band(80, rng.uniform(400, 700)), rate)
    foam = noise(rng, len(t), band(rng.uniform(500, 900), 6000, 1), rate)
    return rumble * (0.1 + swell) + foam * (0.05 + 1.2 * rush)


def dripping(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """A dripping tap: each drop traps a bubble whose note rises as it dies away; the basin answers."""
    signal = np.zeros(len(t))
    pitch = rng.uniform(600, 1300)
    for start in onsets(rng, t[-1], rng.uniform(0.2, 0.45), 0.2):
        n = int(0.2 * rate)
        s = seconds(n, rate)
        frequency = pitch * rng.uniform(0.8, 1.3) * (1 + rng.uniform(3, 8) * np.minimum(s, 0.1))
        drop = sine(frequency, rate) * pluck(n, rate, 0.002, rng.uniform(0.025, 0.045)) * rng.uniform(0.5, 1)
        place(signal, drop, start, rate)
        place(signal, 0.3 * drop, start + 0.06, rate)
    return signal
