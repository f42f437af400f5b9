"""Training losses: functions of waveforms, computed in float32.

`l1_waveform` is the original's. The others compare each clip with its target by itself, and also get the mixture, to
whose level they compare the estimate of a silent target; `mean_loss` averages them over the batch.

Letters: B clips, T samples.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float32, Float64

from audiosep_jax.audio.stft import hann_window, stft

LossName = Literal['l1', 'snr', 'si-sdr', 'l1-mrstft', 'log-wmse']

# SNRs in dB beyond which a clip hardly counts: with a sounding target, and with a silent one. Source: the baseline for
# FUSS (google-research/sound-separation, models/dcase2020_fuss_baseline/train/model.py).
_MAX_SNR, _MAX_SNR_SILENT = 30.0, 20.0
_SILENT_DB = -60.0  # relative to its mixture: a target below this counts as silent
_POWER_FLOOR = 1e-10  # mean square of a signal that counts as silence whatever it is compared with, -100 dB
_NO_ESTIMATE = 1e-12  # of the target's power: what SI-SDR adds, so that an estimate of zeros has a finite value

_WINDOWS = (512, 1024, 2048)  # samples; the hop is a quarter. Source: Parallel WaveGAN (arXiv 1910.11480).

# The constants of logWMSE: the error that nobody hears, what keeps the logarithm finite, and the scale that brings its
# values near decibels.
_INAUDIBLE = 10 ** (-68 / 20)
_LOG_FLOOR = 1e-8
_LOG_SCALE = 4.0
_WEIGHTING_RATE = 44100  # Hz, at which the filters of its frequency weighting are defined
_WEIGHTING_SECONDS = 0.1  # how long their response is

Clips = Float[Array | np.ndarray, 'B T']
PerClip = Float32[Array, ' B']


def l1_waveform(
    estimate: Float[Array | np.ndarray, '...'], target: Float[Array | np.ndarray, '...']
) -> Float32[Array, '']:
    """Returns the mean absolute error of the samples. Source: the original's `l1_wav` (losses.py).

    A sample that is exactly right has no gradient, as in PyTorch.

    Raises:
        ValueError: the shapes differ (broadcasting would average over the wrong pairs).
    """
    _check_same_shape(estimate, target)
    return jnp.mean(_absolute(_difference(estimate, target)))


def mean_loss(
    name: LossName, sample_rate: int, by_clip: Callable[[Callable], Callable] = lambda function: function
) -> Callable[[Clips, Clips, Clips], Float32[Array, '']]:
    """Returns the function (estimates, targets, mixtures) -> loss of the batch, the mean over its clips.

    Args:
        name: which loss.
        sample_rate: sample rate of the waveforms in Hz.
        by_clip: wraps a function that treats each clip by itself (`parallel.mesh.by_clip`): XLA cannot split an FFT
            over devices.

    The function raises ValueError if the shapes differ (broadcasting would average over the wrong pairs).
    """
    if name == 'l1':
        return lambda estimates, targets, _: l1_waveform(estimates, targets)
    losses: dict[str, Callable[[Clips, Clips, Clips], PerClip]] = {
        'snr': snr_loss,
        'si-sdr': si_sdr_loss,
        'l1-mrstft': l1_and_spectra_loss,
        'log-wmse': functools.partial(log_wmse_loss, sample_rate=sample_rate),
    }
    per_clip = by_clip(losses[name])

    def loss(
        estimates: Float[Array | np.ndarray, '...'],
        targets: Float[Array | np.ndarray, '...'],
        mixtures: Float[Array | np.ndarray, '...'],
    ) -> Float32[Array, '']:
        _check_same_shape(estimates, targets)
        _check_same_shape(mixtures, targets, 'mixture')
        return jnp.mean(per_clip(estimates, targets, mixtures))

    return loss


def snr_loss(estimates: Clips, targets: Clips, mixtures: Clips) -> PerClip:
    """Returns the negative SNR in dB, with a soft threshold: 10 log10(|ŷ - y|² / |y|² + τ), where τ is -30 dB.

    A nearly perfect clip has hardly any gradient, because its loss cannot fall below -30 dB. For a silent target, the
    error is compared with the mixture x instead of the target, 10 log10(|ŷ|² / |x|² + τ), where τ is -20 dB. A target
    counts as silent from 60 dB below its mixture. Source: "What's All the FUSS About Free Universal Sound Separation
    Data?" (arXiv 2011.00803); the constant 10 log10 |y|², which it leaves out, keeps the values independent of level.
    """
    reference, silent = _reference(targets, mixtures)
    return _thresholded(_power(_difference(estimates, targets)) / reference, silent)


def si_sdr_loss(estimates: Clips, targets: Clips, mixtures: Clips) -> PerClip:
    """Returns the negative SI-SDR in dB, with soft thresholds: 10 log10((r + τ s) / (s + τ r)), where τ is -30 dB.

    s = |αy|² is the power of the part of the estimate that is a multiple of the target y, with α = <ŷ, y> / |y|², and
    r = |ŷ - αy|² that of the rest. So the loss is between -30 and 30 dB, and neither a nearly perfect estimate nor one
    that has nothing of the target dominates the gradient. It says nothing about the level of the estimates, which may
    then be wrong by any factor: SDR falls by it. Where the target is silent, which has no multiples, it is `snr_loss`.
    That of a silent estimate is 0 dB. Source: "SDR - Half-Baked or Well Done?" (arXiv 1811.02508), which has no
    thresholds.
    """
    reference, silent = _reference(targets, mixtures)
    estimates, targets = jnp.asarray(estimates, jnp.float32), jnp.asarray(targets, jnp.float32)
    scale = jnp.mean(estimates * targets, axis=-1) / reference
    scaled = scale[:, None] * targets
    # Relative to the reference, because the gradient holds squares, which float32 would round to 0 for quiet clips.
    kept, rest = _power(scaled) / reference, _power(estimates - scaled) / reference
    threshold = 10 ** (-_MAX_SNR / 10)
    ratio = (rest + threshold * kept + _NO_ESTIMATE) / (kept + threshold * rest + _NO_ESTIMATE)
    return jnp.where(silent, _thresholded(_power(estimates) / reference, silent), _decibels(ratio))


def l1_and_spectra_loss(estimates: Clips, targets: Clips, mixtures: Clips) -> PerClip:
    """Returns the mean absolute error of the samples plus that of the magnitudes of spectra with three windows.

    The windows have 512, 1024 and 2048 samples at any rate. Each spectrum is divided by the norm of its window, so that
    noise has magnitudes like its samples, and both terms are about equally large. Source of the windows: Parallel
    WaveGAN (arXiv 1910.11480). Its own terms, relative and logarithmic errors, are not defined for silent targets;
    differences of the magnitudes are, and the mixtures are not used.
    """
    loss = jnp.mean(_absolute(_difference(estimates, targets)), axis=-1)
    for window in _WINDOWS:
        magnitudes = [jnp.abs(stft(x, window, window // 4)) for x in (estimates, targets)]
        error = jnp.mean(_absolute(magnitudes[0] - magnitudes[1]), axis=(-2, -1))
        loss += error / (len(_WINDOWS) * float(np.linalg.norm(hann_window(window))))
    return loss


def log_wmse_loss(estimates: Clips, targets: Clips, mixtures: Clips, *, sample_rate: int) -> PerClip:
    """Returns 4 ln(|W(ŷ - y)|² / |W x|² + 1e-8), the negative of the metric logWMSE, where W weights frequencies.

    The error is compared with the mixture x, so a silent target needs no special case; it is 0 for the mixture itself,
    and -74 for a perfect estimate. Samples of the weighted error 68 dB below the mixture count as 0. W follows hearing:
    -24 dB at 30 Hz, 4 dB at 3 kHz, -12 dB at 16 kHz. Source: github.com/nomonosound/log-wmse-audio-quality. There, W is
    an impulse response of 91 ms at 44.1 kHz, to which all is resampled; here it is the frequency response of the same
    filters at each frequency in Hz, so that no resampling is necessary.

    Args:
        estimates: the separated clips.
        targets: what they should be.
        mixtures: what they were separated from.
        sample_rate: of all of them, in Hz.
    """
    level = jnp.sqrt(jnp.maximum(_power(_weighted(mixtures, sample_rate)), _POWER_FLOOR))
    error = _weighted(_difference(estimates, targets), sample_rate) / level[:, None]
    error = jnp.where(jnp.abs(error) < _INAUDIBLE, 0, error)
    return _LOG_SCALE * jnp.log(_power(error) + _LOG_FLOOR)


def hearing_weights(frequencies: Float64[np.ndarray, ' F']) -> Float64[np.ndarray, ' F']:
    """Returns the factors of logWMSE's weighting, which follows the sensitivity of hearing, at frequencies in Hz.

    They are the magnitudes of the responses of four digital filters at 44.1 kHz (the first two are the audio EQ
    cookbook's): a high shelf of 5 dB from 1.5 kHz, a peak of 2.5 dB at 500 Hz, a high-pass of second order at 120 Hz,
    and a low-pass of first order at 10 kHz, applied twice. From half that rate on, they are 0.
    """

    def relative_to(corner: float) -> Float64[np.ndarray, ' F']:
        # The bilinear transform brings all frequencies below half the sample rate to those of an analog filter.
        below = np.minimum(frequencies, _WEIGHTING_RATE / 2)
        return np.tan(np.pi * below / _WEIGHTING_RATE) / np.tan(np.pi * corner / _WEIGHTING_RATE)

    s, a = 1j * relative_to(1500), 10 ** (5 / 40)
    slope = np.sqrt(2 * a)  # sqrt(a) / Q
    shelf = a * (a * s**2 + slope * s + 1) / (s**2 + slope * s + a)
    s, a = 1j * relative_to(500), 10 ** (2.5 / 40)
    q = 1.5 / np.sqrt(2)
    peak = (s**2 + a / q * s + 1) / (s**2 + s / (a * q) + 1)
    high = relative_to(120) ** 2
    return np.abs(shelf * peak) * high / np.sqrt(1 + high**2) / (1 + relative_to(10000) ** 2)


def _weighted(waveforms: Clips, sample_rate: int) -> Float32[Array, 'B T']:
    """Applies logWMSE's weighting without a shift in time."""
    num_samples = jnp.shape(waveforms)[-1]
    # Zeros for the length of the response keep the end of a clip out of its beginning; some lengths are slow to
    # transform, multiples of 1024 are not.
    size = -(-(num_samples + round(_WEIGHTING_SECONDS * sample_rate)) // 1024) * 1024
    weights = hearing_weights(np.fft.rfftfreq(size, 1 / sample_rate)).astype(np.float32)
    spectrum = jnp.fft.rfft(jnp.asarray(waveforms, jnp.float32), size)
    return jnp.fft.irfft(spectrum * weights, size)[..., :num_samples]


def _reference(targets: Clips, mixtures: Clips) -> tuple[PerClip, Bool[Array, ' B']]:
    """Returns the power to which an error is compared, that of the target or of the mixture, and whether it is this."""
    target, mixture = _power(jnp.asarray(targets, jnp.float32)), _power(jnp.asarray(mixtures, jnp.float32))
    silent = target <= jnp.maximum(10 ** (_SILENT_DB / 10) * mixture, _POWER_FLOOR)
    return jnp.maximum(jnp.where(silent, mixture, target), _POWER_FLOOR), silent


def _thresholded(ratio: PerClip, silent: Bool[Array, ' B']) -> PerClip:
    """Returns the ratio of error and reference in dB, above a soft threshold."""
    return _decibels(ratio + jnp.where(silent, 10 ** (-_MAX_SNR_SILENT / 10), 10 ** (-_MAX_SNR / 10)))


def _decibels(ratio: PerClip) -> PerClip:
    return 10 * jnp.log10(ratio)


def _power(waveforms: Float32[Array, 'B T']) -> PerClip:
    """Returns the mean square."""
    return jnp.mean(jnp.square(waveforms), axis=-1)


def _difference(
    estimate: Float[Array | np.ndarray, '...'], target: Float[Array | np.ndarray, '...']
) -> Float32[Array, '...']:
    return jnp.asarray(estimate, jnp.float32) - jnp.asarray(target, jnp.float32)


def _absolute(difference: Float32[Array, '...']) -> Float32[Array, '...']:
    # The derivative of `jnp.abs` at 0 is 1 in JAX, which would pull on every sample of digital silence.
    return difference * jnp.sign(difference)


def _check_same_shape(
    a: Float[Array | np.ndarray, '...'], target: Float[Array | np.ndarray, '...'], name: str = 'estimate'
) -> None:
    if jnp.shape(a) != jnp.shape(target):
        raise ValueError(f'{name} {list(jnp.shape(a))} and target {list(jnp.shape(target))} differ in shape')
