"""Scores of speech for a batch, on all cores: PESQ takes longer than separating."""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from audiosep_jax.audio.resampling import resample
from audiosep_jax.speech_metrics import SAMPLE_RATE, check_installed, speech_scores
from audiosep_jax.storage.system import end_with_parent


class SpeechScorer:
    """Workers that score estimates of speech. Raises ConfigError where the packages for it are not installed."""

    def __init__(self, sample_rate: int):
        """`sample_rate`: of what it gets, Hz; the measures are made for 16 kHz."""
        check_installed()
        self._rate = sample_rate
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        # Spawned: a forked copy of a process that runs JAX may stand still.
        self._pool = ProcessPoolExecutor(
            cores, mp_context=multiprocessing.get_context('spawn'), initializer=end_with_parent
        )

    def close(self) -> None:
        """Ends the workers."""
        self._pool.shutdown(cancel_futures=True)

    def scores(
        self, items: Mapping[int, tuple[np.ndarray, Mapping[str, np.ndarray]]]
    ) -> Iterator[tuple[int, str, dict[str, float]]]:
        """By item, the target [T] and estimates [T] by row -> item, row, scores by metric."""
        jobs = []
        for i, (target, estimates) in items.items():
            reference = resample(target, self._rate, SAMPLE_RATE)
            for row, estimate in estimates.items():
                job = self._pool.submit(speech_scores, reference, resample(estimate, self._rate, SAMPLE_RATE))
                jobs.append((i, row, job))
        for i, row, job in jobs:
            yield i, row, job.result()
