"""Signals with the rough structure of speech, for which the expected scores are known."""

import numpy as np
from scipy.signal import lfilter


def speech_signals() -> tuple[np.ndarray, np.ndarray]:
    """Returns noise shaped like three syllables with a formant, and the same with added noise; 1.5 s at 16 kHz."""
    rng = np.random.default_rng(7)
    time = np.arange(24000) / 16000
    envelope = np.maximum(np.sin(2 * np.pi * 1.5 * time), 0.01)
    clean = 0.05 * envelope * lfilter([1], [1, -1.6, 0.81], rng.standard_normal(24000))
    return clean, clean + 0.01 * lfilter([1], [1, -0.9], rng.standard_normal(24000))
