"""Composite measures of speech quality, and the measures that they combine.

Y. Hu and P. C. Loizou, "Evaluation of objective quality measures for speech enhancement", IEEE Trans. Audio, Speech and
Language Processing 16(1), 2008. Linear combinations of PESQ, the log-likelihood ratio (LLR), the weighted spectral
slope distance (WSS, Klatt 1982) and the segmental SNR (SSNR) predict listeners' opinions, from 1 to 5, of the signal
(CSIG), of the background (CBAK) and overall (COVL). The settings are those of Loizou's `composite.m`, with which
VoiceBank-DEMAND has been reported since Pascual et al. 2017: 30 ms Hann windows every 7.5 ms, the best 95 % of the
frames for LLR and WSS, and all frames for SSNR. As there, CSIG, CBAK and COVL at 16 kHz take wideband PESQ (ITU-T
P.862.2), although their coefficients were fitted to narrowband PESQ.

Letters: T samples at 16 kHz, N frames, P order of linear prediction. Signals are float [T], mono.
"""

import dataclasses
import functools

import numpy as np

SAMPLE_RATE = 16000  # Hz
WINDOW = 480  # samples
_HOP = 120  # samples
_ORDER = 16  # P
_BEST_SHARE = 0.95
_LOWEST_SNR, _HIGHEST_SNR = -10.0, 35.0  # dB, the limits within which a frame counts
_TINY = float(np.finfo(np.float64).eps)
# Klatt's critical bands: (centre, width) in Hz.
_BANDS = (
    (50, 70), (120, 70), (190, 70), (260, 70), (330, 70), (400, 70), (470, 70), (540, 77.3724), (617.372, 86.0056),
    (703.378, 95.3398), (798.717, 105.411), (904.128, 116.256), (1020.38, 127.914), (1148.30, 140.423),
    (1288.72, 153.823), (1442.54, 168.154), (1610.70, 183.457), (1794.16, 199.776), (1993.93, 217.153),
    (2211.08, 235.631), (2446.71, 255.255), (2701.97, 276.072), (2978.04, 298.126), (3276.17, 321.465),
    (3597.63, 346.136),
)  # fmt: skip
# Klatt's weights for the distances to the frame's highest peak and to the nearest one.
_GLOBAL_PEAK, _LOCAL_PEAK = 20.0, 1.0


@dataclasses.dataclass(frozen=True)
class Composite:
    """Predicted opinions of the signal, the background and the whole, from 1 to 5."""

    csig: float
    cbak: float
    covl: float


def composite(pesq: float, llr: float, wss: float, ssnr: float) -> Composite:
    """Returns the opinions that Hu and Loizou's regressions predict, limited to the range from 1 to 5.

    Args:
        pesq: PESQ.
        llr: log-likelihood ratio.
        wss: weighted spectral slope distance.
        ssnr: segmental SNR in dB.
    """

    def limited(value: float) -> float:
        return float(np.clip(value, 1, 5))

    return Composite(
        csig=limited(3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss),
        cbak=limited(1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * ssnr),
        covl=limited(1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss),
    )


def segmental_snr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Returns the mean SNR of the frames in dB, each limited to -10 … 35 dB."""
    signal = np.sum(_frames(reference) ** 2, axis=1)
    noise = np.sum(_frames(reference - estimate) ** 2, axis=1)
    decibels = 10 * np.log10(signal / (noise + _TINY) + _TINY)
    return float(np.mean(np.clip(decibels, _LOWEST_SNR, _HIGHEST_SNR)))


def log_likelihood_ratio(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Returns how much worse the estimate's linear prediction fits the reference than the reference's own does.

    A frame's distance is the log of the ratio of the two residual energies; the smallest 95 % are averaged.
    """
    correlation = _autocorrelation(_frames(reference + _TINY))  # [N, P + 1]
    own, other = _prediction_filters(correlation), _prediction_filters(_autocorrelation(_frames(estimate + _TINY)))
    lags = np.abs(np.subtract.outer(np.arange(_ORDER + 1), np.arange(_ORDER + 1)))
    toeplitz = correlation[:, lags]  # [N, P + 1, P + 1]
    residual = [np.einsum('np,npq,nq->n', a, toeplitz, a) for a in (other, own)]
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = residual[0] / residual[1]
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    ratio = np.where(ratio <= 0, 1000.0, ratio)  # rounding errors in a nearly silent frame
    return _mean_of_best(np.log(ratio))


def weighted_slope(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Returns Klatt's distance between the spectral slopes in 25 critical bands, weighted towards spectral peaks."""
    levels = [_band_levels(signal + _TINY) for signal in (reference, estimate)]  # [N, 25] dB
    slopes = [np.diff(level, axis=1) for level in levels]
    weights = sum(_peak_weights(level, slope) for level, slope in zip(levels, slopes, strict=True)) / 2
    return _mean_of_best(np.sum(weights * (slopes[0] - slopes[1]) ** 2, axis=1) / np.sum(weights, axis=1))


@functools.cache
def _hann() -> np.ndarray:
    """Returns a symmetric Hann window without the zeros at its ends, as MATLAB's `hanning` does."""
    return 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, WINDOW + 1) / (WINDOW + 1)))


def _frames(signal: np.ndarray) -> np.ndarray:
    """Returns windowed frames [N, window] of a signal [T]. As in `composite.m`, the last frame that fits is dropped."""
    count = max(1, (len(signal) - WINDOW) // _HOP)
    return np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::_HOP][:count] * _hann()


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """Returns the autocorrelation at lags 0 … P, [N, P + 1], of frames [N, window]."""
    size = frames.shape[1]
    return np.stack([np.sum(frames[:, : size - lag] * frames[:, lag:], axis=1) for lag in range(_ORDER + 1)], axis=1)


def _prediction_filters(correlation: np.ndarray) -> np.ndarray:
    """Returns the prediction-error filters (1, -a₁, …, -a_P), [N, P + 1], by Levinson and Durbin's recursion."""
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
def _band_filters() -> np.ndarray:
    """Returns Gaussian filters of the bands, [25, bins], set to zero where they are 30 dB down."""
    size = 2 ** int(np.ceil(np.log2(2 * WINDOW)))
    bins = np.arange(size // 2)
    centre, width = (np.array(column)[:, None] / SAMPLE_RATE * size for column in zip(*_BANDS, strict=True))
    gains = np.exp(-11 * ((bins - np.floor(centre)) / width) ** 2 + np.log(width[0] / width))
    return np.where(gains > np.exp(-30 / (2 * 2.303)), gains, 0)


def _band_levels(signal: np.ndarray) -> np.ndarray:
    """Returns the levels of the bands in dB, [N, 25], at least -100, of a signal [T]."""
    filters = _band_filters()
    spectrum = np.fft.rfft(_frames(signal), 2 * filters.shape[1])[:, : filters.shape[1]]
    energy = np.abs(spectrum) ** 2 @ filters.T
    return 10 * np.log10(np.maximum(energy, 1e-10))


def _peak_weights(levels: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Returns Klatt's weights [N, 24] of levels [N, 25] and slopes [N, 24].

    They are large near the frame's highest level, and near the peak that a slope leads to.
    """
    bands = slopes.shape[1]
    peaks = np.empty_like(slopes)
    rising = slopes > 0
    # A rising slope leads to the first peak on its right. `composite.m` takes the level one band before that peak.
    level = levels[:, bands - 1]
    for band in reversed(range(bands)):
        last = rising[:, band] & ~(rising[:, band + 1] if band + 1 < bands else np.zeros(len(levels), bool))
        level = np.where(last, levels[:, band], level)
        peaks[:, band] = level
    # A falling slope leads to the first peak on its left.
    level = levels[:, 0]
    for band in range(bands):
        first = ~rising[:, band] & (rising[:, band - 1] if band else np.ones(len(levels), bool))
        level = np.where(first, levels[:, band], level)
        peaks[:, band] = np.where(rising[:, band], peaks[:, band], level)
    below = levels[:, :-1]
    highest = levels.max(axis=1, keepdims=True)
    return _GLOBAL_PEAK / (_GLOBAL_PEAK + highest - below) * _LOCAL_PEAK / (_LOCAL_PEAK + peaks - below)


def _mean_of_best(distances: np.ndarray) -> float:
    """Returns the mean of the smallest 95 % of the distances [N]."""
    return float(np.mean(np.sort(distances)[: max(1, round(len(distances) * _BEST_SHARE))]))
