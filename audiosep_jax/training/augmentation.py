"""Varies the clips of a batch at random, before they are mixed, so that a few recordings serve as many.

A varied clip is the target of one mixture and noise in others, where it sounds the same. Everything is off by default.

Letters: B clips in the batch, T samples, P control points of the equalizer, R samples of an impulse response.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Key, PRNGKeyArray

from audiosep_jax.errors import ConfigError

# A key for each option, so that none of them changes the draws of another.
_PITCH, _POLARITY, _EQUALIZER, _REVERBERATION, _GAIN = range(5)

_LOWEST_HZ, _OCTAVES, _POINTS = 60, 2, 5  # the equalizer's points: 60, 240, 960, 3840 and 15360 Hz
_RINGING_SECONDS = 0.05  # after which the equalizer's response has died away
_TAIL_DB = (-20.0, -3.0)  # energy of the reverberation relative to the direct sound

_OVERSAMPLING = 4  # where a cubic through four samples is within 0.06 % up to half of the Nyquist frequency
_FRACTIONS = 1024  # of an oversampled sample, so that positions are integers: float32 has no digits left for them
_LONGEST = 2**31 // _FRACTIONS  # samples, 44 s at 48 kHz
_FADE_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Changes each clip at random, in the order of pitch, polarity, equalizer, reverberation and gain.

    A clip that exceeds ±1 afterwards is scaled to a peak of 1. Silence stays silence. It is computed in float32,
    whatever the network's type. Like the mixer, an augmentation is hashable and a pure function of key and batch.

    Attributes:
        gain_db: minimum and maximum gain of a clip in dB, uniform in between. The mixer scales the noise to its target,
            so this changes the level of a mixture, but not its balance.
        polarity: the share of clips whose sign is flipped, 0 to 1.
        equalizer_db: the gains at 60, 240, 960, 3840 and 15360 Hz are uniform between minus and plus this, 0 to 24 dB,
            with straight lines in between over the logarithm of the frequency. Phases stay.
        pitch_semitones: a clip is played faster or slower, so that its pitch moves by up to this many semitones in
            either direction, 0 to 12, uniform. What a faster clip leaves empty at its end is silent, and of a slower
            one the end is cut off.
        reverberation_ms: the longest time in which the reverberation falls by 60 dB, 0 to 5000 ms; the time is uniform
            from a tenth of it. The tail is noise with 3 to 20 dB less energy than the direct sound. The clip keeps its
            length and its level.
        share: the share of clips that are changed by each of equalizer, pitch and reverberation, if it is on, 0 to 1;
            drawn separately for each.

    Raises:
        ConfigError: a value is out of range.
    """

    gain_db: tuple[float, float] = (0.0, 0.0)
    polarity: float = 0.0
    equalizer_db: float = 0.0
    pitch_semitones: float = 0.0
    reverberation_ms: float = 0.0
    share: float = 1.0

    def __post_init__(self) -> None:
        if len(self.gain_db) != 2 or not -100 <= self.gain_db[0] <= self.gain_db[1] <= 100:
            raise ConfigError(
                f'augmentation.gain_db needs a minimum and a maximum between -100 and 100 dB, got {self.gain_db}'
            )
        for name, largest in {
            'polarity': 1,
            'equalizer_db': 24,
            'pitch_semitones': 12,
            'reverberation_ms': 5000,
            'share': 1,
        }.items():
            if not 0 <= getattr(self, name) <= largest:
                raise ConfigError(f'augmentation.{name} must be between 0 and {largest}, got {getattr(self, name)}')

    @property
    def is_off(self) -> bool:
        """Whether every clip stays as it is."""
        sometimes = self.equalizer_db or self.pitch_semitones or self.reverberation_ms
        return not (any(self.gain_db) or self.polarity or (sometimes and self.share))

    def __call__(
        self,
        key: PRNGKeyArray,
        waveforms: Float[Array | np.ndarray, 'B T'],
        sample_rate: int,
        by_clip: Callable[[Callable], Callable] = lambda function: function,
    ) -> Float[Array | np.ndarray, 'B T']:
        """Returns the changed clips, float32; if everything is off, the clips themselves.

        Args:
            key: a key for this step. The draws of a row depend only on the key and on the row's index in the batch.
            waveforms: in ±1.
            sample_rate: in Hz.
            by_clip: wraps a function that treats each clip by itself, so that each device runs it on its own clips
                (`parallel.mesh.by_clip`). XLA cannot split an FFT.

        Raises:
            ValueError: pitch_semitones is set, and the clips are longer than 2^21 samples.
        """
        if self.is_off:
            return waveforms

        def change(keys: Key[Array, ' b'], clips: Float32[Array, 'b T']) -> Float32[Array, 'b T']:
            return jax.vmap(lambda key, clip: self._change(key, clip, sample_rate))(keys, clips)

        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(len(waveforms)))
        return by_clip(change)(keys, jnp.asarray(waveforms, jnp.float32))

    def _change(self, key: PRNGKeyArray, clip: Float32[Array, ' T'], sample_rate: int) -> Float32[Array, ' T']:
        keys = [jax.random.split(jax.random.fold_in(key, option)) for option in range(_GAIN + 1)]

        def uniform(option: int, low: float, high: float, *shape: int) -> Array:
            return jax.random.uniform(keys[option][0], shape, jnp.float32, low, high)

        def sometimes(option: int, changed: Array, share: float = self.share) -> Array:
            return jnp.where(jax.random.bernoulli(keys[option][1], float(share)), changed, clip)

        if self.pitch_semitones:
            semitones = uniform(_PITCH, -self.pitch_semitones, self.pitch_semitones)
            clip = sometimes(_PITCH, change_speed(clip, 2 ** (semitones / 12), sample_rate))
        if self.polarity:
            clip = sometimes(_POLARITY, -clip, self.polarity)
        if self.equalizer_db:
            gains_db = uniform(_EQUALIZER, -self.equalizer_db, self.equalizer_db, _POINTS)
            clip = sometimes(_EQUALIZER, equalize(clip, gains_db, sample_rate))
        if self.reverberation_ms:
            response = draw_response(keys[_REVERBERATION][0], self.reverberation_ms, sample_rate, len(clip))
            clip = sometimes(_REVERBERATION, reverberate(clip, response))
        if any(self.gain_db):
            clip = clip * 10 ** (uniform(_GAIN, *self.gain_db) / 20)
        return clip / jnp.maximum(jnp.max(jnp.abs(clip)), 1)


def change_speed(
    clip: Float32[Array, ' T'], factor: Float32[Array, ''] | float, sample_rate: int
) -> Float32[Array, ' T']:
    """Returns the clip played `factor` times as fast, with silence or a cut at its end.

    What would exceed the Nyquist frequency is removed first, so nothing aliases. The clip is then oversampled by an FFT
    and read between the samples by a cubic. Its last 5 ms fade out, because the silence may follow a sound.

    Args:
        clip: at most 2^21 samples.
        factor: 0.5 to 2, rounded to a multiple of 1/4096.
        sample_rate: in Hz.

    Raises:
        ValueError: the clip is longer.
    """
    num_samples = len(clip)
    if num_samples > _LONGEST:
        raise ValueError(f'the pitch of clips of up to {_LONGEST} samples can change, got {num_samples}')
    size = _fft_size(num_samples + _OVERSAMPLING)
    spectrum = jnp.fft.rfft(clip, size)
    highest = size / 2 / jnp.maximum(factor, 1)
    # A slope instead of an edge, which would ring.
    spectrum = spectrum * jnp.clip((highest - jnp.arange(len(spectrum))) / (0.05 * highest), 0, 1)
    dense = jnp.fft.irfft(spectrum * _OVERSAMPLING, size * _OVERSAMPLING)

    step = jnp.round(factor * (_OVERSAMPLING * _FRACTIONS)).astype(jnp.int32)
    whole, part = step // _FRACTIONS, step % _FRACTIONS
    time = jnp.arange(num_samples, dtype=jnp.int32)
    index = time * whole + time * part // _FRACTIONS
    d = (time * part % _FRACTIONS).astype(jnp.float32) / _FRACTIONS
    # Lagrange's polynomials for the samples at -1, 0, 1 and 2.
    weights = (
        -d * (d - 1) * (d - 2) / 6,
        (d + 1) * (d - 1) * (d - 2) / 2,
        -(d + 1) * d * (d - 2) / 2,
        (d + 1) * d * (d - 1) / 6,
    )
    values = sum(weight * dense[(index + i - 1) % len(dense)] for i, weight in enumerate(weights))
    left = num_samples - index.astype(jnp.float32) / _OVERSAMPLING
    return values * jnp.clip(left / (_FADE_SECONDS * sample_rate), 0, 1)


def equalize(clip: Float32[Array, ' T'], gains_db: Float32[Array, ' P'], sample_rate: int) -> Float32[Array, ' T']:
    """Returns the clip through an equalizer without phase shift.

    Args:
        clip: the samples.
        gains_db: the gains at 60 Hz, two octaves higher, and so on; the first also holds below, the last also above.
        sample_rate: in Hz.
    """
    # Zeros for the response to die away in: a product of spectra is a circular convolution.
    size = _fft_size(len(clip) + math.ceil(_RINGING_SECONDS * sample_rate))
    frequencies = jnp.arange(size // 2 + 1) * (sample_rate / size)
    place = jnp.log2(jnp.maximum(frequencies, _LOWEST_HZ) / _LOWEST_HZ) / _OCTAVES
    points = jnp.arange(len(gains_db))
    shares = jnp.maximum(1 - jnp.abs(jnp.minimum(place, len(gains_db) - 1)[:, None] - points), 0)
    curve_db = jnp.sum(shares * gains_db, axis=1)
    return jnp.fft.irfft(jnp.fft.rfft(clip, size) * 10 ** (curve_db / 20), size)[: len(clip)]


def draw_response(key: PRNGKeyArray, longest_ms: float, sample_rate: int, num_samples: int) -> Float32[Array, ' R']:
    """Returns a random impulse response: 1 for the direct sound, then noise that decays exponentially.

    Args:
        key: of the draws.
        longest_ms: the longest time in which the noise falls by 60 dB; the shortest is a tenth of it.
        sample_rate: in Hz.
        num_samples: the most that are needed.
    """
    length_key, level_key, noise_key = jax.random.split(key, 3)
    decay_ms = jax.random.uniform(length_key, (), jnp.float32, longest_ms / 10, longest_ms)
    level_db = jax.random.uniform(level_key, (), jnp.float32, *_TAIL_DB)
    size = min(math.ceil(longest_ms / 1000 * sample_rate), num_samples - 1)
    times_ms = jnp.arange(1, size + 1) * (1000 / sample_rate)
    tail = jax.random.normal(noise_key, (size,), jnp.float32) * 10 ** (-3 * times_ms / decay_ms)
    tail = tail * (10 ** (level_db / 20) / jnp.maximum(jnp.linalg.norm(tail), 1e-12))
    return jnp.concatenate([jnp.ones(1, jnp.float32), tail])


def reverberate(clip: Float32[Array, ' T'], response: Float32[Array, ' R']) -> Float32[Array, ' T']:
    """Returns the first T samples of the convolution with an impulse response, at the energy of the clip."""
    size = _fft_size(len(clip) + len(response) - 1)
    wet = jnp.fft.irfft(jnp.fft.rfft(clip, size) * jnp.fft.rfft(response, size), size)[: len(clip)]
    return wet * jnp.sqrt(jnp.sum(clip**2) / jnp.maximum(jnp.sum(wet**2), 1e-30))


def _fft_size(num_samples: int) -> int:
    """Returns the next number that an FFT is fast for: 4, 5 or 6 times a power of two."""
    return min(n * 2 ** max(0, math.ceil(math.log2(num_samples / n))) for n in (4, 5, 6))
