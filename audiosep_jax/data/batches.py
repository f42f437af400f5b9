"""Makes training batches from shards and embedding caches: a Grain pipeline with an exact, host-independent position.

    global stream of clips (clip_stream.py) ─load (segments.py)─▶ random crops ─batch─▶ every H-th for host h

Before `load`, everything is arithmetic on indices: position p of the global stream, and the random draws there, are a
function of (seed, p) only. So a run resumes from one number, on any number of hosts and workers. Letters: B clips in
the global batch, B_local clips of this host, T samples, E embedding size, L labels.
"""

import dataclasses
import hashlib
import json
import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import grain
import numpy as np

from audiosep_jax.data.ahead import ReadAhead, Source
from audiosep_jax.data.caption_variants import variants_digest
from audiosep_jax.data.clip_stream import clip_stream, independent_seeds
from audiosep_jax.data.embeddings import (
    EmbeddingCache,
    Modality,
    cached_encoders,
    check_same_encoder,
    read_encoder_identity,
)
from audiosep_jax.data.layout import read_split_info
from audiosep_jax.data.segments import LoadSegment
from audiosep_jax.data.shards import Shards
from audiosep_jax.data.staging import stage
from audiosep_jax.data.workers import Workers
from audiosep_jax.encoders.registry import encoder_names
from audiosep_jax.errors import AudioSepError, ConfigError, DataError, EncoderMismatchError
from audiosep_jax.progress import progress_bar
from audiosep_jax.storage.memory import keep_freed_memory

_log = logging.getLogger(__name__)

_STREAM_VERSION = 2  # increases when a position comes to mean another clip or crop
# The share of corrupt records is judged only after this many records.
_CORRUPT_AFTER = 100


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        data: dataset directories, made by `python -m data_prep build` and `embed`.
        weights: how often clips are drawn from each dataset, in proportion; empty: by their numbers of clips.
        split: the split of each dataset.
        segment_seconds: length of the crops; a random part is taken of longer clips, and shorter ones are padded with
            zeros at random.
        encoder: name of the query encoder whose embeddings to use; empty: the only one that has any.
        use_text_ratio: share of the examples whose query is a caption, 0 to 1; the query of the rest is `other`.
        other: the embedding of the clip's audio, or of a random frame of its video (a caption for clips without
            frames); made by `python -m data_prep embed --what audio|image`.
        caption_variants: whether a clip's query may also be one of its captions' variants, in datasets that have any
            (`python -m data_prep caption-variants`); all wordings of a clip are equally likely.
        ratio_per: whether use_text_ratio is drawn for each example or, as in the original, for each batch.
        max_corrupt_share: the run ends if a larger share of the records is unreadable; judged after 100 records, and
            allowing for chance (two standard deviations); 1: never.
        stage_dir: folder on a local disk, to which datasets (also those in buckets) are copied before training.
        workers: processes that decode; 0 decodes in threads of the main process, which saves sending the batches;
            more than a few help only if eight threads are not enough.
        threads: threads per process, each of which fills one batch at a time.
        read_ahead: batches that each process keeps ready.

    Raises:
        ConfigError: a value is out of range, or the weights do not match the datasets.
    """

    data: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    split: str = 'train'
    segment_seconds: float = 5.0
    encoder: str = ''
    use_text_ratio: float = 1.0
    other: Literal['audio', 'image'] = 'audio'
    caption_variants: bool = True
    ratio_per: Literal['example', 'batch'] = 'example'
    max_corrupt_share: float = 0.01
    stage_dir: str = ''
    workers: int = 0
    threads: int = 4
    read_ahead: int = 4

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.data):
            raise ConfigError(f'{len(self.weights)} weights for {len(self.data)} datasets: give one for each, or none')
        if not all(math.isfinite(w) and w > 0 for w in self.weights):
            raise ConfigError(f'weights {self.weights}: must be above 0; omit a dataset that is not to be used')
        if not (math.isfinite(self.segment_seconds) and self.segment_seconds > 0):
            raise ConfigError(f'segment_seconds {self.segment_seconds}: must be above 0')
        for name in ('use_text_ratio', 'max_corrupt_share'):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f'{name} {getattr(self, name)}: must be between 0 and 1')
        for name, known in (('other', ('audio', 'image')), ('ratio_per', ('example', 'batch'))):
            if getattr(self, name) not in known:
                raise ConfigError(f'{name} {getattr(self, name)!r}: must be {" or ".join(known)}')
        for name, least in (('workers', 0), ('threads', 1), ('read_ahead', 1)):
            if getattr(self, name) < least:
                raise ConfigError(f'{name} {getattr(self, name)}: must be at least {least}')

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The kinds of embeddings that training needs."""
        # `image` always needs text as well, for the clips without frames.
        text: tuple[Modality, ...] = ('text',) if self.use_text_ratio > 0 or self.other == 'image' else ()
        return text + ((self.other,) if self.use_text_ratio < 1 else ())


def encoder_identity(config: DataConfig) -> dict[str, Any]:
    """Returns the identity of the query encoder that made the embeddings of all the datasets.

    Args:
        config: the data, with local paths (see `staged`).

    Raises:
        ConfigError: no dataset is given.
        DataError: there is no such dataset or split, or it has no embeddings of `config.encoder`, or no encoder is
            named and it has embeddings of several.
        EncoderMismatchError: the embeddings are from another encoder, or from two versions of it.
    """
    _check_given(config)
    for directory in config.data:
        read_split_info(directory, config.split)  # reports a mistyped folder, instead of its lack of embeddings
    name = config.encoder or _only_encoder(config.data)
    identities = [read_encoder_identity(directory, name) for directory in config.data]
    for directory, identity in zip(config.data, identities, strict=True):
        if identity['name'] != name:
            raise EncoderMismatchError(
                f'{directory}: its embeddings {name!r} were made by encoder {identity["name"]!r}: embed again'
            )
        check_same_encoder(directory, identity, identities[0], of=config.data[0])
    return identities[0]


def _only_encoder(directories: Sequence[str]) -> str:
    """Returns the name of the only encoder that made embeddings of the first dataset."""
    names = cached_encoders(directories[0])
    if len(names) == 1:
        return names[0]
    if names:
        raise DataError(f'{directories[0]} has embeddings of {", ".join(names)}: say which with --encoder NAME')
    raise DataError(
        f'{directories[0]}: no embeddings: run `python -m data_prep embed {directories[0]} --encoder NAME` '
        f'({", ".join(encoder_names())}, or a path of weights)'
    )


def make_batches(
    config: DataConfig,
    *,
    sample_rate: int,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    labels: bool = False,
) -> 'Batches':
    """Returns an endless iterator over this host's part of the global batches.

    Args:
        config: the data, with local paths (see `staged`).
        sample_rate: sample rate of the crops in Hz; T = round(segment_seconds * sample_rate).
        batch_size: B. Host h of H gets rows h·B/H to (h+1)·B/H - 1 of every batch.
        seed: seed of the order, the crops and the choice of captions.
        process_index: h.
        process_count: H.
        labels: whether batches hold `labels`, for a mixer that avoids mixing clips with the same label.

    Raises:
        ConfigError: the sizes do not fit together, or no dataset is given.
        DataError: shards or embeddings are missing, damaged or do not match.
        EncoderMismatchError: as `encoder_identity`.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ConfigError(f'batch_size {batch_size} must be a positive multiple of the {process_count} hosts')
    if not 0 <= process_index < process_count:
        raise ConfigError(f'process_index {process_index} is not one of {process_count}')
    if seed < 0:
        raise ConfigError(f'seed {seed}: must not be negative')
    num_samples = round(config.segment_seconds * sample_rate)
    if num_samples < 1:
        raise ConfigError(f'segment_seconds {config.segment_seconds} is less than one sample at {sample_rate} Hz')
    encoder = encoder_identity(config)['name']
    keep_freed_memory()
    shards = [Shards(directory, config.split) for directory in config.data]
    weights = [float(w) for w in config.weights or map(len, shards)]
    variants = [variants_digest(s.directory) if _uses_variants(config) else '' for s in shards]
    load = LoadSegment(
        shards,
        [_open_caches(s, encoder, config, with_variants=bool(v)) for s, v in zip(shards, variants, strict=True)],
        num_samples=num_samples,
        sample_rate=sample_rate,
        use_text_ratio=config.use_text_ratio,
        other=config.other,
        # The number of consecutive positions that share a draw; 0: each has its own.
        text_block=batch_size if config.ratio_per == 'batch' else 0,
        block_seed=seed,
        labels=labels,
    )
    order_seed, crop_seed = independent_seeds(seed, 2)
    stream = clip_stream([len(s) for s in shards], weights, order_seed).random_map(load, seed=crop_seed)
    fingerprint_parts: list[Any] = [_STREAM_VERSION, [s.info.content for s in shards]]
    fingerprint_parts += [weights, seed, num_samples, sample_rate]
    if config.use_text_ratio < 1:
        fingerprint_parts += [config.use_text_ratio, config.other, load.text_block]
    if any(variants):
        fingerprint_parts.append(variants)
    return Batches(
        stream,
        shards,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        fingerprint=hashlib.sha256(json.dumps(fingerprint_parts).encode()).hexdigest()[:16],
        config=config,
    )


def _uses_variants(config: DataConfig) -> bool:
    return config.caption_variants and 'text' in config.modalities


def _open_caches(
    shards: Shards, encoder: str, config: DataConfig, *, with_variants: bool
) -> dict[Modality, EmbeddingCache]:
    kinds: tuple[Modality, ...] = (*config.modalities, 'variants') if with_variants else config.modalities
    return {what: EmbeddingCache(shards, encoder, what) for what in kinds}


class Batches(Iterator[dict[str, np.ndarray]]):
    """Yields `{'waveforms': int16 [B_local, T], 'embeddings': float32 [B_local, E]}` endlessly.

    As float audio, waveforms are divided by 32768. On request there are also `labels`, int32 [B_local, L]: a number for
    each of the clip's labels, filled up with -1; see `segments.label_numbers`. A record that cannot be read is replaced
    by the next readable one and counted in `corrupt_records`. `make_batches` makes this iterator, which is also a
    context manager that ends its threads and worker processes.
    """

    def __init__(
        self,
        stream: grain.MapDataset,
        shards: Sequence[Shards],
        *,
        batch_size: int,
        process_index: int,
        process_count: int,
        fingerprint: str,
        config: DataConfig,
    ):
        self._stream = stream
        self._batch_size = batch_size
        self._process_index = process_index
        self._process_count = process_count
        self._fingerprint = fingerprint
        self._config = config
        self._position = 0
        # Closed before the interpreter ends, because after that Grain's own clean-up fails with a traceback.
        self._open: list[ReadAhead] = []
        weakref.finalize(self, _close_all, self._open)
        self._corrupt = _CorruptRecords(shards, config.max_corrupt_share)
        self.corrupt_records = 0  # different unreadable records in this process since it started

    def wait(self, count: int, give_up: Callable[[], bool]) -> bool:
        """Waits until the next `count` batches have been read. It runs the handlers of signals meanwhile.

        Args:
            count: how many batches; from then on, as many are kept ready.
            give_up: whether to wait no longer than two seconds.

        Returns:
            Whether they have been read. If not, reading has failed (see `failure`), or `give_up` holds.
        """
        return self._reader().wait(count, give_up)

    @property
    def ready(self) -> int:
        """How many batches have been read; so many calls of `next` return at once."""
        return self._open[0].ready if self._open else 0

    @property
    def failure(self) -> Exception | None:
        """The exception that `next` will raise after the batches that are ready; None while there is none."""
        return self._open[0].failure if self._open else None

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch.

        Raises:
            DataError: too many records are unreadable, in a row or as a share, a dataset cannot be read at all, or a
                worker process was killed.
        """
        batch, self.corrupt_records = next(self._reader())
        self._position += self._batch_size
        return batch

    def _reader(self) -> ReadAhead:
        if not self._open:
            self._open.append(ReadAhead(_Checked(self._pipeline(), self._corrupt, self._config.data)))
        return self._open[0]

    def _pipeline(self) -> Source:
        # The global stream is cut into batches of B_local, of which host h takes h, h+H, h+2H …, so it gets contiguous
        # rows of each global batch. (Grain's ElasticIterator deals out single rows, so their order would depend on H.)
        # Worker w of W takes every W-th of these. `filter` would break this, so short and damaged clips are handled
        # when building and loading.
        parts = self._stream[self._position :].batch(self._batch_size // self._process_count, drop_remainder=True)
        # An element is a whole batch here, so Grain's default of 500 elements ahead would fill the memory.
        options = grain.ReadOptions(num_threads=self._config.threads, prefetch_buffer_size=self._config.read_ahead)
        number = max(self._config.workers, 1)
        mine = [
            parts[self._process_index + worker * self._process_count :: number * self._process_count].to_iter_dataset(
                options
            )
            for worker in range(number)
        ]
        return Workers(mine) if self._config.workers else iter(mine[0])

    def get_state(self) -> dict[str, Any]:
        """Returns where the next batch starts, JSON-ready. It is the same on every host, for any number of hosts."""
        return {'position': self._position, 'stream': self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Resumes exactly after the batch that `get_state` followed, also with another number of hosts or workers.

        Args:
            state: from `get_state`.

        Raises:
            DataError: the state is from other data, weights, crops or another seed, where positions mean other clips.
        """
        position = state.get('position') if isinstance(state, dict) else None
        if type(position) is not int or position < 0 or state.get('stream') != self._fingerprint:
            raise DataError(
                f'the saved data position {state} is not of this stream: resume with the same data, weights, '
                'segment length, sample rate, share of text, caption variants and seed, or start a new run'
            )
        self.close()
        self._position = position

    def close(self) -> None:
        """Ends the threads and worker processes; `next` starts them again."""
        _close_all(self._open)

    def __enter__(self) -> 'Batches':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _close_all(readers: list[ReadAhead]) -> None:
    while readers:
        readers.pop().close()


class _CorruptRecords:
    """Counts and reports the records of a run that cannot be read.

    Args:
        shards: the shards of each dataset.
        max_share: the largest share of all records that may be corrupt.
    """

    def __init__(self, shards: Sequence[Shards], max_share: float):
        self._shards, self._max_share = shards, max_share
        self._corrupt: set[tuple[int, int]] = set()
        self._seen = self._replaced = 0  # rows since the start, and how many of them replace a corrupt record

    def count(self, found: np.ndarray) -> int:
        """Counts the records of a batch, and returns how many different ones have been corrupt so far.

        Args:
            found: int [B_local, 2], the (dataset, clip) of each row's corrupt record, or -1.

        Raises:
            DataError: their share is too large.
        """
        self._seen += len(found)
        for dataset, clip in found[found[:, 1] >= 0].tolist():
            self._replaced += 1
            if (dataset, clip) not in self._corrupt:
                self._corrupt.add((dataset, clip))
                shard, record = self._shards[dataset].locate(clip)
                _log.warning(
                    '%s: record %d cannot be read, its neighbor replaces it; see `python -m data_prep verify %s`',
                    self._shards[dataset].path(shard),
                    record,
                    self._shards[dataset].directory,
                )
        expected = self._max_share * self._seen
        # If one in 100 is allowed, two of 100 records can be chance, but 200 of 10,000 cannot.
        if self._seen >= _CORRUPT_AFTER and self._replaced > expected + 2 * math.sqrt(expected):
            worst = {self._shards[dataset].directory for dataset, _ in self._corrupt}
            raise DataError(
                f'{self._replaced} of {self._seen} records read are corrupt, more than --max-corrupt-share '
                f'{self._max_share}: run `python -m data_prep verify` on {", ".join(map(str, worst))}, '
                'build the damaged shards again or allow a larger share'
            )
        return len(self._corrupt)


class _Checked:
    """Yields (batch, number of corrupt records so far), and raises nothing but the project's errors.

    Args:
        source: yields batches that also hold `corrupt`.
        records: counts them.
        data: the names of the datasets, for messages.
    """

    def __init__(self, source: Source, records: _CorruptRecords, data: Sequence[str]):
        self._source, self._records, self._data = source, records, data

    def __next__(self) -> tuple[dict[str, np.ndarray], int]:
        try:
            batch = next(self._source)
            return batch, self._records.count(batch.pop('corrupt'))
        except AudioSepError:
            raise
        except Exception as error:
            raise DataError(f'reading {", ".join(self._data)} failed: {" ".join(str(error).split())}') from error

    def close(self) -> None:
        self._source.close()


def staged(config: DataConfig) -> DataConfig:
    """Copies the datasets to `stage_dir`, if one is given, and returns the configuration with the paths of the copies.

    Files that are there already are not copied again. Every host copies whole datasets, because it may need any clip.
    A program calls this once, at its start; everything else takes the configuration that it returns.

    Raises:
        ConfigError: no dataset is given, or stage_dir is in a bucket.
        DataError: a dataset does not exist or cannot be copied.
    """
    if not config.stage_dir:
        return config
    _check_given(config)
    encoders = [config.encoder] if config.encoder else None
    local = []
    for directory in config.data:
        with progress_bar(f'copying {directory} (MB)') as progress:
            copy = stage(directory, config.stage_dir, splits=[config.split], encoders=encoders, progress=progress)
        local.append(str(copy))
    return dataclasses.replace(config, data=tuple(local), stage_dir='')


def _check_given(config: DataConfig) -> None:
    if not config.data:
        raise ConfigError('no data: give --data DIR, a dataset made by `python -m data_prep build`')
