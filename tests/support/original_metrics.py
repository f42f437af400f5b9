"""SDR and SI-SDR of the original's `utils.py`, its arithmetic written out again in numpy: float32 means and sums, the
floor of 1e-10 under mean squares, float32's epsilon in SI-SDR."""

import numpy as np


def calculate_sdr(reference, estimate):
    powers = [np.mean(signal**2) for signal in (reference, estimate - reference)]
    signal, error = (np.clip(power, 1e-10, None) for power in powers)
    return 10 * np.log10(signal / error)


def calculate_sisdr(reference, estimate):
    epsilon = np.finfo(reference.dtype).eps
    scale = (epsilon + reference @ estimate) / (reference @ reference + epsilon)
    wanted = scale * reference
    signal, error = np.sum(wanted**2), np.sum((estimate - wanted) ** 2)
    return 10 * np.log10((epsilon + signal) / (epsilon + error))
