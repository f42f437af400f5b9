"""Sounds made to be noticed: siren, alarm, telephone, church bell. Each renderer: (rng, t [T], rate) -> [T]."""

import numpy as np

from data_prep.synthetic.signals import gate, harmonic_tone, onsets, place, strike


def siren(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """A tone that climbs and falls: a slow wail, a quick yelp, or the two-tone horn of an ambulance."""
    low, high = rng.uniform(450, 700), rng.uniform(1100, 1600)
    kind = rng.choice(['wail', 'yelp', 'two-tone'])
    speed = {'wail': rng.uniform(0.35, 0.8), 'yelp': rng.uniform(2, 4), 'two-tone': rng.uniform(0.8, 1.4)}[kind]
    cycle = (speed * t + rng.random()) % 1
    if kind == 'two-tone':
        height = np.clip(np.abs(cycle - 0.5) * 60 - 14.5, 0, 1)  # a square wave with 10 ms corners
        high = low * rng.uniform(1.3, 1.5)
    else:
        rise = rng.uniform(0.4, 0.7)
        height = np.where(cycle < rise, cycle / rise, (1 - cycle) / (1 - rise))
    frequency = low * (high / low) ** height
    k = np.arange(1, 9)
    amplitudes = k ** -rng.uniform(0.7, 1.3) * np.where(k % 2, 1, rng.uniform(0.3, 1))
    return harmonic_tone(frequency, amplitudes, rate)


def alarm(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """Electronic beeps of one pitch in an endless pattern: evenly spaced, or in groups of three or four."""
    frequency = rng.uniform(650, 2200)
    beep, gap = rng.uniform(0.05, 0.12), rng.uniform(0.04, 0.09)
    group = rng.choice([1, 3, 4])
    pause = gap if group == 1 else rng.uniform(0.2, 0.4)
    period = group * (beep + gap) - gap + pause
    position = (t + rng.random() * ((group - 1) * (beep + gap) + 0.5 * beep)) % period  # never starts with the pause
    sounding = sum(gate(position, i * (beep + gap), i * (beep + gap) + beep, 0.003) for i in range(group))
    odd = np.zeros(9)
    odd[::2] = np.arange(1, 10, 2) ** -rng.uniform(0.6, 1.2)
    return sounding * harmonic_tone(np.full(len(t), frequency), odd, rate)


def telephone(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """The old kind: a clapper that strikes two little gongs in turn, some 20 times a second, one second on, one off."""
    speed, decay = rng.uniform(18, 26), rng.uniform(0.05, 0.12)
    ring, silence = rng.uniform(0.7, 1.3), rng.uniform(0.4, 0.8)
    position = t + rng.random() * 0.5 * ring
    signal = np.zeros(len(t))
    gong = rng.uniform(850, 1250)
    for offset, pitch in ((0.0, gong), (0.5, gong * rng.uniform(1.15, 1.35))):
        since = ((position * speed / 2 + offset) % 1) * 2 / speed
        for ratio, amplitude in ((1, 1.0), (2.2, 0.8), (2.9, 0.5), (4.1, 0.4)):
            if pitch * ratio < 0.48 * rate:
                tone = np.sin(2 * np.pi * pitch * ratio * t + rng.uniform(0, 2 * np.pi))
                signal += amplitude * np.exp(-since * (0.5 + 0.5 * ratio) / decay) * tone
    return signal * gate(position % (ring + silence), 0, ring, 0.01)


def bell(rng: np.random.Generator, t: np.ndarray, rate: int) -> np.ndarray:
    """A church bell: the partials hum, prime, tierce, quint, nominal and above, each beating slowly with its twin."""
    prime = rng.uniform(220, 480)
    ratios = np.array([0.5, 1, 1.2, 1.5, 2, 2.5, 3, 4.15, 5.4, 6.8])
    amplitudes = np.array([0.5, 0.8, 0.8, 0.4, 1, 0.5, 0.6, 0.45, 0.3, 0.2]) * rng.uniform(0.6, 1.2, 10)
    decays = rng.uniform(0.9, 1.6) / (0.5 + 0.5 * ratios)
    frequencies = prime * ratios * (1 + rng.normal(0, 0.003, 10))
    stroke = strike(frequencies, amplitudes, decays, rate, len(t))
    signal = np.zeros(len(t))
    for start in onsets(rng, t[-1], rng.uniform(0.6, 1.1), 0.03):
        place(signal, stroke * rng.uniform(0.6, 1), start, rate)
    return signal
