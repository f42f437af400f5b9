"""Scores: benchmarks of (mixture, caption, target) triples, and what the numbers mean.

Three rows for the same mixtures: *separated* (each asked for its caption), *no separation* (the mixture taken for the
target: SDRi 0) and *shuffled query* (each asked for another class that the set holds): a model that ignores its query
scores the same in the first and the last.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from audiosep_jax import metrics
from audiosep_jax.audio import read_audio
from audiosep_jax.errors import AudioFileError, CheckpointError, DataError
from audiosep_jax.files import replacing

if TYPE_CHECKING:
    from rich.table import Table

    from audiosep_jax.separate import Separator

SEPARATED, NO_SEPARATION, SHUFFLED = 'separated', 'no separation', 'shuffled query'
_RESAMPLES = 2000
_SILENCE = 1e-10  # mean square at which the SDR's floor takes over
_AUDIO_SUFFIXES = ('.wav', '.flac', '.ogg', '.mp3')
# Files held in memory at once; the separator makes its batches of them.
_ITEMS_IN_MEMORY = 32

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One item of a benchmark on disk. `label` is its class: a wrong query is one of another class."""

    name: str
    caption: str
    label: str
    mixture: Path
    target: Path


@dataclasses.dataclass(frozen=True)
class ItemScore:
    """One mixture's scores in dB; those of the shuffled query are None where there is only one class."""

    name: str
    caption: str
    label: str
    sdri: float
    si_sdr: float
    mixture_si_sdr: float
    wrong_caption: str | None
    wrong_sdri: float | None
    wrong_si_sdr: float | None
    silent_target: bool

    def to_dict(self) -> dict:
        """Ready for JSON, the scores under the names that the summary has."""
        values = dataclasses.asdict(self)
        return {key.replace('si_sdr', 'SI-SDR').replace('sdri', 'SDRi'): value for key, value in values.items()}


@dataclasses.dataclass(frozen=True)
class Row:
    """A mean over `n` items in dB, and the ends of its 95 % bootstrap interval."""

    name: str
    n: int
    sdri: float
    sdri_interval: tuple[float, float]
    si_sdr: float
    si_sdr_interval: tuple[float, float]

    def to_dict(self) -> dict:
        """Ready for JSON."""
        return {
            'n': self.n,
            'SDRi': self.sdri,
            'SDRi_interval': list(self.sdri_interval),
            'SI-SDR': self.si_sdr,
            'SI-SDR_interval': list(self.si_sdr_interval),
        }


@dataclasses.dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        rows: the summary, `separated` first.
        items: every scored mixture.
        aggregation: in words, how items become a row.
        left_out: one line for every item that could not be scored.
        info: of the separator: path, step, encoder and configuration of its checkpoint.
    """

    rows: tuple[Row, ...]
    items: tuple[ItemScore, ...]
    aggregation: str
    left_out: tuple[str, ...] = ()
    info: dict = dataclasses.field(default_factory=dict)

    @property
    def sdri(self) -> float:
        """Mean SDR improvement of the separated row, dB."""
        return self.rows[0].sdri

    @property
    def si_sdr(self) -> float:
        """Mean SI-SDR of the separated row, dB."""
        return self.rows[0].si_sdr

    @property
    def silent_targets(self) -> tuple[str, ...]:
        """Items whose target is silence: scored as the original does, but a number there means little."""
        return tuple(item.name for item in self.items if item.silent_target)

    def to_dict(self) -> dict:
        """Ready for JSON: `SDRi`, `SI-SDR`, `rows`, `labels`, `items` and where they come from."""
        labels = {}
        for label in sorted({item.label for item in self.items}):
            own = [item for item in self.items if item.label == label]
            labels[label] = {
                'n': len(own),
                'SDRi': float(np.mean([item.sdri for item in own])),
                'SI-SDR': float(np.mean([item.si_sdr for item in own])),
            }
        return {
            'SDRi': self.sdri,
            'SI-SDR': self.si_sdr,
            'rows': {row.name: row.to_dict() for row in self.rows},
            'labels': labels,
            'items': [item.to_dict() for item in self.items],
            'aggregation': self.aggregation,
            'left_out': list(self.left_out),
            'silent_targets': list(self.silent_targets),
            'checkpoint': {key: self.info.get(key) for key in ('path', 'step', 'encoder')},
            'config': self.info.get('config'),
        }

    def table(self, title: str = '') -> 'Table':
        """The rows for a terminal, a `rich` table."""
        from rich.table import Table

        table = Table(title=title or None, caption=f'dB, mean and 95 % interval; {self.aggregation}')
        table.add_column('')
        for column in ('SDRi', '95 %', 'SI-SDR', '95 %', 'n'):
            table.add_column(column, justify='right')
        for row in self.rows:
            cells = []
            for mean, (low, high) in ((row.sdri, row.sdri_interval), (row.si_sdr, row.si_sdr_interval)):
                cells += [f'{mean:.2f}', f'{low:.2f} … {high:.2f}']
            table.add_row(row.name, *cells, str(row.n))
        return table


def evaluate_music(
    separator: 'Separator',
    data_dir: str | os.PathLike,
    *,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Results:
    """The MUSIC protocol (`evaluation/evaluate_music.py` of the original): the mean per caption, then of those.

    The original divides by its ten instruments; here it is the captions present.

    Raises:
        DataError: see `read_music`, or nothing in the folder could be scored.
    """
    pairs, bad_rows = read_music(data_dir)
    results = evaluate_pairs(separator, pairs, per_label=True, seed=seed, batch_size=batch_size, progress=progress)
    return dataclasses.replace(results, left_out=(*bad_rows, *results.left_out))


def read_music(data_dir: str | os.PathLike) -> tuple[list[Pair], list[str]]:
    """`music_eval.csv` (`idx,caption,src_wav,noise_wav`) beside `segment-IDX` and `mixture-IDX` files.

    Returns:
        The pairs in the file's order, and a line for every row that is not one. Whether the audio files can be read is
        seen when they are; .wav is looked for first, then .flac, .ogg, .mp3.

    Raises:
        DataError: no such table, or no usable row in it.
    """
    folder = Path(data_dir)
    table = folder / 'music_eval.csv'
    try:
        with table.open(newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise DataError(
            f'{table}: {reason}; --data is the folder that holds music_eval.csv and the segment-… and mixture-… files'
        ) from error
    missing = [column for column in ('idx', 'caption') if column not in columns]
    if missing:
        raise DataError(f'{table}: no column {" and ".join(missing)}; the first line is idx,caption,src_wav,noise_wav')
    pairs, bad_rows, seen = [], [], set()
    for line, row in rows:
        index, caption = (row['idx'] or '').strip(), (row['caption'] or '').strip()
        if not index or not caption or None in row:
            bad_rows.append(f'{table} line {line}: not of the form idx,caption,src_wav,noise_wav')
        elif index in seen:
            bad_rows.append(f'{table} line {line}: idx {index} was there before')
        else:
            seen.add(index)
            files = [_first_existing(folder, f'{kind}-{index}') for kind in ('mixture', 'segment')]
            pairs.append(Pair(index, caption, caption, *files))
    if not pairs:
        raise DataError(f'{table}: no usable row{": " + bad_rows[0] if bad_rows else ""}')
    return pairs, bad_rows


def evaluate_pairs(
    separator: 'Separator',
    pairs: Sequence[Pair],
    *,
    per_label: bool,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Results:
    """Scores pairs on disk, read as mono at the model's rate (the original: `librosa.load(sr=32000, mono=True)`).

    Args:
        separator: the model.
        pairs: what to score.
        per_label: average within each label first (rare labels count as much as frequent ones).
        seed: of the bootstrap and of the wrong queries.
        batch_size: mixtures through the network at a time.
        progress: called with (items done, items in all).

    Returns:
        Results; a pair whose files are unreadable or differ in length is in `left_out`.

    Raises:
        DataError: no pair could be scored.
        CheckpointError: the model's output is not finite.
    """
    left_out = []

    def items():
        for index, pair in enumerate(pairs):
            try:
                sounds = [
                    read_audio(path, sample_rate=separator.config.sample_rate, mono=True)[0][0]
                    for path in (pair.mixture, pair.target)
                ]
            except AudioFileError as error:
                left_out.append(str(error))
                continue
            if not all(map(len, sounds)):
                left_out.append(f'{pair.mixture}: less than one sample at {separator.config.sample_rate} Hz')
                continue
            if len(sounds[0]) != len(sounds[1]):
                left_out.append(
                    f'{pair.mixture}: {len(sounds[0])} samples at {separator.config.sample_rate} Hz, '
                    f'but its target {pair.target.name} has {len(sounds[1])}'
                )
                continue
            yield index, *sounds

    named = [(pair.name, pair.caption, pair.label) for pair in pairs]
    results = _evaluate(separator, named, items(), per_label, seed, batch_size, progress, left_out)
    return dataclasses.replace(results, left_out=tuple(left_out))


def evaluate_arrays(
    separator: 'Separator',
    mixtures: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    per_label: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Results:
    """Scores mixtures in memory: float `[n, T]`, or n arrays `[T_i]`, at the model's rate.

    `labels` are the classes where captions are several phrasings of one; the rest is as in `evaluate_pairs`.
    """
    labels = captions if labels is None else labels
    if not len(mixtures) == len(targets) == len(captions) == len(labels):
        raise ValueError('mixtures, targets, captions and labels differ in number')
    named = [(str(i), caption, label) for i, (caption, label) in enumerate(zip(captions, labels, strict=True))]
    sounds = ((i, mixtures[i], targets[i]) for i in range(len(mixtures)))
    return _evaluate(separator, named, sounds, per_label, seed, batch_size, progress, [])


def score_estimates(
    name: str,
    estimates: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    mixtures: Sequence[np.ndarray],
    *,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> Row:
    """A row for estimates that some other method made of the same mixtures: float `[n, T]` or n arrays `[T_i]`.

    `labels` average within each label first; None: the plain mean over items.
    """
    scores = np.array([_score(*arrays) for arrays in zip(targets, estimates, mixtures, strict=True)])
    return _row(name, scores[:, 0], scores[:, 1], labels, seed)


def wrong_queries(labels: Sequence[str], seed: int) -> list[int] | None:
    """For each item the index of an item of another label, whose caption is then a wrong query; None if all are equal.

    Where no label has more than half of the items it is a permutation: every caption is asked for as often as before.
    """
    labels = np.asarray(labels)
    kinds, counts = np.unique(labels, return_counts=True)
    if len(kinds) < 2:
        return None
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(np.flatnonzero(labels == kind)) for kind in rng.permutation(kinds)])
    partner = np.empty(len(labels), int)
    # Sorted by label, a rotation by the largest count takes every item out of its own label.
    partner[order] = np.roll(order, -counts.max())
    # The rotation gives nearly all items of a label the same wrong one, and which one decides the score: exchanges
    # between items at random spread the labels.
    for i, j in rng.integers(len(labels), size=(8 * len(labels), 2)):
        if labels[partner[i]] != labels[j] and labels[partner[j]] != labels[i]:
            partner[i], partner[j] = partner[j], partner[i]
    for i in np.flatnonzero(labels == labels[partner]):
        partner[i] = rng.choice(np.flatnonzero(labels != labels[i]))
    return partner.tolist()


def bootstrap_interval(values: np.ndarray, labels: Sequence[str] | None, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values` [n], resampling items with replacement 2,000 times.

    With labels it is the interval of the mean over labels of their means; a label that a resample misses is left out
    of that resample.
    """
    values = np.asarray(values, np.float64)
    member = _membership(values, labels)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(_RESAMPLES // 100):  # in parts: the counts of 2,000 resamples of a large set fill gigabytes
        counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=100).astype(np.float64)
        sizes = counts @ member
        totals = (counts * values) @ member
        present = sizes > 0
        label_means = np.divide(totals, sizes, out=np.zeros_like(totals), where=present)
        means.append(label_means.sum(axis=1) / present.sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def write_json(path: str | os.PathLike, results: dict) -> None:
    """Writes what `Results.to_dict` gives, whole or not at all. Raises DataError where that is impossible."""
    path = Path(path)
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + '\n', 'utf-8')
    except OSError as error:
        raise DataError(f'{path}: cannot be written: {error.strerror or error}') from error


def _evaluate(
    separator: 'Separator',
    named: list[tuple[str, str, str]],
    sounds: Iterable[tuple[int, np.ndarray, np.ndarray]],
    per_label: bool,
    seed: int,
    batch_size: int,
    progress: Progress | None,
    left_out: list[str],
) -> Results:
    """(name, caption, label) of all items, and (index, mixture [T], target [T]) of those that could be read."""
    if not named:
        raise DataError('nothing to evaluate: the set has no items')
    captions = [caption for _, caption, _ in named]
    distinct = sorted(set(captions))
    embeddings = dict(zip(distinct, separator.embed(distinct), strict=True))
    wrong = wrong_queries([label for _, _, label in named], seed)

    items: list[ItemScore] = []
    for chunk in _chunks(sounds, _ITEMS_IN_MEMORY):
        mixtures = [mixture for _, mixture, _ in chunk]
        asked = [[captions[i] for i, _, _ in chunk]]
        if wrong is not None:
            asked.append([captions[wrong[i]] for i, _, _ in chunk])
        # Right and wrong queries in one call, so that they share batches and compiled shapes.
        outputs = separator.separate_batch(
            mixtures * len(asked),
            np.stack([embeddings[caption] for row in asked for caption in row]),
            batch_size=batch_size,
        )
        for k, (i, mixture, target) in enumerate(chunk):
            name, caption, label = named[i]
            estimates = outputs[k :: len(chunk)]
            if not all(np.isfinite(estimate).all() for estimate in estimates):
                raise CheckpointError(f'the model gives NaN or infinite samples for {name}: its training diverged')
            (sdri, si_sdr), *rest = (_score(target, estimate, mixture) for estimate in estimates)
            wrong_sdri, wrong_si_sdr = rest[0] if rest else (None, None)
            items.append(
                ItemScore(
                    name=name,
                    caption=caption,
                    label=label,
                    sdri=sdri,
                    si_sdr=si_sdr,
                    mixture_si_sdr=_score(target, mixture, mixture)[1],
                    wrong_caption=None if wrong is None else captions[wrong[i]],
                    wrong_sdri=wrong_sdri,
                    wrong_si_sdr=wrong_si_sdr,
                    silent_target=bool(np.mean(np.square(target)) <= _SILENCE),
                )
            )
        if progress is not None:
            progress(len(items) + len(left_out), len(named))
    if not items:
        raise DataError(f'none of the {len(named)} items could be scored; the first: {left_out[0]}')

    labels = [item.label for item in items] if per_label else None
    values = {
        SEPARATED: ([i.sdri for i in items], [i.si_sdr for i in items]),
        NO_SEPARATION: ([0.0] * len(items), [i.mixture_si_sdr for i in items]),
    }
    if wrong is not None:
        values[SHUFFLED] = ([i.wrong_sdri for i in items], [i.wrong_si_sdr for i in items])
    return Results(
        rows=tuple(_row(name, sdri, si_sdr, labels, seed) for name, (sdri, si_sdr) in values.items()),
        items=tuple(items),
        aggregation='mean of the means per caption' if per_label else 'mean over items',
        info=separator.info,
    )


@jax.jit
def _jitted_scores(target, estimate, mixture):
    return metrics.sdri(target, estimate, mixture), metrics.si_sdr(target, estimate)


def _score(target: np.ndarray, estimate: np.ndarray, mixture: np.ndarray) -> tuple[float, float]:
    """SDRi and SI-SDR in dB of one item, three arrays [T]; compiled once per length."""
    sdri, si_sdr = jax.device_get(_jitted_scores(target, estimate, mixture))
    return float(sdri), float(si_sdr)


def _row(name: str, sdri: Sequence[float], si_sdr: Sequence[float], labels: Sequence[str] | None, seed: int) -> Row:
    means, intervals = [], []
    for values in (np.asarray(sdri, np.float64), np.asarray(si_sdr, np.float64)):
        member = _membership(values, labels)
        means.append(float(np.mean(values @ member / member.sum(axis=0))))
        intervals.append(bootstrap_interval(values, labels, seed))
    return Row(name, len(sdri), means[0], intervals[0], means[1], intervals[1])


def _membership(values: np.ndarray, labels: Sequence[str] | None) -> np.ndarray:
    """[n, number of labels], 1 where an item has the label; one column of ones without labels."""
    if labels is None:
        return np.ones((len(values), 1))
    kinds, codes = np.unique(np.asarray(labels), return_inverse=True)
    return np.eye(len(kinds))[codes]


def _first_existing(folder: Path, stem: str) -> Path:
    """The file of that stem; where there is none, the .wav whose absence will be reported."""
    for suffix in _AUDIO_SUFFIXES:
        if (folder / f'{stem}{suffix}').exists():
            return folder / f'{stem}{suffix}'
    return folder / f'{stem}{_AUDIO_SUFFIXES[0]}'


def _chunks(sounds: Iterable, size: int) -> Iterable[list]:
    chunk = []
    for sound in sounds:
        chunk.append(sound)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
