"""Shards and embedding caches to training batches: a Grain pipeline with an exact, host-independent position.

    global stream of clips (clip_stream.py) ─load (segments.py)─▶ random crops ─batch─▶ every H-th for host h

Until `load`, everything is arithmetic on indices: position p of the global stream, and the random draws there, are a
function of (seed, p) alone. So a run resumes from one number, on any number of hosts and workers. Letters: B clips in
the global batch, B_local those of this host, T samples, E embedding size, L labels.
"""

import dataclasses
import hashlib
import json
import logging
import math
import sys
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import grain
import numpy as np
from absl import flags

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
from audiosep_jax.encoders.registry import encoder_names
from audiosep_jax.errors import AudioSepError, ConfigError, DataError, EncoderMismatchError
from audiosep_jax.progress import progress_bar
from audiosep_jax.storage.memory import keep_freed_memory
from audiosep_jax.storage.system import end_with_parent

_log = logging.getLogger(__name__)

_STREAM_VERSION = 2  # of what a position means
# Records to see before a share of corrupt ones means anything.
_CORRUPT_AFTER = 100


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        data: dataset directories, made by `python -m data_prep build` and `embed`.
        weights: how often each is drawn from, in proportion; empty: by their numbers of clips.
        split: of each dataset.
        segment_seconds: length of the crops. Of a longer clip a random part is taken; a shorter one is put at a random
            place among zeros.
        encoder: name of the query encoder, whose embeddings must be there; empty: the only one that has any.
        use_text_ratio: share of the examples that are asked for by a caption, 0 to 1; the others by `other`.
        other: the embedding of the whole clip's sound, or of one of its video's pictures, drawn at random; a clip
            without pictures is asked for by a caption. Made by `python -m data_prep embed --what audio|image`.
        ratio_per: whether use_text_ratio is drawn for each example or, as the original does, for each batch.
        max_corrupt_share: more unreadable records than this share of those seen end the run, once there were 100, and
            more than chance explains (two standard deviations); 1: never.
        stage_dir: folder on a local disk; datasets, which may be in buckets, are copied there first and read there.
        workers: processes that decode; 0 decodes in threads of this one, which saves sending the batches: more than a
            few are of use where eight threads are not enough.
        threads: per process, each fills one batch at a time.
        read_ahead: batches kept ready, per process.

    Raises:
        ConfigError: a value out of range, or weights that do not match the datasets.
    """

    data: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    split: str = 'train'
    segment_seconds: float = 5.0
    encoder: str = ''
    use_text_ratio: float = 1.0
    other: Literal['audio', 'image'] = 'audio'
    ratio_per: Literal['example', 'batch'] = 'example'
    max_corrupt_share: float = 0.01
    stage_dir: str = ''
    workers: int = 0
    threads: int = 4
    read_ahead: int = 4

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.data):
            raise ConfigError(f'{len(self.weights)} weights for {len(self.data)} datasets: give one for each, or none')
        if not all(math.isfinite(w) and w > 0 for w in self.weights):
            raise ConfigError(f'weights {self.weights}: must be above 0; leave out a dataset that is not to be used')
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
        """Which embeddings it takes."""
        # Text also where nothing else is asked for: of some clips there is no picture.
        text = ('text',) if self.use_text_ratio > 0 or self.other == 'image' else ()
        return text + ((self.other,) if self.use_text_ratio < 1 else ())


def encoder_identity(config: DataConfig) -> dict[str, Any]:
    """The identity of the query encoder that all the datasets' embeddings were made with.

    Raises:
        ConfigError: no dataset is given.
        DataError: no such dataset or split, or one without embeddings of `config.encoder`, or of several encoders where
            none is named.
        EncoderMismatchError: embeddings of another encoder, or of two versions of it.
    """
    _check_given(config)
    config = staged(config)
    for directory in config.data:
        read_split_info(directory, config.split)  # before its embeddings: a mistyped folder has nothing to embed
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
    """The one encoder that the first dataset has embeddings of."""
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
    """An endless iterator of this host's part of the global batches.

    Args:
        sample_rate: of the crops, Hz; T = round(segment_seconds * sample_rate).
        batch_size: B. Host h of H gets rows h·B/H to (h+1)·B/H - 1 of every batch.
        seed: of order, crops and captions.
        labels: whether batches hold `labels`, for a mixer that keeps clips of the same label apart.

    Raises:
        ConfigError: sizes that do not fit.
        DataError: shards or embeddings that are missing, damaged or do not fit together.
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
    config = staged(config)
    encoder = encoder_identity(config)['name']
    keep_freed_memory()
    shards = [Shards(directory, config.split) for directory in config.data]
    weights = [float(w) for w in config.weights or map(len, shards)]
    load = LoadSegment(
        shards,
        [{what: EmbeddingCache(s, encoder, what) for what in config.modalities} for s in shards],
        num_samples=num_samples,
        sample_rate=sample_rate,
        use_text_ratio=config.use_text_ratio,
        other=config.other,
        # One draw for so many positions of the stream; 0: one for each.
        text_block=batch_size if config.ratio_per == 'batch' else 0,
        block_seed=seed,
        labels=labels,
    )
    order_seed, crop_seed = independent_seeds(seed, 2)
    stream = clip_stream([len(s) for s in shards], weights, order_seed).random_map(load, seed=crop_seed)
    told_apart_by = [_STREAM_VERSION, [s.info.content for s in shards], weights, seed, num_samples, sample_rate]
    if config.use_text_ratio < 1:
        told_apart_by += [config.use_text_ratio, config.other, load.text_block]
    return Batches(
        stream,
        shards,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        fingerprint=hashlib.sha256(json.dumps(told_apart_by).encode()).hexdigest()[:16],
        config=config,
    )


class Batches(Iterator[dict[str, np.ndarray]]):
    """Yields `{'waveforms': int16 [B_local, T], 'embeddings': float32 [B_local, E]}` for ever.

    float audio is waveforms / 32768. If they were asked for there are also `labels`, int32 [B_local, L]: a number for
    each of the clip's labels, -1 where it has fewer; see `segments.label_numbers`. A record that cannot be read is
    replaced by the next one that can, and counted in `corrupt_records`. Made by `make_batches`.
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
        self._shards = shards
        self._batch_size = batch_size
        self._process_index = process_index
        self._process_count = process_count
        self._fingerprint = fingerprint
        self._config = config
        self._position = 0
        # Closed at the latest when the interpreter ends: after that, Grain's own clean-up fails, loudly.
        self._open: list[grain.DatasetIterator] = []
        weakref.finalize(self, _close_all, self._open)
        self._corrupt: set[tuple[int, int]] = set()
        self._seen = self._replaced = 0  # rows since the start, and those of them that stand in for a corrupt record

    @property
    def corrupt_records(self) -> int:
        """How many different unreadable records this process has met since it started."""
        return len(self._corrupt)

    def __next__(self) -> dict[str, np.ndarray]:
        """Raises DataError where too many records are unreadable, in a row or as a share."""
        if not self._open:
            self._open.append(iter(self._pipeline()))
        try:
            batch = next(self._open[0])
        except AudioSepError:
            raise
        except Exception as error:
            # A worker process sends its exception as text.
            raise DataError(f'reading {", ".join(self._config.data)} failed: {" ".join(str(error).split())}') from error
        self._position += self._batch_size
        self._count_corrupt(batch.pop('corrupt'))
        return batch

    def _count_corrupt(self, found: np.ndarray) -> None:
        """`found` int [B_local, 2]: (dataset, clip) of each row's corrupt record, or -1."""
        self._seen += len(found)
        for dataset, clip in found[found[:, 1] >= 0].tolist():
            self._replaced += 1
            if (dataset, clip) not in self._corrupt:
                self._corrupt.add((dataset, clip))
                shard, record = self._shards[dataset].locate(clip)
                _log.warning(
                    '%s: record %d cannot be read, its neighbour stands in for it; see `python -m data_prep verify %s`',
                    self._shards[dataset].path(shard),
                    record,
                    self._shards[dataset].directory,
                )
        expected = self._config.max_corrupt_share * self._seen
        # Two of 100 are nothing to stop for where one is allowed; of 10,000, 200 are.
        if self._seen >= _CORRUPT_AFTER and self._replaced > expected + 2 * math.sqrt(expected):
            worst = {self._shards[dataset].directory for dataset, _ in self._corrupt}
            raise DataError(
                f'{self._replaced} of {self._seen} records read are corrupt, more than --max-corrupt-share '
                f'{self._config.max_corrupt_share}: run `python -m data_prep verify` on {", ".join(map(str, worst))}, '
                'build the damaged shards again or allow a larger share'
            )

    def _pipeline(self) -> grain.IterDataset:
        # Batches of B_local from the global stream, of which host h takes h, h+H, h+2H …: contiguous rows of each
        # global batch. (Grain's ElasticIterator takes single rows in turn, and the rows' order would depend on H.)
        # `filter` would break this: short and damaged clips are dealt with in building and loading.
        parts = self._stream[self._position :].batch(self._batch_size // self._process_count, drop_remainder=True)
        mine = parts[self._process_index :: self._process_count]
        # One element is a whole batch here; Grain's default of 500 elements ahead would fill the memory.
        options = grain.ReadOptions(num_threads=self._config.threads, prefetch_buffer_size=self._config.read_ahead)
        dataset = mine.to_iter_dataset(options)
        if self._config.workers:
            # Grain's worker processes read absl flags, which only absl's own programs parse: the defaults are meant.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            # Through a pipe, not through shared memory: faulting in new pages of that, twice, takes longer than the
            # copies (1.0 ms a clip against 0.7, with PCM), and containers have little of it.
            piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, piped)
            options = grain.MultiprocessingOptions(num_workers=self._config.workers)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
        return dataset

    def get_state(self) -> dict[str, Any]:
        """Where the next batch begins, JSON-ready: the same on every host, whatever their number."""
        return {'position': self._position, 'stream': self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues exactly after the batch that `get_state` followed, also with another number of hosts or workers.

        Raises:
            DataError: a state of other data, weights, crops or seed: its position means nothing here.
        """
        if state.get('stream') != self._fingerprint or not isinstance(state.get('position'), int):
            raise DataError(
                f'the saved data position {state} is not of this stream: continue with the same data, weights, '
                'segment length, sample rate, share of text and seed, or begin a new run'
            )
        self.close()
        self._position = state['position']

    def close(self) -> None:
        """Ends threads and worker processes; `next` starts them again."""
        _close_all(self._open)

    def __enter__(self) -> 'Batches':
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _close_all(iterators: list[grain.DatasetIterator]) -> None:
    while iterators:
        iterators.pop().close()


def _begin_worker(worker: int, num_workers: int) -> None:
    end_with_parent()
    keep_freed_memory()


def staged(config: DataConfig) -> DataConfig:
    """The configuration with its datasets copied to `stage_dir`, if one is given; what is there already stays.

    Every host copies all of it: any clip may come up on any host.

    Raises:
        ConfigError: no dataset is given, or a stage_dir that is in a bucket.
        DataError: a dataset that is not there, or cannot be copied.
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
