"""Holds the results of an evaluation: the rows of the table and the scores of every item, also as JSON."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax.errors import DataError, LeftOut
from audiosep_jax.evaluation.benchmark import Benchmark, Item, Published, Statistic
from audiosep_jax.evaluation.statistics import aggregate, intervals
from audiosep_jax.storage.atomic import replacing

if TYPE_CHECKING:
    from rich.table import Table

SEPARATED, NO_SEPARATION, ORACLE = 'separated', 'no separation', 'oracle ratio mask'
HALF, FIXED_MASK = 'half of the mixture', 'fixed spectral mask'
SHUFFLED, TARGET = 'shuffled query', 'target'
# Where the items name a sound to exclude: the query without it, and what is left of the mixture without it.
EXCLUDED, REMAINDER = f'{SEPARATED}, the other excluded', f'{SEPARATED}, the other removed'
# The order of the columns.
METRICS = ('SDR', 'SDRi', 'SI-SDR', 'SI-SDRi', 'PESQ', 'STOI', 'CSIG', 'CBAK', 'COVL', 'SSNR', 'CLAP')
_SPEECH = METRICS[4:10]
_DECIBELS = (*METRICS[:4], 'SSNR')


@dataclasses.dataclass(frozen=True)
class ItemScore:
    """The scores of one item by row of the table and by metric, and the texts of its queries by row."""

    item: Item
    silent_target: bool
    texts: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]

    def to_dict(self, primary: str) -> dict:
        """Returns a JSON-ready record, with the scores of the row `primary` at the top level."""
        return {
            'name': self.item.name,
            'label': self.item.label,
            'query': self.texts.get(primary),
            'silent_target': self.silent_target,
            **self.scores.get(primary, {}),
            'rows': {
                row: {**({'query': self.texts[row]} if row in self.texts else {}), **scores}
                for row, scores in self.scores.items()
                if row != primary
            },
        }


@dataclasses.dataclass(frozen=True)
class Score:
    """A score over `n` items, and the ends of its 95 % bootstrap interval."""

    value: float
    interval: tuple[float, float]
    n: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table: the scores over `n` items, by metric."""

    name: str
    n: int
    scores: Mapping[str, Score]

    @property
    def sdri(self) -> float:
        """SDR improvement, dB."""
        return self.scores['SDRi'].value

    @property
    def si_sdr(self) -> float:
        """SI-SDR, dB."""
        return self.scores['SI-SDR'].value

    def to_dict(self) -> dict:
        """Returns a JSON-ready record: `n`, each metric with its interval, and `METRIC_n` where it differs from `n`."""
        record: dict = {'n': self.n}
        for metric, score in self.scores.items():
            record |= {metric: score.value, f'{metric}_interval': list(score.interval)}
            record |= {f'{metric}_n': score.n} if score.n != self.n else {}
        return record


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of an evaluation.

    Attributes:
        benchmark: the benchmark that was evaluated.
        rows: the table, `separated` first, aggregated over all scored items as the original does.
        rows_without_silent: the same rows without the items whose target is silent; empty if there are none.
        items: every scored item.
        left_out: every item that could not be scored.
        sample_rate: rate in Hz at which the items were scored.
        seed: seed of the intervals and the wrong queries.
        info: path, step, encoder, configuration and hash of the separator's checkpoint.
        notes: what a reader of the scores should know.
    """

    benchmark: Benchmark
    rows: tuple[Row, ...]
    rows_without_silent: tuple[Row, ...]
    items: tuple[ItemScore, ...]
    left_out: tuple[LeftOut, ...]
    sample_rate: int
    seed: int
    info: dict
    notes: tuple[str, ...] = ()

    @property
    def sdri(self) -> float:
        """SDR improvement of the first row, dB."""
        return self.rows[0].sdri

    @property
    def si_sdr(self) -> float:
        """SI-SDR of the first row, dB."""
        return self.rows[0].si_sdr

    @property
    def silent_targets(self) -> tuple[str, ...]:
        """The names of items whose target is silent. The original scores them too, but such scores mean little."""
        return tuple(score.item.name for score in self.items if score.silent_target)

    @property
    def counts(self) -> dict[str, int]:
        """The number of items left out, by reason."""
        reasons = [left.reason for left in self.left_out]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}

    @property
    def aggregation(self) -> str:
        """How the scores of items become a row, in words."""
        return describe(self.benchmark.statistic)

    def by_label(self) -> dict[str, dict]:
        """Returns the first row's statistic within each class; empty if there are no classes."""
        primary = self.rows[0].name
        values: dict[str, list[Mapping[str, float]]] = {}
        for score in self.items:
            if score.item.label and primary in score.scores:
                values.setdefault(score.item.label, []).append(score.scores[primary])
        middle = np.median if self.benchmark.statistic == 'mean of class medians' else np.mean
        return {
            label: {
                'n': len(scores),
                **{m: float(middle([s[m] for s in scores])) for m in METRICS if all(m in s for s in scores)},
            }
            for label, scores in sorted(values.items())
        }

    def to_dict(self) -> dict:
        """Returns a JSON-ready record; docs/evaluate.md describes its fields."""
        first = self.rows[0]
        return {
            'benchmark': self.benchmark.name,
            **{metric: score.value for metric, score in first.scores.items()},
            'rows': {row.name: row.to_dict() for row in self.rows},
            'rows_without_silent_targets': {row.name: row.to_dict() for row in self.rows_without_silent},
            'published': {row.name: dict(row.scores) for row in self.benchmark.published},
            'labels': self.by_label(),
            'items': [item.to_dict(first.name) for item in self.items],
            'aggregation': self.aggregation,
            'sample_rate': self.sample_rate,
            'seed': self.seed,
            'left_out': [{'name': left.id, 'reason': left.reason, 'message': left.message} for left in self.left_out],
            'left_out_counts': self.counts,
            'silent_targets': list(self.silent_targets),
            'notes': list(self.notes),
            'checkpoint': {key: self.info.get(key) for key in ('path', 'step', 'encoder', 'equalizer', 'hash')},
            'config': self.info.get('config'),
        }

    def lines(self) -> list[tuple[str, Row | Published]]:
        """Returns (name, row) of the whole table: all rows, those without silent targets, and the published ones."""
        count = len(self.silent_targets)
        silent = f'{count} silent target{"s" if count > 1 else ""}'
        return [
            *((row.name, row) for row in self.rows),
            *((f'{row.name}, without {silent}', row) for row in self.rows_without_silent),
            *((row.name, row) for row in self.benchmark.published),
        ]

    def metrics(self) -> tuple[str, ...]:
        """Returns the columns that some row has. SDR and SI-SDRi are shown only next to published ones."""
        published = {metric for row in self.benchmark.published for metric in row.scores}
        found = {metric for row in self.rows for metric in row.scores} | published
        return tuple(m for m in METRICS if m in found and (m not in ('SDR', 'SI-SDRi') or m in published))

    def table(self, title: str = '') -> list['Table']:
        """Returns `rich` tables for a terminal: the SDR family, then the measures of speech if there are any."""
        metrics = self.metrics()
        families = [tuple(m for m in metrics if m not in _SPEECH), tuple(m for m in metrics if m in _SPEECH)]
        # Six measures of speech with their intervals do not fit a terminal; the report has the intervals.
        tables = [self._table(family, title, i == 0) for i, family in enumerate(families) if family]
        unit = in_decibels(metrics)
        tables[-1].caption = f'{self.aggregation}, and 95 % interval' + (f'; {unit} in dB' if unit else '')
        return tables

    def _table(self, metrics: Sequence[str], title: str, with_intervals: bool) -> 'Table':
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None)
        table.add_column('')
        for metric in metrics:
            table.add_column(metric, justify='right')
            if with_intervals:
                table.add_column('95 %', justify='right')
        table.add_column('n', justify='right')
        for name, row in self.lines():
            pairs = [_cells(row.scores.get(metric)) for metric in metrics]
            cells = [cell for pair in pairs for cell in (pair if with_intervals else pair[:1])]
            if any(cells):
                # `Text` is shown verbatim; in a plain string rich takes [brackets] for markup.
                table.add_row(Text(name), *cells, str(row.n) if isinstance(row, Row) else '')
        return table


def in_decibels(metrics: Sequence[str]) -> str:
    """Returns the metrics that are in dB as an enumeration, such as 'SDRi and SSNR'; '' if there are none."""
    found = [metric for metric in metrics if metric in _DECIBELS]
    return ' and '.join(part for part in (', '.join(found[:-1]), *found[-1:]) if part)


def describe(statistic: Statistic) -> str:
    """Returns a statistic in words."""
    return {
        'mean': 'mean over items',
        'mean of class means': 'mean of the means per class',
        'mean of class medians': 'mean of the medians per class',
    }[statistic]


def make_rows(items: Sequence[ItemScore], names: Sequence[str], statistic: Statistic, seed: int) -> tuple[Row, ...]:
    """Returns a row for each of the names under which some item has scores."""
    by_name = {name: [item for item in items if name in item.scores] for name in names}
    return tuple(_make_row(name, scored, statistic, seed) for name, scored in by_name.items() if scored)


def _make_row(name: str, items: Sequence[ItemScore], statistic: Statistic, seed: int) -> Row:
    scores: dict[str, Score] = {}
    metrics = [m for m in METRICS if any(m in item.scores[name] for item in items)]
    # Metrics that the same items have (nearly always all metrics) are resampled together.
    by_items: dict[tuple[int, ...], list[str]] = {}
    for metric in metrics:
        by_items.setdefault(tuple(i for i, item in enumerate(items) if metric in item.scores[name]), []).append(metric)
    for indices, family in by_items.items():
        chosen = [items[i] for i in indices]
        values = np.array([[item.scores[name][metric] for metric in family] for item in chosen])
        labels, groups = [item.item.label for item in chosen], [item.item.group for item in chosen]
        middle = aggregate(values, labels, statistic)
        ends = intervals(values, labels, groups, statistic, seed)
        for k, metric in enumerate(family):
            scores[metric] = Score(float(middle[k]), (float(ends[0, k]), float(ends[1, k])), len(chosen))
    return Row(name, len(items), {metric: scores[metric] for metric in metrics})


def write_json(path: str | os.PathLike, results: dict) -> None:
    """Writes JSON-ready results to a file, which is replaced as a whole.

    Raises:
        DataError: the file cannot be written.
    """
    write_text(path, json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + '\n')


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, which is replaced as a whole.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            # File names in the text may not be valid UTF-8.
            temporary.write_text(text, 'utf-8', errors='backslashreplace')
    except OSError as error:
        raise DataError(f'{path}: cannot be written: {error.strerror or error}') from error


def _cells(score: Score | float | None) -> tuple[str, str]:
    """Returns the text of a score and of its interval."""
    if score is None:
        return '', ''
    if isinstance(score, Score):
        return f'{score.value:.3f}', '{:.2f} … {:.2f}'.format(*score.interval)
    return f'{score:.3f}', ''
