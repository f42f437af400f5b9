"""Several benchmarks in one table, as the original's README has it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from audiosep_jax.evaluation.report import markdown_table
from audiosep_jax.evaluation.results import Results

if TYPE_CHECKING:
    from rich.table import Table

_HEADER = ('benchmark', 'SDRi', 'SI-SDR', 'published SDRi', 'published SI-SDR', 'items', 'left out')


def summary_table(found: Sequence[Results]) -> 'Table':
    """For a terminal."""
    from rich.table import Table

    table = Table(title='separated, dB')
    for i, column in enumerate(_HEADER):
        table.add_column(column, justify='right' if i else 'left')
    for line in _lines(found):
        table.add_row(*line)
    return table


def summary_markdown(found: Sequence[Results]) -> str:
    """For `OUT/report.md`, with links to the reports of the benchmarks."""
    names = [f'[{results.benchmark.title}]({results.benchmark.name}/report.md)' for results in found]
    lines = [[name, *line[1:]] for name, line in zip(names, _lines(found), strict=True)]
    return f'# Benchmarks\n\nIn dB, aggregated as the original does.\n\n{markdown_table(_HEADER, lines)}\n'


def _lines(found: Sequence[Results]) -> list[list[str]]:
    lines = []
    for results in found:
        published = next((row.scores for row in results.benchmark.published if 'SDRi' in row.scores), {})
        own = {metric: score.value for metric, score in results.rows[0].scores.items()}
        numbers = [own.get('SDRi'), own.get('SI-SDR'), published.get('SDRi'), published.get('SI-SDR')]
        cells = ['' if number is None else f'{number:.3f}' for number in numbers]
        lines.append([results.benchmark.title, *cells, str(len(results.items)), str(len(results.left_out))])
    return lines
