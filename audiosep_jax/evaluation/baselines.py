"""Baselines to compare a trained model with: one equalizer per class, and an oracle mask.

`training_mask.py` fits the equalizers on a dataset.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class SpectralMask:
    """One equalizer per class: a gain for each frequency bin that is constant in time.

    The gain is P / (P + I), where P is the mean power spectrum of the class and I that of the other classes. For
    mixtures of two clips of equal energy, this Wiener filter has the least squared error of all masks that are constant
    in time and depend only on the target's class. Halving such a mixture already gives an SDRi of 3 dB, so every such
    mask starts from 3 dB.

    Attributes:
        window_size: window of the STFT, in samples.
        hop_size: hop of the STFT, in samples.
        masks: float32 [F] in [0, 1] for each class.
    """

    window_size: int
    hop_size: int
    masks: Mapping[str, np.ndarray]

    @classmethod
    def fit(cls, clips: Mapping[str, np.ndarray], *, window_size: int, hop_size: int) -> 'SpectralMask':
        """Fits the masks to training clips. Every clip is scaled to the same energy; silent clips are ignored.

        Args:
            clips: float [n, T] for each class.
            window_size: window of the STFT, in samples.
            hop_size: hop of the STFT, in samples.

        Raises:
            DataError: fewer than two classes, or a class whose clips are all silent.
        """
        power = {name: _mean_power(name, np.asarray(audio), window_size, hop_size) for name, audio in clips.items()}
        return cls.from_power(power, window_size=window_size, hop_size=hop_size)

    @classmethod
    def from_power(cls, power: Mapping[str, np.ndarray], *, window_size: int, hop_size: int) -> 'SpectralMask':
        """Returns the masks for classes with these mean power spectra.

        Args:
            power: float [F] for each class, of clips of the same energy.
            window_size: window of the STFT, in samples.
            hop_size: hop of the STFT, in samples.

        Raises:
            DataError: fewer than two classes.
        """
        if len(power) < 2:
            raise DataError('a spectral mask needs clips of at least two classes')
        total = np.sum([*power.values()], axis=0)
        masks = {}
        for name, target in power.items():
            others = np.maximum(total - target, 0) / (len(power) - 1)
            masks[name] = (target / np.maximum(target + others, 1e-20)).astype(np.float32)
        return cls(window_size, hop_size, masks)

    def separate(self, mixtures: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Returns the estimates, float32 [n, T].

        Args:
            mixtures: float [n, T].
            classes: the class to separate from each mixture.

        Raises:
            DataError: a class was not fitted, or there is not one class for each mixture.
        """
        unknown = sorted(set(classes) - set(self.masks))
        if unknown or len(classes) != len(mixtures):
            raise DataError(
                f'{len(mixtures)} mixtures, {len(classes)} classes, not fitted: {", ".join(unknown) or "none"}'
            )
        if not len(mixtures):
            return np.zeros(np.shape(mixtures), np.float32)
        gains = np.stack([self.masks[name] for name in classes])[:, None, :]
        return np.asarray(_apply(jnp.asarray(mixtures, jnp.float32), gains, self.window_size, self.hop_size))


def _mean_power(name: str, audio: np.ndarray, window_size: int, hop_size: int) -> np.ndarray:
    """Returns the mean power spectrum, float64 [F], of the clips [n, T] that are not silent, at unit energy each."""
    energy = np.mean(np.square(audio, dtype=np.float64), axis=-1)
    audible = energy > 1e-10
    if not audible.any():
        raise DataError(f'all clips of {name!r} are silent, so there is no spectrum to fit')
    audio = (audio[audible] / np.sqrt(energy[audible])[:, None]).astype(np.float32)
    spectrum = np.asarray(_stft(audio, window_size, hop_size))
    return np.mean(np.abs(spectrum).astype(np.float64) ** 2, axis=(0, 1))


_stft = jax.jit(stft, static_argnums=(1, 2))


@jax.jit(static_argnums=(2, 3))
def _apply(mixtures: jax.Array, gains: jax.Array, window_size: int, hop_size: int) -> jax.Array:
    spectrum = stft(mixtures, window_size, hop_size)
    return istft(spectrum * gains, window_size, hop_size, length=mixtures.shape[-1])


@jax.jit(static_argnums=(2, 3))
def oracle_ratio_mask(mixtures: jax.Array, targets: jax.Array, window_size: int, hop_size: int) -> jax.Array:
    """Returns the mixtures filtered by the mask |S| / (|S| + |X - S|), which is computed from the targets.

    This is the ideal ratio mask of Luo and Mesgarani (arXiv 1809.07454, section III.D). The signals are padded with
    zeros, so that zeros at their ends change nothing.

    Args:
        mixtures: float [..., T].
        targets: float [..., T].
        window_size: window of the STFT, in samples.
        hop_size: hop of the STFT, in samples.

    Returns:
        float32 [..., T].
    """
    length = mixtures.shape[-1]
    padding = [(0, 0)] * (mixtures.ndim - 1) + [(window_size, window_size)]
    padded, wanted = (jnp.pad(jnp.asarray(x, jnp.float32), padding) for x in (mixtures, targets))
    spectrum, target = (stft(x, window_size, hop_size) for x in (padded, wanted))
    magnitude, rest = jnp.abs(target), jnp.abs(spectrum - target)
    mask = magnitude / jnp.maximum(magnitude + rest, 1e-10)
    return istft(spectrum * mask, window_size, hop_size, length=padded.shape[-1])[
        ..., window_size : window_size + length
    ]
