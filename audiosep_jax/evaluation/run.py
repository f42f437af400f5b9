"""The evaluation: items through the separator in batches of about equal lengths, to scores.

The table has these rows for the same items:

    separated             each asked for its text
    separated, TYPE …     the same for further types of query
    no separation         the mixture taken for the target: SDRi 0
    oracle ratio mask     a mask made with the target at hand (`baselines.oracle_ratio_mask`): far above any separator
    shuffled query        each asked for another item's text: who ignores the query scores here as with the right one

With several processes (`jax.distributed`) every process must call these functions alike: each scores every
`process_count`-th item on its own devices, and the scores, not the audio, are exchanged at the end.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from audiosep_jax.audio.resampling import resample
from audiosep_jax.encoders.base import comparable
from audiosep_jax.errors import AudioSepError, CheckpointError, ConfigError, DataError
from audiosep_jax.evaluation.baselines import oracle_ratio_mask
from audiosep_jax.evaluation.benchmark import Benchmark, Item, LeftOut
from audiosep_jax.evaluation.journal import Journal, key_of
from audiosep_jax.evaluation.loading import Sound, UnusableItemError, load_item, seconds_of
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.queries import ask
from audiosep_jax.evaluation.results import (
    NO_SEPARATION,
    ORACLE,
    SEPARATED,
    TARGET,
    ItemScore,
    Results,
    Row,
    make_rows,
)
from audiosep_jax.evaluation.scoring import cosine, padded_batch, sdr_family
from audiosep_jax.evaluation.speech import SpeechScorer
from audiosep_jax.parallel.hosts import gathered

if TYPE_CHECKING:
    from audiosep_jax.encoders.base import QueryEncoder
    from audiosep_jax.separation.separator import Separator

Progress = Callable[[int, int], None]
# What scores depend on besides weights, texts and files: raised when their computation changes.
_VERSION = 1
_READERS = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """How to evaluate; none of it changes what `separated` scores.

    Attributes:
        seed: of the intervals and the wrong queries.
        batch_size: mixtures through the network at a time; None: 8 for each accelerator, 2 on a CPU.
        shuffled: whether to ask each item for a wrong sound as well, at twice the time.
        clap: an encoder of text and audio: adds the cosine of query and output, which needs no target.
    """

    seed: int = 0
    batch_size: int | None = None
    shuffled: bool = True
    clap: 'QueryEncoder | None' = None

    def __post_init__(self):
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
        benchmark: as `read_benchmark` gives it.
        options: see `Options`.
        query_types: of the benchmark's; the first gives the row `separated`. None given: the protocol's own.
        journal: folder of scores that survive this process: those found there are not computed again.
        progress: called with (items done, items in all).

    Raises:
        ConfigError: a type of query that the benchmark does not have; no target and no CLAP; packages are missing.
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
        separator, items, lambda i: load_item(items[i], rate), types, rate, options or Options(), benchmark.speech
    )
    records = evaluation.run(journal, benchmark.name, progress)
    return evaluation.results(benchmark, records)


def validate(
    separator: 'Separator', folder: str | os.PathLike, *, benchmark: str | None = None, most_items: int | None = None
) -> Results:
    """While training: the score on a small held-out set in any benchmark's layout, with its protocol.

    Every process of a run must call it at the same step: each takes its share of the items. The separator may be made
    of the training state's arrays where these are replicated.

    Args:
        separator: the model as it is now.
        folder: of the benchmark.
        benchmark: its name; None: the one whose table is in the folder.
        most_items: score so many, evenly spread over the table.

    Raises:
        ConfigError, DataError, CheckpointError: as `read_benchmark` and `evaluate`, on every process alike.
    """
    held_out = read_benchmark(Path(folder), benchmark, most_items=most_items)
    # Scores of speech take longer than separating it.
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
    """Scores mixtures in memory: float `[n, T]`, or n arrays `[T_i]`, at the model's rate; the mean over items.

    `labels` are the classes where captions are several phrasings of one; the rest is as in `evaluate`.
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
    """A row for estimates that some other method made of the same mixtures: float `[n, T]` or n arrays `[T_i]`."""
    items = []
    for i, (estimate, target, mixture) in enumerate(zip(estimates, targets, mixtures, strict=True)):
        scores = sdr_family([Sound(np.asarray(mixture), np.asarray(target))], {name: [np.asarray(estimate)]})
        items.append(ItemScore(Item(str(i), {}, None, None), False, {}, {name: scores[0][name]}))
    return make_rows(items, [name], 'mean', seed)[0]


class _Evaluation:
    """One run over the items of a benchmark. Records, by item: {'silent': …, 'scores': {row: {metric: …}}} or
    {'left_out': [reason, message]}."""

    def __init__(
        self,
        separator: 'Separator',
        items: Sequence[Item],
        load: Callable[[int], Sound],
        types: Sequence[str],
        rate: int,
        options: Options,
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
        self._options, self._lengths = options, lengths
        self._batch_size = options.batch_size or default_batch_size()
        self._asked = ask(items, types, options.seed if options.shuffled else None)
        own = [name for name in self._asked if name.startswith(SEPARATED)]
        others = [name for name in self._asked if name not in own]
        self._rows = [*own, NO_SEPARATION, ORACLE, *others]  # of the table
        self._scorer = SpeechScorer(rate) if speech else None
        self._hash = separator.fingerprint()

    # ---- running ----

    def run(self, journal: str | os.PathLike | None, name: str, progress: Progress | None) -> dict[int, dict]:
        """The record of every item, on every process."""
        process, count = jax.process_index(), jax.process_count()
        mine = range(process, len(self._items), count)
        failure, records = None, {}
        try:
            with contextlib.ExitStack() as stack:
                if self._scorer is not None:
                    stack.callback(self._scorer.close)
                kept = None if journal is None else stack.enter_context(Journal(journal, process))
                records = self._run_mine(mine, kept, name, progress)
        except (AudioSepError, OSError, MemoryError) as error:
            if count == 1:
                raise
            failure = str(error) or type(error).__name__  # the others wait for this process's scores
        shares = gathered({'failure': failure, 'records': records})
        for share in shares:
            if share['failure']:
                raise DataError(share['failure'])
        return {int(i): record for share in shares for i, record in share['records'].items()}

    def _run_mine(
        self, mine: Sequence[int], journal: Journal | None, name: str, progress: Progress | None
    ) -> dict[int, dict]:
        settings = self._settings(name) if journal is not None else []
        keys = {i: self._key(i, settings) for i in mine} if journal is not None else {}
        records = {i: record for i, key in keys.items() if (record := journal.get(key)) is not None}
        todo = [i for i in mine if i not in records]
        done = len(records)
        if progress is not None:
            progress(done, len(mine))
        if not todo:
            return records
        texts = sorted({text for row in self._asked.values() for i in todo if (text := row[i]) is not None})
        embeddings = dict(zip(texts, self._separator.embed(texts), strict=True))
        meanings = dict(zip(texts, self._options.clap.encode_text(texts), strict=True)) if self._options.clap else {}
        for batch in self._loaded(self._batches(todo)):
            new = {i: record for i, record in batch.items() if isinstance(record, dict)}
            sounds = {i: sound for i, sound in batch.items() if isinstance(sound, Sound)}
            scored = self._score(sounds, embeddings, meanings) if sounds else {}
            if journal is not None:  # not what was left out: the files may be there next time
                journal.append({keys[i]: {'name': self._items[i].name, **record} for i, record in scored.items()})
            records |= new | scored
            done += len(batch)
            if progress is not None:
                progress(done, len(mine))
        return records

    def _settings(self, name: str) -> list:
        """Whatever all scores depend on."""
        separator, clap = self._separator, self._options.clap
        encoders = [comparable(encoder.identity()) if encoder else None for encoder in (separator.encoder, clap)]
        model = dataclasses.asdict(separator.config)
        speech = self._scorer is not None
        return [_VERSION, name, self._hash, model, encoders, self._rate, separator.max_whole_seconds, speech]

    def _key(self, i: int, settings: list) -> str:
        """Of the settings, and of what the scores of this item depend on besides."""
        item = self._items[i]
        files = [_stamp(path) for path in (item.mixture, item.target, item.noise)]
        texts = {row: texts[i] for row, texts in self._asked.items()}
        return key_of(settings, item.name, files, item.snr_db, texts)

    def _batches(self, todo: Sequence[int]) -> list[list[int]]:
        """Items of one compiled shape each, so that batches are full; what is too long for that goes alone."""
        with ThreadPoolExecutor(_READERS) as pool:
            seconds = (
                [self._lengths[i] / self._rate for i in todo]
                if self._lengths is not None
                else list(pool.map(lambda i: seconds_of(self._items[i]), todo))
            )
        frames = self._separator.config.sample_rate / self._separator.config.hop_size / 32
        shapes: dict[int, list[int]] = {}
        batches = []
        for i, length in sorted(zip(todo, seconds, strict=True), key=lambda pair: (pair[1], pair[0])):
            if length > self._separator.max_whole_seconds:
                batches.append([i])
            else:
                shapes.setdefault(int(length * frames), []).append(i)
        size = self._batch_size
        whole = [group[first : first + size] for group in shapes.values() for first in range(0, len(group), size)]
        return whole + batches

    def _loaded(self, batches: Sequence[Sequence[int]]) -> Iterator[dict[int, Sound | dict]]:
        """The sounds of each batch, or the record of why there are none; the next batch is read meanwhile."""
        with ThreadPoolExecutor(_READERS) as pool:
            waiting: list[dict[int, Future]] = []
            for batch in batches:
                waiting.append({i: pool.submit(self._read, i) for i in batch})
                if len(waiting) > 1:
                    yield {i: future.result() for i, future in waiting.pop(0).items()}
            yield from ({i: future.result() for i, future in batch.items()} for batch in waiting)

    def _read(self, i: int) -> Sound | dict:
        if all(texts[i] is None for texts in self._asked.values()):
            return {'left_out': ['bad row', f'{self._items[i].name}: has no text of the type that is asked']}
        try:
            sound = self._load(i)
        except UnusableItemError as error:
            return {'left_out': [error.reason, str(error)]}
        if not len(sound.mixture):
            path = self._items[i].mixture or self._items[i].target
            return {'left_out': ['length', f'{path}: less than one sample at {self._rate} Hz']}
        return sound

    # ---- scoring ----

    def _score(
        self, sounds: Mapping[int, Sound], embeddings: Mapping[str, np.ndarray], meanings: Mapping[str, np.ndarray]
    ) -> dict[int, dict]:
        """Sounds of one batch -> their records."""
        estimates = self._separated(sounds, embeddings)
        for i, sound in sounds.items():
            estimates[i][NO_SEPARATION] = sound.mixture
        with_target = {i: sound for i, sound in sounds.items() if sound.target is not None}
        scores: dict[int, dict[str, dict[str, float]]] = {i: {row: {} for row in self._rows} for i in sounds}
        if with_target:
            for i, estimate in self._masked(with_target).items():
                estimates[i][ORACLE] = estimate
            columns = {row: [estimates[i].get(row) for i in with_target] for row in self._rows}
            family = sdr_family(list(with_target.values()), columns, self._batch_size)
            for i, own in zip(with_target, family, strict=True):
                scores[i] |= own
        if with_target and self._scorer is not None:
            pairs = {i: (sound.target, estimates[i]) for i, sound in with_target.items()}
            for i, row, more in self._scorer.scores(pairs):
                scores[i][row] |= more
        if meanings:
            self._add_similarity(sounds, estimates, meanings, scores)
        return {
            i: {'silent': sound.is_silent, 'scores': {row: own for row, own in scores[i].items() if own}}
            for i, sound in sounds.items()
        }

    def _masked(self, sounds: Mapping[int, Sound]) -> dict[int, np.ndarray]:
        """The oracle's estimates float32 [T], with the model's window and hop in seconds."""
        config, scale = self._separator.config, self._rate / self._separator.config.sample_rate
        window, hop = round(config.window_size * scale), round(config.hop_size * scale)
        mixtures, counts = padded_batch([sound.mixture for sound in sounds.values()], self._batch_size)
        targets, _ = padded_batch([sound.target for sound in sounds.values()], self._batch_size)
        masked = np.asarray(oracle_ratio_mask(mixtures, targets, window, hop))
        return {i: estimate[:count] for i, estimate, count in zip(sounds, masked, counts, strict=False)}

    def _separated(
        self, sounds: Mapping[int, Sound], embeddings: Mapping[str, np.ndarray]
    ) -> dict[int, dict[str, np.ndarray]]:
        """For each item, float32 [T] at the rate of the scores for each row that asks something of it."""
        model_rate = self._separator.config.sample_rate
        mixtures = {i: resample(sound.mixture, self._rate, model_rate) for i, sound in sounds.items()}
        # Right and wrong queries in one call, so that they share batches and compiled shapes.
        calls = [(row, i, texts[i]) for row, texts in self._asked.items() for i in sounds if texts[i] is not None]
        outputs = self._separator.separate_batch(
            [mixtures[i] for _, i, _ in calls],
            np.stack([embeddings[text] for _, _, text in calls]),
            batch_size=self._batch_size,
        )
        estimates: dict[int, dict[str, np.ndarray]] = {i: {} for i in sounds}
        for (row, i, _), output in zip(calls, outputs, strict=True):
            if not np.isfinite(output).all():
                name = self._items[i].name
                raise CheckpointError(f'the model gives NaN or infinite samples for {name}: its training diverged')
            back = resample(output, model_rate, self._rate)[: len(sounds[i].mixture)]
            estimates[i][row] = np.pad(back, (0, len(sounds[i].mixture) - len(back)))
        return estimates

    def _add_similarity(self, sounds, estimates, meanings, scores) -> None:
        """CLAP's cosine between the text that was asked (the right one, for rows that ask nothing) and each output."""
        primary = next(iter(self._asked.values()))
        for i, own in estimates.items():
            if sounds[i].target is not None:
                own = own | {TARGET: sounds[i].target}
            heard = self._options.clap.encode_audio([*own.values()], sample_rate=self._rate)
            for row, embedding in zip(own, heard, strict=True):
                text = self._asked.get(row, primary)[i]
                if text is not None:
                    scores[i].setdefault(row, {})['CLAP'] = cosine(meanings[text], embedding)

    # ---- results ----

    def results(self, benchmark: Benchmark, records: Mapping[int, dict]) -> Results:
        """What the records of all items amount to."""
        scored, left_out = [], list(benchmark.bad)
        for i, item in enumerate(self._items):
            record = records[i]
            if 'left_out' in record:
                left_out.append(LeftOut(item.name, *record['left_out']))
            else:
                texts = {row: texts[i] for row, texts in self._asked.items() if texts[i] is not None}
                scored.append(ItemScore(item, record['silent'], texts, record['scores']))
        if not scored:
            raise DataError(f'none of the {len(self._items)} items could be scored; the first: {left_out[0].message}')
        seed, statistic = self._options.seed, benchmark.statistic
        names = [*self._rows, TARGET]
        sounding = [item for item in scored if not item.silent_target]
        return Results(
            benchmark=benchmark,
            rows=make_rows(scored, names, statistic, seed),
            rows_without_silent=make_rows(sounding, names, statistic, seed) if len(sounding) < len(scored) else (),
            items=tuple(scored),
            left_out=tuple(left_out),
            sample_rate=self._rate,
            seed=seed,
            info={**self._separator.info, 'hash': self._hash},
            notes=(*benchmark.notes, *self._rate_notes(benchmark)),
        )

    def _rate_notes(self, benchmark: Benchmark) -> list[str]:
        model_rate = self._separator.config.sample_rate
        if benchmark.sample_rate not in (None, model_rate):
            return [f'mixed and scored at {self._rate} Hz, separated at the rate of the model, {model_rate} Hz']
        if benchmark.published and benchmark.sample_rate is None and model_rate != 32000 and not benchmark.speech:
            return [f'scored at the rate of the model, {model_rate} Hz; published scores are at 32000 Hz']
        return []


def default_batch_size() -> int:
    """8 for each accelerator of this process; on a CPU, where batches bring no speed, 2 for the memory's sake."""
    return 2 if jax.default_backend() == 'cpu' else 8 * jax.local_device_count()


def _stamp(path: Path | None) -> Any:
    """What changes when a file does."""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return status and [str(path), status.st_size, status.st_mtime_ns]
