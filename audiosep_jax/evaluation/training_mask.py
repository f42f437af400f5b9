"""The fixed spectral mask as a row of an evaluation: an equalizer per class, fitted on a set that data_prep built.

It knows the target's class and nothing of the mixture, so a separator that scores less has learned less than the mean
spectra of the classes.
"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from audiosep_jax.data.layout import split_names
from audiosep_jax.data.mean_spectra import mean_power, samples, some_clips
from audiosep_jax.data.records import Record
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError, listed
from audiosep_jax.evaluation.baselines import SpectralMask
from audiosep_jax.evaluation.benchmark import Item

_MOST_CLIPS = 10_000  # of a dataset; more do not change mean spectra
_MOST_SECONDS = 60  # of a clip


@dataclasses.dataclass(frozen=True)
class TrainingMask:
    """Masks per class of a training set, and the names under which items find their class.

    A class is a label; of clips without labels, a caption.

    Attributes:
        mask: the masks.
        names: the class for each label and caption, which are in lower case.
        about: what the masks were fitted on, for the user.
    """

    mask: SpectralMask
    names: Mapping[str, str]
    about: str

    def class_of(self, item: Item) -> str | None:
        """Returns the class by the item's label, or else by its texts; None if the training set has none of them."""
        keys = map(_key, (item.label, *item.queries.values()))
        return next((self.names[key] for key in keys if key in self.names), None)

    def separate(self, mixtures: np.ndarray, classes: Sequence[str | None]) -> np.ndarray:
        """Returns the estimates, float32 [n, T]; half of the mixture where there is no class.

        Args:
            mixtures: float [n, T].
            classes: the class to separate from each mixture, from `class_of`.
        """
        estimates = np.asarray(mixtures, np.float32) / 2
        known = [i for i, name in enumerate(classes) if name is not None]
        # All of them, so that every batch has the same shape and is compiled once.
        any_class = next(iter(self.mask.masks))
        masked = self.mask.separate(mixtures, [name or any_class for name in classes])
        estimates[known] = masked[known]
        return estimates

    def digest(self) -> str:
        """Returns a hash of the masks and the names."""
        digest = hashlib.sha256(repr(sorted(self.names.items())).encode())
        for name, gains in sorted(self.mask.masks.items()):
            digest.update(name.encode() + gains.tobytes())
        return digest.hexdigest()[:32]


def fit_training_mask(
    datasets: Sequence[str | os.PathLike], *, sample_rate: int, window_size: int, hop_size: int
) -> TrainingMask:
    """Fits a mask to each class of datasets for training, in their split `train` or their only one.

    Every clip is scaled to the same energy, and silent clips are ignored, as in `SpectralMask.fit`.

    Args:
        datasets: their folders.
        sample_rate: rate in Hz of the mixtures to separate.
        window_size: window of the STFT, in samples.
        hop_size: hop of the STFT, in samples.

    Raises:
        DataError: a dataset cannot be read, or there are fewer than two classes.
    """
    sums: dict[str, np.ndarray] = {}
    counts: collections.Counter[str] = collections.Counter()
    by_caption: dict[str, collections.Counter[str]] = {}
    num_clips = 0
    for record in _records(datasets):
        power = mean_power(samples(record, sample_rate, _MOST_SECONDS), window_size, hop_size)
        if power is None:
            continue
        num_clips += 1
        classes = [*dict.fromkeys(record.labels or record.captions)]
        for name in classes:
            sums[name] = sums[name] + power if name in sums else power
            counts[name] += 1
        for caption in record.captions:
            by_caption.setdefault(_key(caption), collections.Counter()).update(classes)
    names = {key: found.most_common(1)[0][0] for key, found in by_caption.items()} | {_key(name): name for name in sums}
    folders = listed([str(folder) for folder in datasets])
    try:
        mask = SpectralMask.from_power(
            {name: total / counts[name] for name, total in sums.items()}, window_size=window_size, hop_size=hop_size
        )
    except DataError as error:
        raise DataError(f'{folders}: {error}') from error
    return TrainingMask(mask, names, f'{num_clips} clips of {len(sums)} classes in {folders}')


def _records(datasets: Sequence[str | os.PathLike]) -> Iterator[Record]:
    for folder in datasets:
        names = split_names(folder)
        yield from some_clips(Shards(folder, names[0] if len(names) == 1 else 'train'), _MOST_CLIPS)


def _key(text: str) -> str:
    return ' '.join(text.replace('_', ' ').casefold().split())
