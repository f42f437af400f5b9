"""Evaluates a separator: loads the items, separates them in batches of about equal lengths, and scores them.

The table has these rows, all of the same items:

    separated             each mixture queried with the item's own text
    separated, TYPE …     the same for further query types
    …, the other excluded the first row's query without the item's unwanted sound, if it names one
    …, the other removed  the mixture without what the query for the unwanted sound gives
    no separation         the mixture as the estimate: its SDRi is 0
    half of the mixture   its SDRi is 3 dB where both sounds are equally loud, and its SI-SDR that of the mixture
    fixed spectral mask   an equalizer per class, fitted on the training set (`training_mask.py`), if that is given
    oracle ratio mask     a mask computed from the target (`baselines.oracle_ratio_mask`), which no separator comes near
    shuffled query        each mixture queried with another item's text; a model that ignores the query scores the same
                          as with the right one

With several processes (`jax.distributed`), every process must call these functions with the same arguments. Each scores
every `process_count`-th item on its own devices. At the end the processes exchange the scores, not the audio.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import jax
import numpy as np

from audiosep_jax.encoders.base import AudioTextEncoder, comparable
from audiosep_jax.errors import AudioSepError, ConfigError, DataError, LeftOut, LeftOutError
from audiosep_jax.evaluation.benchmark import Benchmark, Item
from audiosep_jax.evaluation.journal import Journal, key_of
from audiosep_jax.evaluation.loading import Sound, item_seconds, load_item
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.query_texts import query_texts
from audiosep_jax.evaluation.results import EXCLUDED, TARGET, ItemScore, Results, Row, make_rows
from audiosep_jax.evaluation.scoring import BatchScorer, embed_exclusions, sdr_family, stft_sizes
from audiosep_jax.evaluation.statistics import interval_notes
from audiosep_jax.evaluation.training_mask import TrainingMask, fit_training_mask
from audiosep_jax.parallel.hosts import gathered
from audiosep_jax.storage.json_files import check_shape

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator

Progress = Callable[[int, int], None]
# The result for an item: {'silent': …, 'scores': {row: {metric: …}}}, or {'left_out': [reason, message]}.
Record = dict[str, Any]


class _Kept(TypedDict):
    """A record of a scored item in the journal."""

    silent: bool
    scores: dict[str, dict[str, float]]


# Part of every journal key. Raise it when the computation of scores changes.
_VERSION = 2
_READERS = 4  # threads


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate. No option changes the scores of the row `separated`.

    Attributes:
        seed: seed of the intervals and the wrong queries.
        batch_size: mixtures through the network at a time; None: 8 for each accelerator, 2 on a CPU.
        shuffled: whether to query each mixture for a wrong sound as well, which doubles the time.
        clap: adds the cosine similarity of text and output in this encoder's space, which needs no target.
        train_data: folders of datasets for training, which add the row of the fixed spectral mask.
    """

    seed: int = 0
    batch_size: int | None = None
    shuffled: bool = True
    clap: AudioTextEncoder | None = None
    train_data: tuple[str | os.PathLike, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f'batch size {self.batch_size}: must be at least 1')
        if self.seed < 0:
            raise ConfigError(f'seed {self.seed}: must not be negative')


def evaluate(
    separator: 'Separator',
    benchmark: Benchmark,
    options: Options | None = None,
    *,
    query_types: Sequence[str] = (),
    journal: str | os.PathLike | None = None,
    progress: Progress | None = None,
) -> Results:
    """Scores a benchmark on disk as the original's evaluator does.

    Args:
        separator: the model.
        benchmark: the benchmark, from `read_benchmark`.
        options: see `Options`.
        query_types: the query types to score; the first gives the row `separated`. By default the protocol's own.
        journal: a folder in which to keep the scores of items; those found there are not computed again.
        progress: called with (items done, items in all).

    Raises:
        ConfigError: the benchmark does not have a query type; there is neither a target nor CLAP; or the packages for
            scores of speech are missing.
        DataError: no item could be scored, or the journal cannot be written.
        CheckpointError: the model's output is not finite.
    """
    types = tuple(query_types) or benchmark.query_types[:1]
    unknown = [kind for kind in types if kind not in benchmark.query_types]
    if unknown:
        raise ConfigError(f'{benchmark.name} has no {unknown[0]} queries, but {", ".join(benchmark.query_types)}')
    rate = benchmark.sample_rate or separator.config.sample_rate
    items = benchmark.items
    evaluation = _Evaluation(
        separator,
        items,
        lambda i: load_item(items[i], rate),
        types,
        rate,
        options or Options(),
        speech=benchmark.speech,
    )
    records = evaluation.run(journal, benchmark.name, progress)
    return evaluation.results(benchmark, records)


def validate(
    separator: 'Separator', folder: str | os.PathLike, *, benchmark: str | None = None, most_items: int | None = None
) -> Results:
    """Scores a small held-out set during training, in the layout of any benchmark and with its protocol.

    Every process of a run must call it at the same step, because each scores its share of the items. The separator may
    hold the arrays of the training state if these are replicated.

    Args:
        separator: the model in its current state.
        folder: folder of the benchmark.
        benchmark: name of the benchmark; None: the one whose table is in the folder.
        most_items: score at most this number of items, evenly spread over the table.

    Raises:
        ConfigError: see `read_benchmark` and `evaluate`. Every process raises the same error.
        DataError: see `read_benchmark` and `evaluate`.
        CheckpointError: see `evaluate`.
    """
    held_out = read_benchmark(Path(folder), benchmark, most_items=most_items)
    # The measures of speech take longer than the separation.
    return evaluate(separator, dataclasses.replace(held_out, speech=False), Options(shuffled=False))


def evaluate_arrays(
    separator: 'Separator',
    mixtures: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Results:
    """Scores mixtures in memory, all at the model's rate. A row is the mean over the mixtures.

    Args:
        separator: the model.
        mixtures: float `[n, T]`, or n arrays `[T_i]`.
        targets: float `[n, T]`, or n arrays `[T_i]`.
        captions: the query of each mixture.
        labels: the class of each mixture, if several captions describe the same class.
        options: see `Options`.
        progress: called with (items done, items in all).

    Raises:
        ValueError: the arguments differ in number.
        DataError: there are no mixtures.
        CheckpointError: the model's output is not finite.
    """
    labels = captions if labels is None else labels
    if not len(mixtures) == len(targets) == len(captions) == len(labels):
        raise ValueError('mixtures, targets, captions and labels differ in number')
    items = tuple(
        Item(str(i), {'caption': caption}, None, None, label)
        for i, (caption, label) in enumerate(zip(captions, labels, strict=True))
    )
    sounds = [Sound(*map(np.asarray, pair)) for pair in zip(mixtures, targets, strict=True)]
    evaluation = _Evaluation(
        separator,
        items,
        lambda i: sounds[i],
        ('caption',),
        separator.config.sample_rate,
        options or Options(),
        speech=False,
        lengths=[len(sound.mixture) for sound in sounds],
    )
    records = evaluation.run(None, 'arrays', progress)
    return evaluation.results(Benchmark('arrays', 'mixtures in memory', items), records)


def score_estimates(
    name: str,
    estimates: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    mixtures: Sequence[np.ndarray],
    *,
    seed: int = 0,
) -> Row:
    """Returns a row of the table for the estimates of another method.

    Args:
        name: name of the row.
        estimates: float `[n, T]`, or n arrays `[T_i]`.
        targets: like the estimates.
        mixtures: like the estimates.
        seed: seed of the intervals.
    """
    items = []
    for i, (estimate, target, mixture) in enumerate(zip(estimates, targets, mixtures, strict=True)):
        scores = sdr_family([np.asarray(target)], [np.asarray(mixture)], {name: [np.asarray(estimate)]})
        items.append(ItemScore(Item(str(i), {}, None, None), False, {}, {name: scores[0][name]}))
    return make_rows(items, [name], 'mean', seed)[0]


class _Evaluation:
    """One run over the items of a benchmark.

    Args:
        separator: the model.
        items: the items to score.
        load: returns the waveforms of an item, by its index.
        types: the query types, the protocol's own first.
        rate: rate of the scores, in Hz.
        options: see `Options`.
        speech: whether to score PESQ and the other measures of speech.
        lengths: the items' lengths in samples; None: they are read from the files' headers.
    """

    def __init__(
        self,
        separator: 'Separator',
        items: Sequence[Item],
        load: Callable[[int], Sound],
        types: Sequence[str],
        rate: int,
        options: Options,
        *,
        speech: bool,
        lengths: Sequence[int] | None = None,
    ):
        if not items:
            raise DataError('nothing to evaluate: the set has no items')
        if options.clap is None and all(item.target is None for item in items) and lengths is None:
            raise ConfigError(
                'no item has a target to score against: name CLAP weights (--clap PATH) for scores that need none'
            )
        self._separator, self._items, self._load, self._rate = separator, items, load, rate
        self._options, self._speech, self._lengths = options, speech, lengths
        self._batch_size = options.batch_size or default_batch_size()
        self._texts = query_texts(items, types, options.seed if options.shuffled else None)
        self._mask = self._fit_mask()
        self._classes = [self._mask.class_of(item) for item in items] if self._mask else []
        self._scorer = BatchScorer(
            separator,
            [item.name for item in items],
            self._texts,
            sample_rate=rate,
            batch_size=self._batch_size,
            clap=options.clap,
            speech=speech,
            mask=self._mask,
            classes=self._classes,
        )
        self._hash = separator.fingerprint()
        self._num_damaged = 0  # lines of the journal

    def _fit_mask(self) -> TrainingMask | None:
        folders = self._options.train_data
        if not folders:
            return None
        window, hop = stft_sizes(self._separator, self._rate)
        mask = fit_training_mask(folders, sample_rate=self._rate, window_size=window, hop_size=hop)
        if not any(mask.class_of(item) for item in self._items):
            item = self._items[0]
            text = item.label or next(iter(item.queries.values()), '')
            raise DataError(
                f'no label or text of the items is a label or caption of the {mask.about}; the first is {text!r}: give '
                'the set that the model was trained on, or leave the fixed spectral mask out'
            )
        return mask

    # ---- running ----

    def run(self, journal_folder: str | os.PathLike | None, name: str, progress: Progress | None) -> dict[int, Record]:
        """Returns the record of every item, on every process."""
        process, count = jax.process_index(), jax.process_count()
        share = range(process, len(self._items), count)
        failure: str | None = None
        records: dict[int, Record] = {}
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(self._scorer)
                journal = None if journal_folder is None else stack.enter_context(Journal(journal_folder, process))
                records = self._run_share(share, journal, name, progress)
        except (AudioSepError, OSError, MemoryError) as error:
            if count == 1:
                raise
            failure = str(error) or type(error).__name__  # raised below: the others wait for this process's scores
        shares = gathered({'failure': failure, 'records': records})
        for other in shares:
            if other['failure']:
                raise DataError(other['failure'])
        return {int(i): record for other in shares for i, record in other['records'].items()}

    def _run_share(
        self, share: Sequence[int], journal: Journal | None, name: str, progress: Progress | None
    ) -> dict[int, Record]:
        """Returns the records of this process's share of the items, from the journal or newly scored."""
        keys: dict[int, str] = {}
        records: dict[int, Record] = {}
        if journal is not None:
            settings = self._settings(name)
            keys = {i: self._key(i, settings) for i in share}
            records = {i: record for i, key in keys.items() if (record := _kept(journal.get(key))) is not None}
            self._num_damaged = journal.num_damaged
        todo = [i for i in share if i not in records]
        done = len(records)
        if progress is not None:
            progress(done, len(share))
        if not todo:
            return records
        clap = self._options.clap
        texts = sorted({text for row in self._texts.values() for i in todo if (text := row[i]) is not None})
        embeddings = dict(zip(texts, self._separator.embed(texts), strict=True))
        excluding = {i: text for i in todo if (text := self._texts[EXCLUDED][i])} if EXCLUDED in self._texts else {}
        exclusions = embed_exclusions(self._separator, excluding, self._items, embeddings)
        clap_texts = {} if clap is None else dict(zip(texts, clap.encode_text(texts), strict=True))
        for batch in self._load_batches(self._make_batches(todo)):
            left_out = {i: loaded for i, loaded in batch.items() if not isinstance(loaded, Sound)}
            sounds = {i: loaded for i, loaded in batch.items() if isinstance(loaded, Sound)}
            scores = self._scorer.score(sounds, embeddings, clap_texts, exclusions) if sounds else {}
            scored = {i: {'silent': sounds[i].is_silent, 'scores': scores[i]} for i in sounds}
            if journal is not None:  # not the items left out: their files may be repaired before the next run
                journal.append({keys[i]: {'name': self._items[i].name, **record} for i, record in scored.items()})
            records |= left_out | scored
            done += len(batch)
            if progress is not None:
                progress(done, len(share))
        return records

    def _settings(self, name: str) -> list[Any]:
        """Returns everything that the scores of all items depend on."""
        separator, clap = self._separator, self._options.clap
        encoders = [comparable(encoder.identity()) if encoder else None for encoder in (separator.encoder, clap)]
        model = dataclasses.asdict(separator.config)
        mask = [self._mask.digest()] if self._mask else []
        return [
            *(_VERSION, name, self._hash, model, encoders, self._rate, separator.max_whole_seconds, self._speech),
            *mask,
        ]

    def _key(self, i: int, settings: list[Any]) -> str:
        """Returns the journal key of an item, which depends on the settings, the item's files and its texts."""
        item = self._items[i]
        files = [_file_stamp(path) for path in (item.mixture, item.target, item.noise)]
        texts = {row: texts[i] for row, texts in self._texts.items()}
        return key_of(settings, item.name, files, item.snr_db, texts)

    def _make_batches(self, todo: Sequence[int]) -> list[list[int]]:
        """Groups items by compiled shape, so that batches are full. Items too long for one shape are alone."""
        with ThreadPoolExecutor(_READERS) as pool:
            seconds = (
                [self._lengths[i] / self._rate for i in todo]
                if self._lengths is not None
                else list(pool.map(lambda i: item_seconds(self._items[i]), todo))
            )
        frames_per_second = self._separator.config.sample_rate / self._separator.config.hop_size / 32
        shapes: dict[int, list[int]] = {}
        long_items = []
        for i, length in sorted(zip(todo, seconds, strict=True), key=lambda pair: (pair[1], pair[0])):
            if length > self._separator.max_whole_seconds:
                long_items.append([i])
            else:
                shapes.setdefault(int(length * frames_per_second), []).append(i)
        size = self._batch_size
        batches = [group[first : first + size] for group in shapes.values() for first in range(0, len(group), size)]
        return batches + long_items

    def _load_batches(self, batches: Sequence[Sequence[int]]) -> Iterator[dict[int, Sound | Record]]:
        """Yields the waveforms of each batch, or the records of items that are left out; reads one batch ahead."""
        with ThreadPoolExecutor(_READERS) as pool:
            waiting: list[dict[int, Future[Sound | Record]]] = []
            for batch in batches:
                waiting.append({i: pool.submit(self._load_item, i) for i in batch})
                if len(waiting) > 1:
                    yield {i: future.result() for i, future in waiting.pop(0).items()}
            yield from ({i: future.result() for i, future in batch.items()} for batch in waiting)

    def _load_item(self, i: int) -> Sound | Record:
        if all(texts[i] is None for texts in self._texts.values()):
            return {'left_out': ['bad row', f'{self._items[i].name}: has no text of the query type']}
        try:
            sound = self._load(i)
        except LeftOutError as error:
            return {'left_out': [error.reason, str(error)]}
        if not len(sound.mixture):
            path = self._items[i].mixture or self._items[i].target
            return {'left_out': ['length', f'{path}: less than one sample at {self._rate} Hz']}
        return sound

    # ---- results ----

    def results(self, benchmark: Benchmark, records: Mapping[int, Record]) -> Results:
        """Returns the results of a benchmark from the records of all its items."""
        scored: list[ItemScore] = []
        left_out = list(benchmark.bad_rows)
        for i, item in enumerate(self._items):
            record = records[i]
            if 'left_out' in record:
                left_out.append(LeftOut(item.name, *record['left_out']))
            else:
                texts = {row: text for row, texts in self._texts.items() if (text := texts[i]) is not None}
                scored.append(ItemScore(item, record['silent'], texts, record['scores']))
        if not scored:
            raise DataError(f'none of the {len(self._items)} items could be scored; the first: {left_out[0].message}')
        seed, statistic = self._options.seed, benchmark.statistic
        names = [*self._scorer.rows, TARGET]
        audible = [item for item in scored if not item.silent_target]
        return Results(
            benchmark=benchmark,
            rows=make_rows(scored, names, statistic, seed),
            rows_without_silent=make_rows(audible, names, statistic, seed) if len(audible) < len(scored) else (),
            items=tuple(scored),
            left_out=tuple(left_out),
            sample_rate=self._rate,
            seed=seed,
            info={**self._separator.info, 'hash': self._hash},
            notes=(
                *benchmark.notes,
                *self._rate_notes(benchmark),
                *interval_notes([item.item.label for item in scored], statistic),
                *self._mask_notes(),
                *self._damage_notes(),
            ),
        )

    def _rate_notes(self, benchmark: Benchmark) -> list[str]:
        """Returns notes on sample rates at which scores are not comparable with others, or not the model's own."""
        model_rate = self._separator.config.sample_rate
        if benchmark.sample_rate not in (None, model_rate):
            return [f"mixed and scored at {self._rate} Hz, separated at the model's rate of {model_rate} Hz"]
        if benchmark.published and benchmark.sample_rate is None and model_rate != 32000 and not benchmark.speech:
            return [f"scored at the model's rate of {model_rate} Hz; published scores are at 32000 Hz"]
        return []

    def _mask_notes(self) -> list[str]:
        if self._mask is None:
            return []
        unknown = self._classes.count(None)
        rest = f'; {unknown} of {len(self._items)} items have no class there, and get half of the mixture'
        return [f'fixed spectral mask: fitted on {self._mask.about}{rest if unknown else ""}']

    def _damage_notes(self) -> list[str]:
        if not self._num_damaged:
            return []
        return [f'kept scores that do not match their checksums were computed again: {self._num_damaged}']


def _kept(record: Record | None) -> Record | None:
    """Returns a record of the journal; None if there is none, or it is not one that this program writes."""
    if record is None or not record.keys() <= {'name', 'silent', 'scores'}:
        return None
    try:
        check_shape(record, _Kept, '', error=DataError)
    except DataError:
        return None
    return record


def default_batch_size() -> int:
    """Returns 8 for each accelerator of this process, or 2 on a CPU, where larger batches only need more memory."""
    return 2 if jax.default_backend() == 'cpu' else 8 * jax.local_device_count()


def _file_stamp(path: Path | None) -> list[Any] | None:
    """Returns the path, size and time of a file, of which one changes when the file does."""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return status and [str(path), status.st_size, status.st_mtime_ns]
