"""What an evaluation found: rows of a table, scores of every item, and both as JSON."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax.errors import DataError
from audiosep_jax.evaluation.benchmark import Benchmark, Item, LeftOut, Published, Statistic
from audiosep_jax.evaluation.statistics import aggregate, intervals
from audiosep_jax.storage.atomic import replacing

if TYPE_CHECKING:
    from rich.table import Table

SEPARATED, NO_SEPARATION, ORACLE = 'separated', 'no separation', 'oracle ratio mask'
SHUFFLED, TARGET = 'shuffled query', 'target'
# The order of columns; all in dB but PESQ and what follows it.
METRICS = ('SDR', 'SDRi', 'SI-SDR', 'SI-SDRi', 'PESQ', 'STOI', 'CSIG', 'CBAK', 'COVL', 'SSNR', 'CLAP')
_SPEECH = METRICS[4:10]
_DECIBELS = (*METRICS[:4], 'SSNR')


@dataclasses.dataclass(frozen=True)
class ItemScore:
    """One item's scores: by row of the table, by metric; and the texts that were asked, by row."""

    item: Item
    silent_target: bool
    texts: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]

    def to_dict(self, primary: str) -> dict:
        """Ready for JSON, the scores of the row `primary` at the top."""
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
    """A number and the ends of its 95 % bootstrap interval, over `n` items."""

    value: float
    interval: tuple[float, float]
    n: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: scores by metric."""

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
        """Ready for JSON: each metric and its interval, `n`, and the metrics' own n where some items have none."""
        record: dict = {'n': self.n}
        for metric, score in self.scores.items():
            record |= {metric: score.value, f'{metric}_interval': list(score.interval)}
            record |= {f'{metric}_n': score.n} if score.n != self.n else {}
        return record


@dataclasses.dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        benchmark: what was evaluated.
        rows: the table, `separated` first: aggregated as the original does, over all items that were scored.
        rows_without_silent: the same without the items whose target is silence; empty where there are none.
        items: every scored item.
        left_out: every item that could not be scored.
        sample_rate: Hz at which it was scored.
        seed: of the intervals and the wrong queries.
        info: of the separator: path, step, encoder, configuration and hash of its checkpoint.
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
        """Items whose target is silence: scored as the original does, but a number there means little."""
        return tuple(score.item.name for score in self.items if score.silent_target)

    @property
    def counts(self) -> dict[str, int]:
        """Of the items left out, by reason."""
        reasons = [left.reason for left in self.left_out]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}

    @property
    def aggregation(self) -> str:
        """In words, how items become a row."""
        return describe(self.benchmark.statistic)

    def by_label(self) -> dict[str, dict]:
        """The first row's statistic within each class; empty where there are no classes."""
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
        """Ready for JSON; the fields are told in docs/evaluate.md."""
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
            'left_out': [dataclasses.asdict(left) for left in self.left_out],
            'left_out_counts': self.counts,
            'silent_targets': list(self.silent_targets),
            'notes': list(self.notes),
            'checkpoint': {key: self.info.get(key) for key in ('path', 'step', 'encoder', 'hash')},
            'config': self.info.get('config'),
        }

    def lines(self) -> list[tuple[str, Row | Published]]:
        """(name, row) of the whole table: own rows, those without silent targets, published ones."""
        count = len(self.silent_targets)
        silent = f'{count} silent target{"s" if count > 1 else ""}'
        return [
            *((row.name, row) for row in self.rows),
            *((f'{row.name}, without {silent}', row) for row in self.rows_without_silent),
            *((row.name, row) for row in self.benchmark.published),
        ]

    def metrics(self) -> tuple[str, ...]:
        """The columns that some row has, but for SDR and SI-SDRi where nobody published them."""
        published = {metric for row in self.benchmark.published for metric in row.scores}
        found = {metric for row in self.rows for metric in row.scores} | published
        return tuple(m for m in METRICS if m in found and (m not in ('SDR', 'SI-SDRi') or m in published))

    def table(self, title: str = '') -> list['Table']:
        """For a terminal, `rich` tables: SDR's family, then those for speech if there are any."""
        metrics = self.metrics()
        families = [tuple(m for m in metrics if m not in _SPEECH), tuple(m for m in metrics if m in _SPEECH)]
        # Six measures of speech with intervals would not fit a terminal: those are in the report.
        tables = [self._table(family, title, bool(i == 0)) for i, family in enumerate(families) if family]
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
                # As it is: rich takes [brackets] of a plain string for markup.
                table.add_row(Text(name), *cells, str(row.n) if isinstance(row, Row) else '')
        return table


def in_decibels(metrics: Sequence[str]) -> str:
    """Those of the metrics that are in dB, as a text lists them; '' where none is."""
    found = [metric for metric in metrics if metric in _DECIBELS]
    return ' and '.join(part for part in (', '.join(found[:-1]), *found[-1:]) if part)


def describe(statistic: Statistic) -> str:
    """A statistic in words."""
    return {
        'mean': 'mean over items',
        'mean of class means': 'mean of the means per class',
        'mean of class medians': 'mean of the medians per class',
    }[statistic]


def make_rows(items: Sequence[ItemScore], names: Sequence[str], statistic: Statistic, seed: int) -> tuple[Row, ...]:
    """A row for each of the names under which some item has scores."""
    own = {name: [item for item in items if name in item.scores] for name in names}
    return tuple(_row(name, scored, statistic, seed) for name, scored in own.items() if scored)


def _row(name: str, items: Sequence[ItemScore], statistic: Statistic, seed: int) -> Row:
    scores: dict[str, Score] = {}
    metrics = [m for m in METRICS if any(m in item.scores[name] for item in items)]
    # Metrics that the same items have (nearly always all of them) are resampled together.
    by_items: dict[tuple[int, ...], list[str]] = {}
    for metric in metrics:
        by_items.setdefault(tuple(i for i, item in enumerate(items) if metric in item.scores[name]), []).append(metric)
    for rows, family in by_items.items():
        own = [items[i] for i in rows]
        values = np.array([[item.scores[name][metric] for metric in family] for item in own])
        labels, groups = [item.item.label for item in own], [item.item.group for item in own]
        middle = aggregate(values, labels, statistic)
        ends = intervals(values, labels, groups, statistic, seed)
        for k, metric in enumerate(family):
            scores[metric] = Score(float(middle[k]), (float(ends[0, k]), float(ends[1, k])), len(own))
    return Row(name, len(items), {metric: scores[metric] for metric in metrics})


def write_json(path: str | os.PathLike, results: dict) -> None:
    """Writes JSON-ready results, whole or not at all. Raises DataError where that is impossible."""
    path = Path(path)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False) + '\n'
    try:
        with replacing(path) as temporary:
            # Names of files need not be valid UTF-8.
            temporary.write_text(text, 'utf-8', errors='backslashreplace')
    except OSError as error:
        raise DataError(f'{path}: cannot be written: {error.strerror or error}') from error


def _cells(score: Score | float | None) -> tuple[str, str]:
    if score is None:
        return '', ''
    if isinstance(score, Score):
        return f'{score.value:.3f}', '{:.2f} … {:.2f}'.format(*score.interval)
    return f'{score:.3f}', ''
