"""Fits an equalizer (models/equalizer.py) to the clips of a training set and the embeddings of their captions."""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from audiosep_jax.data.mean_spectra import CaptionSpectra, caption_spectra
from audiosep_jax.data.shards import Shards
from audiosep_jax.models.audiosep import ModelConfig
from audiosep_jax.models.equalizer import Equalizer

_TEMPERATURES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
_MOST_JUDGED = 1024  # clips


def fit_equalizer(
    shards: Sequence[Shards], encoder: str, weights: Sequence[float], model: ModelConfig, share: float
) -> Equalizer:
    """Fits an equalizer. It is the same for the same data.

    The temperature is the one at which the clips' own captions, without the clips themselves, predict their spectra
    best.

    Args:
        shards: the splits to train on.
        encoder: name of the encoder whose embeddings of the captions are cached.
        weights: how often training draws clips from each; none: as often as they have clips.
        model: whose STFT the equalizer is for.
        share: see `Equalizer`.

    Raises:
        ConfigError: the share is not between 0 and 1.
        DataError: the embeddings of a dataset cannot be read, or all of its clips are silent or unreadable.
    """
    spectra = caption_spectra(shards, encoder, weights, sample_rate=model.sample_rate, window_size=model.window_size)
    counts, sums = _by_caption(spectra)
    temperature = _TEMPERATURES[int(np.argmax(_mean_sdrs(spectra, counts, sums)))]
    power = (sums / counts[:, None]).astype(np.float32)
    return Equalizer(spectra.embeddings, power, counts.astype(np.float32), temperature, share)


def _by_caption(spectra: CaptionSpectra) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each caption is used, and the sum of the spectra of its uses."""
    counts = np.bincount(spectra.captions, spectra.uses, len(spectra.embeddings))
    sums = np.zeros((len(counts), spectra.power.shape[1]))
    np.add.at(sums, spectra.captions, spectra.uses[:, None] * spectra.power[spectra.clips])
    return counts, sums


def _mean_sdrs(spectra: CaptionSpectra, counts: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Returns the SDR in dB with which each clip is found in a mixture with the mean clip, averaged over clips.

    The gains are those of one of its captions and of all clips but itself.

    Args:
        spectra: of the clips.
        counts: what `_by_caption` returned first.
        sums: what it returned second.

    Returns:
        One for each of the temperatures; zeros if there are no other clips.
    """
    mean = sums.sum(0)
    judged = np.unique(spectra.clips, return_index=True)[1]
    judged = judged[:: -(-len(judged) // _MOST_JUDGED)]
    ratios = []
    for use in judged:
        clip = spectra.clips[use]
        own = np.flatnonzero(spectra.clips == clip)
        captions, uses = spectra.captions[own], spectra.uses[own]
        others, power = counts.copy(), spectra.power[clip].astype(np.float64)
        np.subtract.at(others, captions, uses)
        # Captions of this clip alone are left with a rounding error, which is not a use.
        some = others > 1e-9 * counts
        if not some.any():
            continue
        cosines = spectra.embeddings @ spectra.embeddings[spectra.captions[use]]
        for temperature in _TEMPERATURES:
            nearness = np.zeros(len(counts))
            nearness[some] = softmax(cosines[some] / temperature + np.log(others[some])) / others[some]
            predicted = np.maximum(nearness @ sums - (nearness[captions] @ uses) * power, 0)
            gains = predicted / np.maximum(predicted + mean, 1e-12)
            error = np.sum((1 - gains) ** 2 * power + gains**2 * mean)
            ratios.append(10 * np.log10(power.sum() / max(error, 1e-12)))
    return np.reshape(ratios, (-1, len(_TEMPERATURES))).mean(0) if ratios else np.zeros(len(_TEMPERATURES))
