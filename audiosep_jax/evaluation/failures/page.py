"""Writes a page about where a separator fails. It opens offline: sounds and pictures lie beside it."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audiosep_jax.audio.writing import write_together
from audiosep_jax.errors import AudioSepError, DataError
from audiosep_jax.evaluation.failures.analysis import (
    DURATION_EDGES,
    LEVEL_EDGES,
    Case,
    Confusion,
    Group,
    binned,
    by_class,
    cases_of,
    confusions,
    worst,
)
from audiosep_jax.evaluation.report import example_sounds
from audiosep_jax.evaluation.results import Results, Row, write_text
from audiosep_jax.plots import scatter, spectrogram_panels

if TYPE_CHECKING:
    from audiosep_jax.separation.separator import Separator

PAGE = 'index.html'
_MOST_CONFUSIONS = 30
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child, td.text, th.text { text-align: left }
tr.below td { background: #fbeaea }
img { max-width: 100%; height: auto }
figure { margin: 0 }
audio { width: 16rem; vertical-align: middle }
"""


def write_page(results: Results, folder: Path, separator: 'Separator', *, pictures: bool = True) -> Path:
    """Writes `index.html` and, beside it, the sounds and pictures that it shows.

    Args:
        results: the results of one benchmark.
        folder: the folder for them; it is created if its parent exists.
        separator: the model, which separates the worst items again.
        pictures: whether to draw pictures.

    Returns:
        The path of the page.

    Raises:
        DataError: no item has an audible target, or a file cannot be written.
    """
    cases = cases_of(results)
    if not cases:
        raise DataError(f'{results.benchmark.name}: no item has an audible target, so there is no page on its failures')
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f'{folder}: cannot be made: {error.strerror or error}') from error
    levels = binned(cases, lambda case: case.input_snr, LEVEL_EDGES, 'dB')
    durations = binned([case for case in cases if case.seconds], lambda case: case.seconds, DURATION_EDGES, 's')
    sections = [
        _head(results, cases),
        _classes(by_class(cases)),
        _confusions(confusions(cases)),
        '<h2>By input level</h2>',
        '<p>The ratio of the target to the rest of the mixture.</p>',
        _groups('input SNR', levels),
        _scatter(folder, 'input_snr.png', cases, 'input_snr', 'SNR of the mixture, dB') if pictures else '',
        '<h2>By duration</h2>',
        _groups('length', durations),
        _scatter(folder, 'duration.png', cases, 'seconds', 'length of the mixture, s') if pictures else '',
        '<h2>The worst items</h2>',
        *(_worst(rank, case, results, folder, separator, pictures) for rank, case in enumerate(worst(cases), start=1)),
    ]
    title, body = _text(results.benchmark.title), '\n'.join(filter(None, sections))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}: where it fails</title>\n'
        f'<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def _head(results: Results, cases: Sequence[Case]) -> str:
    rows = []
    for name, row in results.lines():
        if isinstance(row, Row):
            pairs = [row.scores.get(metric) for metric in ('SDRi', 'SI-SDR')]
            cells = [f'{p.value:.2f} ({p.interval[0]:.2f} … {p.interval[1]:.2f})' if p else '' for p in pairs]
            rows.append([name, *cells, str(row.n)])
        else:
            rows.append([name, *(_number(row.scores.get(metric)) for metric in ('SDRi', 'SI-SDR')), ''])
    silent = len(results.silent_targets)
    about = f'Checkpoint {results.info.get("path")}, step {results.info.get("step")}.'
    about += f' The rest of this page is about {len(cases)} items'
    about += f', without {silent} whose target is silent.' if silent else '.'
    return '\n'.join(
        [
            f'<h1>{_text(results.benchmark.title)}: where it fails</h1>',
            f'<p>{_text(about)} Scores are in dB: the {_text(results.aggregation)}, with 95 % intervals. In the other '
            'tables they are means over items.</p>',
            _table(['', 'SDRi', 'SI-SDR', 'items'], rows),
            *(f'<p>{_text(note)}</p>' for note in results.notes),
        ]
    )


def _classes(groups: Sequence[Group]) -> str:
    if len(groups) < 2:
        return ''
    below = [group.mask_si_sdr is not None and group.si_sdr < group.mask_si_sdr for group in groups]
    text = 'The lowest SI-SDR first.'
    if groups[0].mask_si_sdr is not None:
        text += f' {sum(below)} of {len(groups)} classes, shaded, are below the fixed spectral mask.'
    return f'<h2>By class</h2>\n<p>{text}</p>\n{_groups("class", groups, below)}'


def _groups(header: str, groups: Sequence[Group], shaded: Sequence[bool] = ()) -> str:
    has_mask = any(group.mask_sdri is not None for group in groups)
    rows = []
    for group in groups:
        mask = [_number(group.mask_sdri), _number(group.mask_si_sdr)] if has_mask else []
        rows.append([group.name, _number(group.sdri), _number(group.si_sdr), *mask, str(group.n)])
    mask = ['mask, SDRi', 'mask, SI-SDR'] if has_mask else []
    return _table([header, 'SDRi', 'SI-SDR', *mask, 'items'], rows, shaded)


def _confusions(found: Sequence[Confusion]) -> str:
    if not found:
        return ''
    rows = [
        [c.asked, c.other or 'not told', str(c.confused), str(c.n), f'{100 * c.leak:.0f} %']
        for c in found[:_MOST_CONFUSIONS]
    ]
    more = f' The first {_MOST_CONFUSIONS} of {len(found)} pairs.' if len(found) > _MOST_CONFUSIONS else ''
    return (
        '<h2>Confusions</h2>\n<p>Of the energy that the output shares with the target and with the rest of the '
        f'mixture, how much is of the rest. An item is confused if that is more than half.{more}</p>\n'
        + _table(['asked for', 'mixed with', 'confused', 'items', 'mean share of the rest'], rows, text_columns=2)
    )


def _scatter(folder: Path, name: str, cases: Sequence[Case], attribute: str, label: str) -> str:
    values = [getattr(case, attribute) for case in cases]
    scatter(folder / name, values, [case.sdri for case in cases], (label, 'SDR improvement, dB'))
    return f'<p><img src="{name}" alt="SDRi of each item against the {_text(label)}"></p>'


def _worst(rank: int, case: Case, results: Results, folder: Path, separator: 'Separator', pictures: bool) -> str:
    """Writes the sounds and the picture of one item, and returns its part of the page."""
    item = case.scored.item
    facts = [f'SDRi {case.sdri:.2f} dB', f'SI-SDR {case.si_sdr:.2f} dB', f'input SNR {case.input_snr:.1f} dB']
    facts += [f'class {item.label}'] if item.label and item.label != case.query else []
    facts += [f'mixed with {case.other}'] if case.other else []
    facts += [f'{100 * case.leak:.0f} % of the rest'] if case.leak is not None else []
    parts = [
        f'<h3>{rank}. {_text(case.query)}</h3>',
        f'<p>{_text(item.name)}: {_text(", ".join(facts))}</p>',
    ]
    try:
        sounds = example_sounds(case.scored, results.rows[0].name, results.sample_rate, separator)
        names = {kind: f'worst_{rank:02}_{kind}.wav' for kind in sounds}
        write_together({folder / names[kind]: sound[None] for kind, sound in sounds.items()}, results.sample_rate)
    except AudioSepError as error:  # the file has been removed since; the scores remain valid
        return '\n'.join([*parts, f'<p>{_text(str(error))}</p>'])
    for kind, name in names.items():
        parts.append(f'<p><audio controls preload="none" src="{name}"></audio> <a href="{name}">{kind}</a></p>')
    if pictures:
        picture = f'worst_{rank:02}.png'
        spectrogram_panels(folder / picture, sounds, results.sample_rate, f'query: {case.query}')
        about = 'Spectrograms of the mixture, the target and the output'
        parts.append(f'<p><img src="{picture}" loading="lazy" alt="{about}"></p>')
    return '\n'.join(parts)


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], shaded: Sequence[bool] = (), text_columns: int = 1
) -> str:
    def line(tag: str, cells: Sequence[str], kind: str = '') -> str:
        classes = [' class="text"' if 0 < i < text_columns else '' for i in range(len(cells))]
        inside = ''.join(f'<{tag}{c}>{_text(cell)}</{tag}>' for c, cell in zip(classes, cells, strict=True))
        return f'<tr{kind}>{inside}</tr>'

    marks = [' class="below"' if mark else '' for mark in shaded] or [''] * len(rows)
    body = [line('td', row, mark) for row, mark in zip(rows, marks, strict=True)]
    return '\n'.join(['<table>', line('th', header), *body, '</table>'])


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.2f}'


def _text(text: str) -> str:
    # Half a surrogate pair, as in names of files that are not UTF-8, cannot be written.
    return html.escape(text.encode('utf-8', 'backslashreplace').decode('utf-8'))
