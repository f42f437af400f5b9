"""Tests the results of an evaluation as JSON and as tables."""

import dataclasses
import json

import pytest
from support.band_separator import BandSeparator, rows_of
from support.evaluated_music import evaluate_flawed_music, printed

from audiosep_jax.errors import DataError
from audiosep_jax.evaluation.results import in_decibels, make_rows, write_json


@pytest.fixture
def results(tmp_path):
    return evaluate_flawed_music(tmp_path)


def test_json(tmp_path, results):
    write_json(tmp_path / 'r.json', results.to_dict())
    record = json.loads((tmp_path / 'r.json').read_text())
    assert record['SDRi'] == results.sdri == record['rows']['separated']['SDRi']
    assert record['SI-SDR'] == results.si_sdr
    assert record['checkpoint'] == {
        'path': 'somewhere', 'step': 3, 'encoder': BandSeparator.encoder.identity(), 'equalizer': None, 'hash': 'band',
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


def test_metrics_in_decibels_are_enumerated():
    assert in_decibels(['SDR', 'SDRi', 'SI-SDR']) == 'SDR, SDRi and SI-SDR'
    assert in_decibels(['SDRi', 'PESQ', 'SSNR', 'CLAP']) == 'SDRi and SSNR'
    assert in_decibels(['SDRi']) == 'SDRi'
    assert in_decibels(['CLAP']) == ''


def test_metrics_that_some_items_lack_have_their_own_n(results):
    items = [dataclasses.replace(item, scores={'separated': dict(item.scores['separated'])}) for item in results.items]
    for item in items[:3]:
        item.scores['separated']['PESQ'] = 2.0
    [row] = make_rows(items, ['separated', 'absent'], 'mean', 0)
    assert (row.n, row.scores['PESQ'].n, row.scores['PESQ'].value) == (4, 3, 2.0)
    assert row.to_dict()['PESQ_n'] == 3
    assert 'SDRi_n' not in row.to_dict()
    assert rows_of(results)['separated'].to_dict()['n'] == 4
