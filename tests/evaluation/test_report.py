"""What an evaluation leaves for a reader."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from support.band_separator import BandSeparator, make_music, make_numbered, rows_of

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import DataError
from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.report import markdown_table, summary_markdown, summary_table, write_report
from audiosep_jax.evaluation.results import in_decibels, write_json
from audiosep_jax.evaluation.run import evaluate


def printed(*tables):
    console = Console(width=150, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


@pytest.fixture
def results(tmp_path):
    """Four items: three good ones and one whose target is silent; a bad row, and a missing file."""
    make_music(tmp_path / 'music')
    write_audio(tmp_path / 'music' / 'segment-3.wav', np.zeros((1, 8000)), 16000)
    with (tmp_path / 'music' / 'music_eval.csv').open('a') as file:
        file.write('7,hiss,a|b,c\n8\n')
    return evaluate(BandSeparator(), read_benchmark(tmp_path / 'music'))


def test_json(tmp_path, results):
    write_json(tmp_path / 'r.json', results.to_dict())
    record = json.loads((tmp_path / 'r.json').read_text())
    assert record['SDRi'] == results.sdri == record['rows']['separated']['SDRi']
    assert record['SI-SDR'] == results.si_sdr
    assert record['checkpoint'] == {
        'path': 'somewhere', 'step': 3, 'encoder': BandSeparator.encoder.identity(), 'hash': 'band',
    }  # fmt: skip
    assert record['config'] == {'steps': 3}
    assert [item['name'] for item in record['items']] == ['0', '1', '2', '3']
    first = record['items'][0]
    assert (first['query'], first['label'], first['silent_target']) == ('low hum', 'low hum', False)
    assert first['SDRi'] == results.items[0].scores['separated']['SDRi']
    assert first['rows']['shuffled query']['query'] != 'low hum'
    assert first['rows']['no separation']['SDRi'] == 0
    assert record['labels']['low hum']['n'] == 2
    low, high = record['rows']['separated']['SDRi_interval']
    assert low <= record['SDRi'] <= high
    assert record['silent_targets'] == ['3']
    assert record['rows_without_silent_targets']['separated']['n'] == 3
    assert record['left_out_counts'] == {'bad row': 1, 'missing': 1}
    assert {left['name'] for left in record['left_out']} == {'7', 'music_eval.csv:7'}
    assert record['published'] == {'AudioSep, 4M steps (published)': {'SDRi': 10.508, 'SI-SDR': 9.425}}
    with pytest.raises(DataError, match='cannot be written'):
        write_json(tmp_path / 'missing' / 'r.json', {})


def test_table(results):
    text = printed(*results.table('the title'))
    for part in (
        'the title',
        'separated',
        'no separation',
        'oracle ratio mask',
        'shuffled query',
        'separated, without 1 silent target',
        'AudioSep, 4M steps (published)',
        '10.508',
        'mean of the means per class, and 95 % interval; SDRi and SI-SDR in dB',
    ):
        assert part in text


def test_only_metrics_that_are_shown_have_a_unit():
    assert in_decibels(['SDR', 'SDRi', 'SI-SDR']) == 'SDR, SDRi and SI-SDR'
    assert in_decibels(['SDRi', 'PESQ', 'SSNR', 'CLAP']) == 'SDRi and SSNR'
    assert in_decibels(['SDRi']) == 'SDRi'
    assert in_decibels(['CLAP']) == ''


def test_report_and_its_pictures(tmp_path, results):
    report = write_report(results, tmp_path, BandSeparator())
    text = report.read_text()
    pictures = re.findall(r'!\[[^]]*\]\(([^)]+)\)', text)
    assert pictures == ['classes.png', 'input_sdr.png', 'example_good.png', 'example_usual.png', 'example_bad.png']
    for name in pictures:
        assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')
    assert f'{results.sdri:.3f}' in text
    assert '| low hum |' in text
    assert 'mixture-7.wav: no such file' in text
    assert 'Silent: 1 of 4 targets' in text
    assert '2 items: bad row 1, missing 1.' in text
    assert 'interval. SDRi and SI-SDR are in dB. *No separation*' in text
    one = dataclasses.replace(results, left_out=results.left_out[:1])
    assert '\n1 item: ' in write_report(one, tmp_path, BandSeparator(), pictures=False).read_text()
    assert json.loads((tmp_path / 'results.json').read_text())['SDRi'] == results.sdri
    plain = write_report(results, tmp_path, BandSeparator(), pictures=False).read_text()
    assert '.png' not in plain


def test_report_when_a_file_went_since(tmp_path, results):
    for path in (tmp_path / 'music').glob('mixture-*'):
        path.unlink()
    text = write_report(results, tmp_path, BandSeparator()).read_text()
    assert 'input_sdr.png' in text
    assert 'example' not in text


def test_summary_of_several_benchmarks(tmp_path, results):
    make_numbered(tmp_path / 'esc50', 'esc50_eval.csv', 'idx,caption,src_wav,noise_wav', lambda i, kind: [kind])
    found = [results, evaluate(BandSeparator(), read_benchmark(tmp_path / 'esc50'))]
    text = summary_markdown(found)
    assert '[MUSIC](music/report.md)' in text
    assert f'| {results.sdri:.3f} | {results.si_sdr:.3f} | 10.508 | 9.425 | 4 | 2 |' in text
    assert 'ESC-50' in printed(summary_table(found))


def test_cells_of_markdown():
    assert markdown_table(['a', 'b'], [['x|y', '1']]) == '| a | b |\n| --- | ---: |\n| x\\|y | 1 |'


def test_metrics_that_some_items_lack_say_of_how_many_they_are(results):
    items = [dataclasses.replace(item, scores={'separated': dict(item.scores['separated'])}) for item in results.items]
    for item in items[:3]:
        item.scores['separated']['PESQ'] = 2.0
    from audiosep_jax.evaluation.results import make_rows

    [row] = make_rows(items, ['separated', 'absent'], 'mean', 0)
    assert (row.n, row.scores['PESQ'].n, row.scores['PESQ'].value) == (4, 3, 2.0)
    assert row.to_dict()['PESQ_n'] == 3
    assert 'SDRi_n' not in row.to_dict()
    assert rows_of(results)['separated'].to_dict()['n'] == 4
