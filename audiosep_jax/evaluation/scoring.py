"""Scores of a batch of estimates, on the device."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax import metrics
from audiosep_jax.evaluation.loading import Sound

# Lengths of scored batches are multiples of this, so that few shapes are compiled.
_GRID = 16384


def sdr_family(
    sounds: Sequence[Sound], estimates: Mapping[str, Sequence[np.ndarray | None]], batch_size: int = 1
) -> list[dict[str, dict[str, float]]]:
    """SDR, SDRi, SI-SDR and SI-SDRi in dB of each row's estimates [T], for each sound; None where a row has none."""
    targets, counts = padded_batch([sound.target for sound in sounds], batch_size)
    mixtures, _ = padded_batch([sound.mixture for sound in sounds], batch_size)
    filled = [
        padded_batch([s.mixture if e is None else e for s, e in zip(sounds, row, strict=True)], batch_size)[0]
        for row in estimates.values()
    ]
    sdr, si_sdr = jax.device_get(_jitted_scores(targets, np.stack([mixtures, *filled]), _filled(counts, batch_size)))
    results: list[dict[str, dict[str, float]]] = [{} for _ in sounds]
    for row, (name, own) in enumerate(estimates.items(), start=1):
        for b, estimate in enumerate(own):
            if estimate is not None:
                results[b][name] = {
                    'SDR': float(sdr[row, b]),
                    'SDRi': float(sdr[row, b] - sdr[0, b]),
                    'SI-SDR': float(si_sdr[row, b]),
                    'SI-SDRi': float(si_sdr[row, b] - si_sdr[0, b]),
                }
    return results


@jax.jit
def _jitted_scores(targets: jax.Array, estimates: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, S], [R, B, S] and the samples that count [B] -> SDR and SI-SDR in dB, [R, B] each."""
    targets = jnp.broadcast_to(targets, estimates.shape)
    return metrics.sdr(targets, estimates, num_samples=counts), metrics.si_sdr(targets, estimates)


def padded_batch(signals: Sequence[np.ndarray], batch_size: int) -> tuple[np.ndarray, list[int]]:
    """n arrays [T_i] as float32 [max(n, batch_size), S] with zeros behind, and their lengths."""
    counts = [len(signal) for signal in signals]
    longest = -(-max(counts, default=1) // _GRID) * _GRID
    padded = np.zeros((max(len(signals), batch_size), longest), np.float32)
    for row, signal in zip(padded, signals, strict=False):
        row[: len(signal)] = signal
    return padded, counts


def _filled(counts: Sequence[int], batch_size: int) -> np.ndarray:
    return np.array([*counts, *[1] * (batch_size - len(counts))], np.int32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-10))
