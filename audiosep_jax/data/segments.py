"""One row of a training batch: a random part of a clip, an embedding to ask for it by, and its labels.

Letters: T samples, E embedding size, L labels.
"""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence

import grain
import numpy as np

from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.samples import INT16_SCALE, to_int16
from audiosep_jax.data.embeddings import EmbeddingCache, Modality
from audiosep_jax.data.records import Record, decode_audio
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError

MAX_LABELS = 16  # L: a batch needs one number; AudioSet's clips have up to 15
# Consecutive unreadable records that are stepped over before the dataset is given up.
_MAX_NEIGHBOURS = 64


class LoadSegment(grain.transforms.RandomMap):
    """(position in the global stream, dataset, clip) to one row of a batch.

    Pickled into worker processes: shards and caches open their files anew there.

    Args:
        shards: of each dataset.
        caches: of each dataset, its embeddings by modality: 'text', `other`, or both.
        num_samples: T.
        sample_rate: of the segments, Hz.
        use_text_ratio: share of the rows that get a caption's embedding.
        other: what the rest get; a clip that has none gets a caption's.
        text_block: so many consecutive positions share that choice; 0: each position has its own.
        block_seed: of the choices of blocks.
        labels: whether rows hold them.
    """

    def __init__(
        self,
        shards: Sequence[Shards],
        caches: Sequence[Mapping[Modality, EmbeddingCache]],
        *,
        num_samples: int,
        sample_rate: int,
        use_text_ratio: float = 1.0,
        other: Modality = 'audio',
        text_block: int = 0,
        block_seed: int = 0,
        labels: bool = False,
    ):
        self.shards, self.caches = shards, caches
        self.num_samples, self.sample_rate = num_samples, sample_rate
        self.use_text_ratio, self.other = use_text_ratio, other
        self.text_block, self.block_seed = text_block, block_seed
        self.labels = labels

    def random_map(self, element: tuple[int, int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`waveforms` int16 [T], `embeddings` float32 [E], `corrupt` int64 [2], the (dataset, clip) that could not be
        read or -1, and `labels` int32 [L] if asked for. Raises DataError where no neighbour can be read either."""
        position, dataset, clip = element
        # Drawn at once and as fractions: what stands in for a corrupt record does not shift later draws.
        where, which, kind = rng.random(3)
        if self.text_block:
            kind = np.random.default_rng([self.block_seed, position // self.text_block]).random()
        corrupt = (-1, -1)
        shards = self.shards[dataset]
        for _ in range(min(len(shards), _MAX_NEIGHBOURS)):
            try:
                record = shards.read(clip)
                segment = segment_of(record, where, self.num_samples, self.sample_rate)
                break
            except DataError:
                if corrupt[0] < 0:
                    corrupt = (dataset, clip)
                clip = (clip + 1) % len(shards)
        else:
            raise DataError(
                f'{shards.directory}: too many unreadable records in a row: run `python -m data_prep verify '
                f'{shards.directory}`'
            )
        rows = self._rows(dataset, clip, 'text' if kind < self.use_text_ratio else self.other)
        row = {
            'waveforms': segment,
            'embeddings': rows[int(which * len(rows))].astype(np.float32),
            'corrupt': np.array(corrupt, np.int64),
        }
        return row | {'labels': label_numbers(record)} if self.labels else row

    def _rows(self, dataset: int, clip: int, what: Modality) -> np.ndarray:
        """float16 [1 or more, E]."""
        rows = self.caches[dataset][what].rows(clip)
        return rows if len(rows) else self.caches[dataset]['text'].rows(clip)


def label_numbers(record: Record) -> np.ndarray:
    """int32 [L]: a number from 0 for each label, whatever its case, the same in every dataset; -1 to fill up.

    A clip without labels has its captions for labels. Of more than L the first count.
    """
    numbers = np.full(MAX_LABELS, -1, np.int32)
    found = _numbers(record.labels or record.captions)[:MAX_LABELS]
    numbers[: len(found)] = found
    return numbers


def _numbers(labels: Iterable[str]) -> list[int]:
    # crc32 and not hash(): the latter is salted per process. 31 bits: JAX has int32.
    return [zlib.crc32(' '.join(label.casefold().split()).encode()) & 0x7FFFFFFF for label in labels]


def random_segment(shards: Shards, clip: int, where: float, num_samples: int, sample_rate: int) -> np.ndarray:
    """`segment_of` clip number `clip`. Raises DataError for a record that cannot be read."""
    return segment_of(shards.read(clip), where, num_samples, sample_rate)


def segment_of(record: Record, where: float, num_samples: int, sample_rate: int) -> np.ndarray:
    """int16 [num_samples] of a clip at `sample_rate` Hz; `where` in [0, 1) decides which part of it.

    Of a clip longer than the segment a part is decoded; a shorter one lies among zeros. Of the clips of another sample
    rate the part is resampled, and attenuated as a whole where that overshoots full scale.

    Raises:
        DataError: audio that does not decode.
    """
    same_rate = record.sample_rate == sample_rate
    needed = num_samples if same_rate else math.ceil(num_samples * record.sample_rate / sample_rate)
    start = int(where * (max(record.num_samples - needed, 0) + 1))
    samples = decode_audio(record, start, min(needed, record.num_samples))
    if not same_rate:
        samples = to_int16(resample(samples.astype(np.float32) / INT16_SCALE, record.sample_rate, sample_rate))
    samples = samples[:num_samples]
    if len(samples) == num_samples:
        return samples
    segment = np.zeros(num_samples, np.int16)
    offset = int(where * (num_samples - len(samples) + 1))
    segment[offset : offset + len(samples)] = samples
    return segment
