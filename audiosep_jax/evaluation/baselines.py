"""What a separator that ignores time can reach: the yardstick beside a trained model's score."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class SpectralMask:
    """One equaliser per class: a gain for each frequency bin, the same at all times.

    The gain is P / (P + I), with P the class's mean power spectrum and I that of the other classes' average clip: of
    all masks that are constant in time and know the target's class alone, the one of least squared error for mixtures
    of two clips of equal energy (a Wiener filter). Halving the mixture already has an SDRi of 3 dB there, so any such
    mask starts from 3 dB.

    Attributes:
        window_size, hop_size: of the STFT, in samples.
        masks: float32 [F] in [0, 1] for each class.
    """

    window_size: int
    hop_size: int
    masks: Mapping[str, np.ndarray]

    @classmethod
    def fit(cls, clips: Mapping[str, np.ndarray], *, window_size: int, hop_size: int) -> 'SpectralMask':
        """Fits the masks to training clips, float [n, T] for each class; every clip counts with the same energy.

        Raises:
            DataError: fewer than two classes, or a class whose clips are all silent.
        """
        if len(clips) < 2:
            raise DataError('a spectral mask tells classes apart: it needs clips of two classes or more')
        power = {name: _mean_power(name, np.asarray(audio), window_size, hop_size) for name, audio in clips.items()}
        masks = {}
        for name, own in power.items():
            others = np.mean([p for other, p in power.items() if other != name], axis=0)
            masks[name] = (own / np.maximum(own + others, 1e-20)).astype(np.float32)
        return cls(window_size, hop_size, masks)

    def separate(self, mixtures: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Mixtures float [n, T] and the class to take from each -> float32 [n, T].

        Raises:
            DataError: a class that was not fitted, or not one class per mixture.
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
    """float [n, T] -> float64 [F]: the mean power spectrum of the clips that sound, at unit energy each."""
    energy = np.mean(np.square(audio, dtype=np.float64), axis=-1)
    sounding = energy > 1e-10
    if not sounding.any():
        raise DataError(f'all clips of {name!r} are silent: there is no spectrum to fit')
    audio = (audio[sounding] / np.sqrt(energy[sounding])[:, None]).astype(np.float32)
    spectrum = np.asarray(_stft(audio, window_size, hop_size))
    return np.mean(np.abs(spectrum).astype(np.float64) ** 2, axis=(0, 1))


_stft = jax.jit(stft, static_argnums=(1, 2))


@jax.jit(static_argnums=(2, 3))
def _apply(mixtures: jax.Array, gains: jax.Array, window_size: int, hop_size: int) -> jax.Array:
    spectrum = stft(mixtures, window_size, hop_size)
    return istft(spectrum * gains, window_size, hop_size, length=mixtures.shape[-1])


@jax.jit(static_argnums=(2, 3))
def oracle_ratio_mask(mixtures: jax.Array, targets: jax.Array, window_size: int, hop_size: int) -> jax.Array:
    """What a mask between 0 and 1 reaches that knows the target: |S| / (|S| + |X - S|) on the mixture's spectrum.

    The ideal ratio mask of Luo and Mesgarani (arXiv 1809.07454, section III.D). The signals are taken for zero outside,
    so that zeros at their ends change nothing.

    Args:
        mixtures, targets: float [..., T].
        window_size, hop_size: of the STFT, in samples.

    Returns:
        float32 [..., T].
    """
    length = mixtures.shape[-1]
    around = [(0, 0)] * (mixtures.ndim - 1) + [(window_size, window_size)]
    padded, wanted = (jnp.pad(jnp.asarray(x, jnp.float32), around) for x in (mixtures, targets))
    spectrum, target = (stft(x, window_size, hop_size) for x in (padded, wanted))
    magnitude, rest = jnp.abs(target), jnp.abs(spectrum - target)
    mask = magnitude / jnp.maximum(magnitude + rest, 1e-10)
    return istft(spectrum * mask, window_size, hop_size, length=padded.shape[-1])[
        ..., window_size : window_size + length
    ]
