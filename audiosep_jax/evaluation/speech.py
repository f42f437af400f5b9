"""Scores estimates of speech: PESQ, STOI, SSNR and Hu and Loizou's composite measures, on all cores."""

import contextlib
import importlib.util
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from audiosep_jax.audio.resampling import resample
from audiosep_jax.errors import ConfigError
from audiosep_jax.evaluation.composite import (
    SAMPLE_RATE,
    WINDOW,
    composite,
    log_likelihood_ratio,
    segmental_snr,
    weighted_slope,
)
from audiosep_jax.storage.system import end_with_parent


def check_installed() -> None:
    """Checks that the packages for PESQ and STOI are installed.

    Raises:
        ConfigError: one of them is missing.
    """
    missing = [name for name in ('pesq', 'pystoi') if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"scores of speech need {' and '.join(missing)}, which is not installed: pip install 'audiosep_jax[speech]'"
        )


class SpeechScorer:
    """Scores estimates of speech in worker processes, because PESQ takes longer than the separation.

    Args:
        sample_rate: rate of the signals, in Hz. They are resampled to 16 kHz, for which the measures are defined.

    Raises:
        ConfigError: the packages for PESQ or STOI are not installed.
    """

    def __init__(self, sample_rate: int):
        check_installed()
        self._rate = sample_rate
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        # Workers are spawned: a forked copy of a process that runs JAX may deadlock.
        self._pool = ProcessPoolExecutor(
            cores, mp_context=multiprocessing.get_context('spawn'), initializer=end_with_parent
        )

    def close(self) -> None:
        """Ends the workers."""
        self._pool.shutdown(cancel_futures=True)

    def scores(
        self, items: Mapping[int, tuple[np.ndarray, Mapping[str, np.ndarray]]]
    ) -> Iterator[tuple[int, str, dict[str, float]]]:
        """Yields (item, row, scores by metric).

        Args:
            items: for each item, its target [T] and the estimates [T] by row.
        """
        jobs = []
        for i, (target, estimates) in items.items():
            reference = resample(target, self._rate, SAMPLE_RATE)
            for row, estimate in estimates.items():
                job = self._pool.submit(speech_scores, reference, resample(estimate, self._rate, SAMPLE_RATE))
                jobs.append((i, row, job))
        for i, row, job in jobs:
            yield i, row, job.result()


def speech_scores(reference: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    """Returns PESQ (wideband), STOI, CSIG, CBAK, COVL and SSNR of an estimate.

    A score is left out if it is not defined: PESQ finds no speech in the reference, or a signal is too short or silent.

    Args:
        reference: float [T] at 16 kHz.
        estimate: float [T] at 16 kHz.

    Raises:
        ValueError: the shapes differ.
    """
    from pesq import PesqError, pesq
    from pystoi import stoi

    reference, estimate = np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
    if reference.shape != estimate.shape or reference.ndim != 1:
        raise ValueError(f'reference {reference.shape} and estimate {estimate.shape}: expected two of one length [T]')
    scores: dict[str, float] = {}
    try:
        # The package scales both signals to 16 bits by the larger of their peaks, and gives no score for silence.
        quality = float(pesq(SAMPLE_RATE, reference, estimate, 'wb')) if estimate.any() else float('nan')
        if np.isfinite(quality):
            scores['PESQ'] = quality
    except (PesqError, ValueError):
        pass
    if len(reference) < 2 * WINDOW:
        return scores
    if reference.any():
        with warnings.catch_warnings(), contextlib.suppress(RuntimeWarning):
            # With too little speech the package warns and returns a meaningless constant.
            warnings.simplefilter('error', RuntimeWarning)
            scores['STOI'] = float(stoi(reference, estimate, SAMPLE_RATE, extended=False))
    segmental = segmental_snr(reference, estimate)
    if 'PESQ' in scores:
        opinions = composite(
            scores['PESQ'], log_likelihood_ratio(reference, estimate), weighted_slope(reference, estimate), segmental
        )
        scores |= {'CSIG': opinions.csig, 'CBAK': opinions.cbak, 'COVL': opinions.covl}
    return {name: value for name, value in {**scores, 'SSNR': segmental}.items() if np.isfinite(value)}
