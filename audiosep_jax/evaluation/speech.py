"""Scores of speech for a batch, on all cores: PESQ takes longer than separating."""

import contextlib
import dataclasses
import functools
import importlib.util
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from audiosep_jax.audio.resampling import resample
from audiosep_jax.errors import ConfigError
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


SAMPLE_RATE = 16000  # Hz, of all measures here
_WINDOW, _HOP = 480, 120
_ORDER = 16  # of linear prediction
_BEST_SHARE = 0.95
_LOWEST_SNR, _HIGHEST_SNR = -10.0, 35.0  # dB, of a frame
_TINY = float(np.finfo(np.float64).eps)
# Klatt's critical bands, Hz: (centre, width).
_BANDS = (
    (50, 70), (120, 70), (190, 70), (260, 70), (330, 70), (400, 70), (470, 70), (540, 77.3724), (617.372, 86.0056),
    (703.378, 95.3398), (798.717, 105.411), (904.128, 116.256), (1020.38, 127.914), (1148.30, 140.423),
    (1288.72, 153.823), (1442.54, 168.154), (1610.70, 183.457), (1794.16, 199.776), (1993.93, 217.153),
    (2211.08, 235.631), (2446.71, 255.255), (2701.97, 276.072), (2978.04, 298.126), (3276.17, 321.465),
    (3597.63, 346.136),
)  # fmt: skip
_GLOBAL_PEAK, _LOCAL_PEAK = 20.0, 1.0  # Klatt's weights of the distance to the highest and the nearest peak


@dataclasses.dataclass(frozen=True)
class Composite:
    """Predicted opinions, 1 to 5."""

    csig: float
    cbak: float
    covl: float


def check_installed() -> None:
    """Raises ConfigError where PESQ or STOI is not installed."""
    missing = [name for name in ('pesq', 'pystoi') if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"scores of speech need {' and '.join(missing)}, which is not installed: pip install 'audiosep_jax[speech]'"
        )


def speech_scores(reference: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    """PESQ (wideband), STOI, CSIG, CBAK, COVL and SSNR of an estimate, both float [T] at 16 kHz.

    Where PESQ finds no speech in the reference, or a signal is too short or silent, what cannot be had is left out.

    Raises:
        ValueError: shapes that differ.
    """
    from pesq import PesqError, pesq
    from pystoi import stoi

    reference, estimate = np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
    if reference.shape != estimate.shape or reference.ndim != 1:
        raise ValueError(f'reference {reference.shape} and estimate {estimate.shape}: expected two of one length [T]')
    scores = {}
    try:
        # In 16-bit steps inside, relative to the larger of the two peaks: silence has no score.
        quality = float(pesq(SAMPLE_RATE, reference, estimate, 'wb')) if estimate.any() else float('nan')
        if np.isfinite(quality):
            scores['PESQ'] = quality
    except (PesqError, ValueError):
        pass
    if len(reference) < 2 * _WINDOW:
        return scores
    if reference.any():
        with warnings.catch_warnings(), contextlib.suppress(RuntimeWarning):
            warnings.simplefilter('error', RuntimeWarning)  # of too little speech; the score is then made up
            scores['STOI'] = float(stoi(reference, estimate, SAMPLE_RATE, extended=False))
    segmental = segmental_snr(reference, estimate)
    if 'PESQ' in scores:
        opinions = composite(
            scores['PESQ'], log_likelihood_ratio(reference, estimate), weighted_slope(reference, estimate), segmental
        )
        scores |= {'CSIG': opinions.csig, 'CBAK': opinions.cbak, 'COVL': opinions.covl}
    return {name: value for name, value in {**scores, 'SSNR': segmental}.items() if np.isfinite(value)}


def composite(pesq: float, llr: float, wss: float, ssnr: float) -> Composite:
    """The regressions of Hu and Loizou, limited to 1 to 5."""

    def limited(value: float) -> float:
        return float(np.clip(value, 1, 5))

    return Composite(
        csig=limited(3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss),
        cbak=limited(1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr),
        covl=limited(1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss),
    )


def segmental_snr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """The mean over frames of their SNR, each limited to -10 … 35 dB."""
    signal = np.sum(_frames(reference) ** 2, axis=1)
    noise = np.sum(_frames(reference - estimate) ** 2, axis=1)
    decibels = 10 * np.log10(signal / (noise + _TINY) + _TINY)
    return float(np.mean(np.clip(decibels, _LOWEST_SNR, _HIGHEST_SNR)))


def log_likelihood_ratio(reference: np.ndarray, estimate: np.ndarray) -> float:
    """How much worse the estimate's linear prediction is for the reference than its own: the log of the ratio of the
    residual energies, the mean of the smallest 95 % of the frames."""
    correlation = _autocorrelation(_frames(reference + _TINY))  # [N, P + 1]
    own, other = _prediction(correlation), _prediction(_autocorrelation(_frames(estimate + _TINY)))
    lags = np.abs(np.subtract.outer(np.arange(_ORDER + 1), np.arange(_ORDER + 1)))
    toeplitz = correlation[:, lags]  # [N, P + 1, P + 1]
    residual = [np.einsum('np,npq,nq->n', a, toeplitz, a) for a in (other, own)]
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = residual[0] / residual[1]
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    ratio = np.where(ratio <= 0, 1000.0, ratio)  # rounding of a frame that is nearly silent
    return _best(np.log(ratio))


def weighted_slope(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Klatt's distance between the slopes of the spectra in 25 critical bands, weighted towards spectral peaks."""
    levels = [_band_levels(signal + _TINY) for signal in (reference, estimate)]  # [N, 25] dB
    slopes = [np.diff(level, axis=1) for level in levels]
    weights = sum(_peak_weights(level, slope) for level, slope in zip(levels, slopes, strict=True)) / 2
    return _best(np.sum(weights * (slopes[0] - slopes[1]) ** 2, axis=1) / np.sum(weights, axis=1))


@functools.cache
def _hann() -> np.ndarray:
    """Symmetric, without the zeros at its ends, as MATLAB's `hanning`."""
    return 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, _WINDOW + 1) / (_WINDOW + 1)))


def _frames(signal: np.ndarray) -> np.ndarray:
    """[T] -> [N, window], windowed; as in `composite.m` the last frame that would fit is not taken."""
    count = max(1, (len(signal) - _WINDOW) // _HOP)
    return np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[::_HOP][:count] * _hann()


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """[N, window] -> lags 0 … P, [N, P + 1]."""
    size = frames.shape[1]
    return np.stack([np.sum(frames[:, : size - lag] * frames[:, lag:], axis=1) for lag in range(_ORDER + 1)], axis=1)


def _prediction(correlation: np.ndarray) -> np.ndarray:
    """Levinson and Durbin's recursion: [N, P + 1] -> the filter (1, -a₁, …, -a_P), [N, P + 1]."""
    filters = np.zeros_like(correlation)
    filters[:, 0] = 1
    error = correlation[:, 0].copy()
    for order in range(1, _ORDER + 1):
        predicted = np.sum(filters[:, :order] * correlation[:, order:0:-1], axis=1)
        with np.errstate(divide='ignore', invalid='ignore'):
            reflection = np.where(error == 0, 0.0, -predicted / error)
        filters[:, 1 : order + 1] += reflection[:, None] * filters[:, order - 1 :: -1][:, :order]
        error *= 1 - reflection**2
    return filters


@functools.cache
def _filters() -> np.ndarray:
    """[25, bins]: Gaussians on the bands, cut off where they are 30 dB down."""
    size = 2 ** int(np.ceil(np.log2(2 * _WINDOW)))
    bins = np.arange(size // 2)
    centre, width = (np.array(column)[:, None] / SAMPLE_RATE * size for column in zip(*_BANDS, strict=True))
    gains = np.exp(-11 * ((bins - np.floor(centre)) / width) ** 2 + np.log(width[0] / width))
    return np.where(gains > np.exp(-30 / (2 * 2.303)), gains, 0)


def _band_levels(signal: np.ndarray) -> np.ndarray:
    """[T] -> [N, 25] dB, at least -100."""
    filters = _filters()
    spectrum = np.fft.rfft(_frames(signal), 2 * filters.shape[1])[:, : filters.shape[1]]
    energy = np.abs(spectrum) ** 2 @ filters.T
    return 10 * np.log10(np.maximum(energy, 1e-10))


def _peak_weights(levels: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """[N, 25] and [N, 24] -> [N, 24]: large near the frame's highest level and near the peak that a slope leads to."""
    bands = slopes.shape[1]
    peaks = np.empty_like(slopes)
    rising = slopes > 0
    # Rising: the peak lies where the slope to the right of it no longer rises. `composite.m` takes the band before.
    level = levels[:, bands - 1]
    for band in reversed(range(bands)):
        last = rising[:, band] & ~(rising[:, band + 1] if band + 1 < bands else np.zeros(len(levels), bool))
        level = np.where(last, levels[:, band], level)
        peaks[:, band] = level
    # Falling: to the left, where the slope still rises.
    level = levels[:, 0]
    for band in range(bands):
        first = ~rising[:, band] & (rising[:, band - 1] if band else np.ones(len(levels), bool))
        level = np.where(first, levels[:, band], level)
        peaks[:, band] = np.where(rising[:, band], peaks[:, band], level)
    below = levels[:, :-1]
    highest = levels.max(axis=1, keepdims=True)
    return _GLOBAL_PEAK / (_GLOBAL_PEAK + highest - below) * _LOCAL_PEAK / (_LOCAL_PEAK + peaks - below)


def _best(distances: np.ndarray) -> float:
    """The mean of the smallest 95 %."""
    return float(np.mean(np.sort(distances)[: max(1, round(len(distances) * _BEST_SHARE))]))
