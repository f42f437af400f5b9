"""Writes the report of an evaluation: results.json, report.md and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiosep_jax.audio.resampling import resample
from audiosep_jax.errors import DataError, LeftOut
from audiosep_jax.evaluation.loading import load_item
from audiosep_jax.evaluation.results import (
    NO_SEPARATION,
    ItemScore,
    Results,
    Row,
    in_decibels,
    write_json,
    write_text,
)
from audiosep_jax.plots import bar_chart, scatter, spectrogram_panels

if TYPE_CHECKING:
    from rich.table import Table

    from audiosep_jax.separation.separator import Separator

_MAX_NAMED = 50  # items that are listed by name; results.json lists all of them
_HEADER = ('benchmark', 'SDRi', 'SI-SDR', 'published SDRi', 'published SI-SDR', 'items', 'left out')
# Examples are the items at these quantiles of SDRi.
_EXAMPLES = {'good': 0.9, 'usual': 0.5, 'bad': 0.1}


def write_report(results: Results, folder: Path, separator: 'Separator', *, pictures: bool = True) -> Path:
    """Writes `results.json`, `report.md` and the pictures in the report.

    Args:
        results: the results of one benchmark.
        folder: an existing folder.
        separator: the model, which separates the examples again.
        pictures: whether to draw pictures.

    Returns:
        The path of the report.

    Raises:
        DataError: a file cannot be written.
    """
    write_json(folder / 'results.json', results.to_dict())
    drawn = _draw_pictures(results, folder, separator) if pictures else []
    path = folder / 'report.md'
    write_text(path, _markdown(results, drawn))
    return path


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table, with its first column aligned left and the others right."""
    lines: list[Sequence[str]] = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join('| ' + ' | '.join(_cell(cell) for cell in line) + ' |' for line in lines)


def _markdown(results: Results, pictures: Sequence[tuple[str, str]]) -> str:
    """Returns the report of one benchmark; `pictures` are (title, file name)."""
    info, counts = results.info, results.counts
    metrics = results.metrics()
    rows = []
    for name, row in results.lines():
        cells = [row.scores.get(metric) for metric in metrics]
        text = [
            '' if c is None else f'{c:.3f}' if isinstance(c, float) else f'{c.value:.3f} ({_interval(c.interval)})'
            for c in cells
        ]
        rows.append([name, *text, str(row.n) if isinstance(row, Row) else ''])
    parts = [
        f'# {results.benchmark.title}',
        f'Checkpoint `{info.get("path")}`, step {info.get("step")}, weights `{str(info.get("hash"))[:16]}`, query '
        f'encoder {(info.get("encoder") or {}).get("name", "none")}. Scored at {results.sample_rate} Hz.',
        markdown_table(['', *metrics, 'items'], rows),
        f'Every number is the {results.aggregation}, with its 95 % bootstrap interval in brackets.{_unit(metrics)} *No '
        'separation*: the mixture itself. *Half of the mixture*: SDRi gives it 3 dB where both sounds are equally '
        'loud, SI-SDR sees no difference. *Fixed spectral mask*: an equalizer per class, fitted on the training set. '
        '*Oracle ratio mask*: a mask computed from the target, which no separator comes near. *Shuffled query*: each '
        'mixture queried for a wrong sound.',
    ]
    if results.notes:
        parts.append('\n'.join(f'- {note}' for note in results.notes))
    if results.silent_targets:
        parts += ['## Silent targets', _silent_targets(results)]
    if results.left_out:
        kinds = ', '.join(f'{reason} {count}' for reason, count in counts.items())
        lines = [f'- `{left.id}` ({left.reason}): {left.message}' for left in results.left_out[:_MAX_NAMED]]
        count = len(results.left_out)
        number = f'{count} item{"s" if count > 1 else ""}: {kinds}.'
        parts += ['## Left out', number, '\n'.join(lines), _more(results.left_out)]
    parts += [f'## {title}\n\n![{title}]({name})' for title, name in pictures]
    labels = results.by_label()
    if len(labels) > 1:
        columns = [m for m in metrics if any(m in scores for scores in labels.values())]
        by_class = [
            [label, *(f'{s[m]:.2f}' if m in s else '' for m in columns), str(s['n'])] for label, s in labels.items()
        ]
        parts += ['## By class', markdown_table(['class', *columns, 'items'], by_class)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _unit(metrics: Sequence[str]) -> str:
    names = in_decibels(metrics)
    return f' {names} {"are" if " and " in names else "is"} in dB.' if names else ''


def _silent_targets(results: Results) -> str:
    names = results.silent_targets
    return (
        f'{len(names)} of {len(results.items)} targets are silent. The table includes them, as the original does, and '
        'also has rows without them: '
        + ', '.join(f'`{name}`' for name in names[:_MAX_NAMED])
        + (f' and {len(names) - _MAX_NAMED} more.' if len(names) > _MAX_NAMED else '.')
    )


def _more(left_out: Sequence[LeftOut]) -> str:
    return f'… and {len(left_out) - _MAX_NAMED} more, in results.json.' if len(left_out) > _MAX_NAMED else ''


def _interval(interval: tuple[float, float]) -> str:
    return f'{interval[0]:.2f} … {interval[1]:.2f}'


def _cell(text: str) -> str:
    return text.replace('|', '\\|').replace('\n', ' ')


# ---- pictures --------------------------------------------------------------------------------------------------------


def _draw_pictures(results: Results, folder: Path, separator: 'Separator') -> list[tuple[str, str]]:
    """Draws the pictures that the results allow, and returns (title, file name) of each."""
    primary = results.rows[0].name
    scored = [item for item in results.items if 'SDRi' in item.scores.get(primary, {})]
    if not scored:
        return []
    drawn = []
    title = results.benchmark.title
    labels = {label: scores['SDRi'] for label, scores in results.by_label().items() if 'SDRi' in scores}
    if len(labels) > 1:
        unit = 'median SDRi, dB' if results.benchmark.statistic == 'mean of class medians' else 'mean SDRi, dB'
        bar_chart(folder / 'classes.png', labels, unit, f'{title}: by class')
        drawn.append(('SDRi by class', 'classes.png'))
    before = [item.scores[NO_SEPARATION]['SDR'] for item in scored]
    after = [item.scores[primary]['SDRi'] for item in scored]
    axes = ('SDR of the mixture, dB', 'SDR improvement, dB')
    scatter(folder / 'input_sdr.png', before, after, axes, f'{title}: {len(scored)} mixtures')
    drawn.append(('SDRi against the SDR of the mixture', 'input_sdr.png'))
    for name, item in _examples(scored, primary).items():
        file = f'example_{name}.png'
        scores = item.scores[primary]
        decibels = f'SDRi {scores["SDRi"]:.1f} dB, SI-SDR {scores["SI-SDR"]:.1f} dB'
        text = f'query: {item.texts[primary]}   ({item.item.name}, {decibels})'
        try:
            panels = example_sounds(item, primary, results.sample_rate, separator)
        except DataError:  # the file has been removed since; the scores remain valid
            continue
        spectrogram_panels(folder / file, panels, results.sample_rate, text)
        drawn.append((f'Example: a {name} answer', file))
    return drawn


def _examples(scored: Sequence[ItemScore], primary: str) -> dict[str, ItemScore]:
    """Returns a good, a usual and a bad example of the items on disk whose target is not silent."""
    usable = [item for item in scored if not item.silent_target and item.item.target is not None]
    usable.sort(key=lambda item: item.scores[primary]['SDRi'])
    return {name: usable[int(share * (len(usable) - 1))] for name, share in _EXAMPLES.items()} if usable else {}


def example_sounds(item: ItemScore, row: str, rate: int, separator: 'Separator') -> dict[str, np.ndarray]:
    """Returns the mixture, the target and the separated sound of an item, float [T] each, at `rate` Hz.

    Args:
        item: an item with a target.
        row: the row of the table whose query is used.
        rate: in Hz.
        separator: the model.

    Raises:
        DataError: a file cannot be read any more.
    """
    sound, model_rate = load_item(item.item, rate), separator.config.sample_rate
    assert sound.target is not None, 'examples have a target'
    mixture = resample(sound.mixture, rate, model_rate)
    separated = separator.separate_batch([mixture], separator.embed([item.texts[row]]), batch_size=1)[0]
    return {'mixture': sound.mixture, 'target': sound.target, 'separated': resample(separated, model_rate, rate)}


# ---- several benchmarks ----------------------------------------------------------------------------------------------


def summary_table(all_results: Sequence[Results]) -> 'Table':
    """Returns a `rich` table of several benchmarks for a terminal."""
    from rich.table import Table

    table = Table(title='separated, dB')
    for i, column in enumerate(_HEADER):
        table.add_column(column, justify='right' if i else 'left')
    for line in _summary_rows(all_results):
        table.add_row(*line)
    return table


def summary_markdown(all_results: Sequence[Results]) -> str:
    """Returns the report of several benchmarks (`OUT/report.md`), with links to their own reports."""
    names = [f'[{results.benchmark.title}]({results.benchmark.name}/report.md)' for results in all_results]
    lines = [[name, *line[1:]] for name, line in zip(names, _summary_rows(all_results), strict=True)]
    return f'# Benchmarks\n\nIn dB, aggregated as the original does.\n\n{markdown_table(_HEADER, lines)}\n'


def _summary_rows(all_results: Sequence[Results]) -> list[list[str]]:
    lines = []
    for results in all_results:
        published: Mapping[str, float] = next(
            (row.scores for row in results.benchmark.published if 'SDRi' in row.scores), {}
        )
        scores = {metric: score.value for metric, score in results.rows[0].scores.items()}
        numbers = [scores.get('SDRi'), scores.get('SI-SDR'), published.get('SDRi'), published.get('SI-SDR')]
        cells = ['' if number is None else f'{number:.3f}' for number in numbers]
        lines.append([results.benchmark.title, *cells, str(len(results.items)), str(len(results.left_out))])
    return lines
