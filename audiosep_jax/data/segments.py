"""Makes one row of a training batch: a random part of a clip, the embedding of a query for it, and its labels.

Letters: T samples, E embedding size, L labels.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.samples import INT16_SCALE, to_int16
from audiosep_jax.data.embeddings import EmbeddingCache, Modality
from audiosep_jax.data.records import Record, decode_audio
from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError

MAX_LABELS = 16  # L, fixed because arrays need one shape; AudioSet's clips have up to 15
# After this many consecutive unreadable records, reading fails.
_MAX_UNREADABLE = 64


class LoadSegment(grain.transforms.RandomMap):
    """Turns (position in the global stream, dataset, clip) into one row of a batch.

    Worker processes get a pickled copy, whose shards and caches open their files again.

    Args:
        shards: the shards of each dataset.
        caches: the embeddings of each dataset by modality: 'text', `other`, or both; with 'variants', a caption's
            embedding may also be that of one of its variants.
        num_samples: T.
        sample_rate: sample rate of the segments in Hz.
        use_text_ratio: share of the rows that get a caption's embedding.
        other: the modality of the other rows; a clip without it gets a caption's embedding.
        text_block: this many consecutive positions share the choice between the two; 0: each position has its own.
        block_seed: seed of the choices of blocks.
        labels: whether rows hold labels.
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
        """Returns one row.

        Args:
            element: (position in the global stream, dataset, clip).
            rng: the random generator of this position.

        Returns:
            `waveforms` int16 [T], `embeddings` float32 [E], `corrupt` int64 [2], which is the (dataset, clip) that
            could not be read or -1, and `labels` int32 [L] on request.

        Raises:
            DataError: neither the record nor its neighbors can be read.
        """
        position, dataset, clip = element
        # Drawn together and as fractions, so that replacing a corrupt record does not shift the other draws.
        where, which, kind = rng.random(3)
        if self.text_block:
            kind = np.random.default_rng([self.block_seed, position // self.text_block]).random()
        corrupt = (-1, -1)
        shards = self.shards[dataset]
        for _ in range(min(len(shards), _MAX_UNREADABLE)):
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
        """Returns a clip's embeddings of a modality, or else of its captions, float16 [1 or more, E]."""
        caches = self.caches[dataset]
        rows = caches[what].rows(clip)
        if len(rows) and what != 'text':
            return rows
        rows = rows if len(rows) else caches['text'].rows(clip)
        return np.concatenate([rows, caches['variants'].rows(clip)]) if 'variants' in caches else rows


def label_numbers(record: Record) -> np.ndarray:
    """Returns a non-negative number for each label, int32 [L], filled up with -1.

    The numbers ignore case and are the same in every dataset. If a clip has no labels, its captions serve as labels. If
    it has more than L, only the first L count.
    """
    numbers = np.full(MAX_LABELS, -1, np.int32)
    found = [label_number(label) for label in (record.labels or record.captions)[:MAX_LABELS]]
    numbers[: len(found)] = found
    return numbers


def label_number(label: str) -> int:
    """Returns the number that stands for a label in batches, 0 or more; case and spaces do not matter."""
    # crc32, because hash() differs between processes; 31 bits, to fit into JAX's int32.
    return zlib.crc32(' '.join(label.casefold().split()).encode()) & 0x7FFFFFFF


def random_segment(shards: Shards, clip: int, where: float, num_samples: int, sample_rate: int) -> np.ndarray:
    """Returns `segment_of` a clip. Raises DataError if its record cannot be read."""
    return segment_of(shards.read(clip), where, num_samples, sample_rate)


def segment_of(record: Record, where: float, num_samples: int, sample_rate: int) -> np.ndarray:
    """Returns a segment of a clip, int16 [num_samples].

    If the clip is longer than the segment, only the segment is decoded; if it is shorter, it is padded with zeros. If
    its sample rate differs, the segment is resampled, and attenuated as a whole if that exceeds full scale.

    Args:
        record: the clip.
        where: a number in [0, 1), which determines the segment's start or the clip's place among the zeros.
        num_samples: length of the segment.
        sample_rate: sample rate of the segment in Hz.

    Raises:
        DataError: the audio does not decode.
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
