"""Mean power spectra of clips, and of the clips of each caption.

Every clip is scaled to a mean square of 1, and silent clips are left out. Letters: F frequency bins, E embedding size,
K captions.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int

from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.samples import INT16_SCALE
from audiosep_jax.audio.stft import hann_window, reflect_pad
from audiosep_jax.data.embeddings import EmbeddingCache
from audiosep_jax.data.records import Record, decode_audio
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError
from audiosep_jax.progress import printed_progress, progress_bar

# More than these hardly change means.
_MOST_CLIPS = 4096
_MOST_CAPTIONS = 4096
_MOST_SECONDS = 10.0  # of a clip
_FRAMES = 512  # at a time
_SILENCE = 1e-10  # mean square


@dataclasses.dataclass(frozen=True)
class CaptionSpectra:
    """The spectra of clips, and how often training uses which caption for which clip.

    Attributes:
        embeddings: of the captions, each of length 1.
        power: mean power spectrum of each clip.
        uses: how often; they add up to 1.
        captions: of each use.
        clips: of each use.
    """

    embeddings: Float32[np.ndarray, 'K E']
    power: Float32[np.ndarray, 'clips F']
    uses: Float64[np.ndarray, ' U']
    captions: Int[np.ndarray, ' U']
    clips: Int[np.ndarray, ' U']


def caption_spectra(
    shards: Sequence[Shards], encoder: str, weights: Sequence[float], *, sample_rate: int, window_size: int
) -> CaptionSpectra:
    """Measures the spectra of the clips of datasets and groups their captions, of which equal embeddings are one.

    Of large datasets, it takes some thousands of clips and of captions. Clips that cannot be read are left out, as in
    training, which counts them.

    Args:
        shards: the splits to train on.
        encoder: name of the encoder whose embeddings of the captions are cached.
        weights: how often training draws clips from each; none: as often as they have clips.
        sample_rate: Hz at which the spectra are taken.
        window_size: samples of the STFT's window.

    Raises:
        DataError: the embeddings of a dataset cannot be read, or all of its clips are silent or unreadable.
    """
    shares = np.asarray([*weights] or [len(split) for split in shards], np.float64)
    power: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    uses: list[float] = []
    clips: list[int] = []
    for split, share in zip(shards, shares / shares.sum(), strict=True):
        cache, first = EmbeddingCache(split, encoder), len(power)
        uses_of_split: list[float] = []
        for index, spectrum in _spectra(split, max(_MOST_CLIPS // len(shards), 1), sample_rate, window_size):
            embeddings = cache.rows(index)
            rows.append(embeddings)
            uses_of_split += [1 / len(embeddings)] * len(embeddings)
            clips += [len(power)] * len(embeddings)
            power.append(spectrum)
        if len(power) == first:
            raise DataError(f'{split.directory}: all clips are silent or unreadable, so they have no spectra')
        uses += [share * use / (len(power) - first) for use in uses_of_split]
    embeddings, captions = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    captions = captions.reshape(-1)  # which it was not in NumPy 2.0.0
    kept = np.ones(len(captions), bool)
    if len(embeddings) > _MOST_CAPTIONS:
        chosen = np.random.default_rng(0).choice(len(embeddings), _MOST_CAPTIONS, replace=False)
        kept = np.isin(captions, chosen)
        embeddings, captions = embeddings[np.sort(chosen)], np.searchsorted(np.sort(chosen), captions)
    embeddings = embeddings.astype(np.float32)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    counts = np.asarray(uses)[kept]
    return CaptionSpectra(
        embeddings,
        np.asarray(power, np.float32),
        counts / counts.sum(),
        captions[kept],
        np.asarray(clips)[kept],
    )


def _spectra(split: Shards, most: int, sample_rate: int, window_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, mean power spectrum) of some clips of a split that are neither silent nor unreadable."""
    indices = [*_spread(len(split), most)]
    with (
        progress_bar(f'spectra of {split.directory}') as show,
        printed_progress('measured the spectra of', show) as report,
    ):
        for done, index in enumerate(indices, 1):
            report(done, len(indices))
            try:
                clip = samples(split.read(index), sample_rate, _MOST_SECONDS)
            except DataError:
                continue
            spectrum = mean_power(clip, window_size, window_size // 2)
            if spectrum is not None:
                yield index, spectrum


def _spread(count: int, most: int) -> Iterator[int]:
    """Yields at most `most` of `count` indices, evenly spread."""
    taken = min(count, most)
    return (i * count // taken for i in range(taken))


def some_clips(shards: Shards, most: int) -> Iterator[Record]:
    """Yields at most `most` clips of a split, evenly spread."""
    return (shards.read(index) for index in _spread(len(shards), most))


def samples(record: Record, sample_rate: int, most_seconds: float) -> Float32[np.ndarray, ' T']:
    """Decodes the beginning of a clip at a sample rate in Hz."""
    count = min(record.num_samples, int(most_seconds * record.sample_rate))
    return resample(decode_audio(record, 0, count).astype(np.float32) / INT16_SCALE, record.sample_rate, sample_rate)


def mean_power(samples: np.ndarray, window_size: int, hop_size: int) -> np.ndarray | None:
    """Returns the mean power spectrum [F] of samples [T] at unit energy; None if they are silent."""
    energy = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    if energy <= _SILENCE:
        return None
    window = hann_window(window_size)
    padded = reflect_pad(np.asarray(samples / np.sqrt(energy), np.float32), window_size)
    padded = np.pad(padded, (0, max(window_size - len(padded), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_size)[::hop_size]
    total = np.zeros(window_size // 2 + 1)
    for start in range(0, len(frames), _FRAMES):
        total += np.sum(np.abs(np.fft.rfft(frames[start : start + _FRAMES] * window)) ** 2, axis=0)
    return total / len(frames)
