"""The page about where a separator fails: it opens offline, and its numbers are those of the scores."""

import html.parser
import re

import numpy as np
import pytest
import soundfile
from support.band_separator import BandSeparator, write_table
from support.evaluated_music import evaluate_flawed_music

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import DataError
from audiosep_jax.evaluation.failures.analysis import cases_of, confusions, worst
from audiosep_jax.evaluation.failures.page import write_page
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.report import example_sounds
from audiosep_jax.evaluation.run import Options, evaluate

_VOID = {'meta', 'img', 'br'}


class Page(html.parser.HTMLParser):
    """Collects the links, the headings and the cells of tables; every element must be closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.links, self.headings, self.rows, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ('src', 'href')]
        if tag not in _VOID:
            self._open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
        if tag in ('h1', 'h2', 'h3'):
            self.headings.append('')

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ('td', 'th'):
            self.rows[-1][-1] += data
        if self._open and self._open[-1] in ('h1', 'h2', 'h3'):
            self.headings[-1] += data


@pytest.fixture
def results(tmp_path):
    return evaluate_flawed_music(tmp_path)


def test_it_opens_offline_with_all_its_files(tmp_path, results):
    path = write_page(results, tmp_path / 'page', BandSeparator())
    assert path == tmp_path / 'page' / 'index.html'
    text = path.read_text('utf-8')
    page = Page(text)
    assert text.startswith('<!DOCTYPE html>')
    assert not re.search(r'https?:|//', text.replace('</', '<'))
    for link in page.links:
        assert '/' not in link
        assert (path.parent / link).is_file()
    assert set(page.links) | {'index.html'} == {file.name for file in path.parent.iterdir()}
    assert page.headings[0] == 'MUSIC: where it fails'
    for heading in ('By class', 'Confusions', 'By input level', 'By duration', 'The worst items'):
        assert heading in page.headings
    assert 'without 1 whose target is silent' in text


def test_its_numbers_are_those_of_the_scores(tmp_path, results):
    page = Page(write_page(results, tmp_path / 'page', BandSeparator(), pictures=False).read_text('utf-8'))
    cases = cases_of(results)
    assert len(cases) == 3
    for row in results.rows:
        assert any(cells[0] == row.name and cells[1].startswith(f'{row.sdri:.2f} (') for cells in page.rows)
        assert any(cells[0] == row.name and cells[2].startswith(f'{row.si_sdr:.2f} (') for cells in page.rows)
    assert ['AudioSep, 4M steps (published)', '10.51', '9.43', ''] in page.rows
    sdri, si_sdr = np.mean([[case.sdri, case.si_sdr] for case in cases], axis=0)
    assert ['-2.5 to 2.5 dB', f'{sdri:.2f}', f'{si_sdr:.2f}', '3'] in page.rows
    assert ['0 to 1 s', f'{sdri:.2f}', f'{si_sdr:.2f}', '3'] in page.rows
    for c in confusions(cases):
        row = [c.asked, c.other or 'not told', str(c.confused), str(c.n), f'{100 * c.leak:.0f} %']
        assert row in page.rows
    assert page.headings[-3:] == [f'{n}. {case.query}' for n, case in enumerate(worst(cases), start=1)]
    assert not [link for link in page.links if link.endswith('.png')]


def test_the_worst_items_are_to_be_heard(tmp_path, results):
    write_page(results, tmp_path / 'page', BandSeparator(), pictures=False)
    first = worst(cases_of(results))[0]
    sounds = example_sounds(first.scored, 'separated', results.sample_rate, BandSeparator())
    assert set(sounds) == {'mixture', 'target', 'separated'}
    for kind, sound in sounds.items():
        written, rate = soundfile.read(tmp_path / 'page' / f'worst_01_{kind}.wav')
        assert rate == results.sample_rate
        np.testing.assert_allclose(written, sound, atol=1e-3)


def test_texts_are_shown_as_they_are(tmp_path):
    folder = tmp_path / 'own'
    query = '<script>alert("1")</script> & so on'
    folder.mkdir()
    write_audio(folder / 'a.wav', _tone(200), 8000)
    write_audio(folder / 'mix.wav', _tone(200) + _tone(3000), 8000)
    write_table(folder / 'own.csv', 'mixture,target,query,other', [['mix.wav', 'a.wav', query, '<b>rain</b>']])
    results = evaluate(BandSeparator(), read_benchmark(folder), Options(shuffled=False))
    text = write_page(results, tmp_path / 'page', BandSeparator()).read_text('utf-8')
    page = Page(text)
    assert '<script' not in text
    assert f'1. {query}' in page.headings
    assert any(row[:2] == [query, '<b>rain</b>'] for row in page.rows)


def test_what_cannot_be_shown_does_not_cost_the_rest(tmp_path, results):
    for path in (tmp_path / 'music').glob('mixture-*'):
        path.unlink()
    text = write_page(results, tmp_path / 'page', BandSeparator()).read_text('utf-8')
    assert 'no such file' in text
    assert 'By input level' in Page(text).headings
    with pytest.raises(DataError, match='cannot be made'):
        write_page(results, tmp_path / 'nowhere' / 'page', BandSeparator())


def test_classes_below_the_mask_are_shaded(tmp_path, results):
    for scored in results.items:
        gain = 40.0 if scored.item.label == 'whistle' else -40.0
        scored.scores['fixed spectral mask'] = {
            name: scored.scores['separated'][name] + gain for name in ('SDRi', 'SI-SDR')
        }
    text = write_page(results, tmp_path / 'page', BandSeparator(), pictures=False).read_text('utf-8')
    shaded = re.findall(r'<tr class="below"><td>([^<]*)', text)
    assert shaded == ['whistle']
    assert '1 of 2 classes, shaded, are below the fixed spectral mask' in text


def _tone(hertz):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(4000) / 8000)).astype(np.float32)[None]
