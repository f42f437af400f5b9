"""Tests the report of an evaluation: results.json, report.md and pictures."""

import dataclasses
import json
import re

import pytest
from support.band_separator import BandSeparator, make_numbered
from support.evaluated_music import evaluate_flawed_music, printed

from audiosep_jax.evaluation.protocols import read_benchmark
from audiosep_jax.evaluation.report import markdown_table, summary_markdown, summary_table, write_report
from audiosep_jax.evaluation.run import evaluate


@pytest.fixture
def results(tmp_path):
    return evaluate_flawed_music(tmp_path)


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
    assert '1 of 4 targets are silent.' in text
    assert '2 items: bad row 1, missing 1.' in text
    assert 'interval in brackets. SDRi and SI-SDR are in dB. *No separation*' in text
    one = dataclasses.replace(results, left_out=results.left_out[:1])
    assert '\n1 item: ' in write_report(one, tmp_path, BandSeparator(), pictures=False).read_text()
    assert json.loads((tmp_path / 'results.json').read_text())['SDRi'] == results.sdri
    plain = write_report(results, tmp_path, BandSeparator(), pictures=False).read_text()
    assert '.png' not in plain


def test_a_report_without_the_examples_whose_files_are_gone(tmp_path, results):
    for path in (tmp_path / 'music').glob('mixture-*'):
        path.unlink()
    text = write_report(results, tmp_path, BandSeparator()).read_text()
    assert 'input_sdr.png' in text
    assert 'example' not in text


def test_summary_of_several_benchmarks(tmp_path, results):
    make_numbered(tmp_path / 'esc50', 'esc50_eval.csv', 'idx,caption,src_wav,noise_wav', lambda i, kind: [kind])
    found = [results, evaluate(BandSeparator(), read_benchmark(tmp_path / 'esc50', 'esc50'))]
    text = summary_markdown(found)
    assert '[MUSIC](music/report.md)' in text
    assert f'| {results.sdri:.3f} | {results.si_sdr:.3f} | 10.508 | 9.425 | 4 | 2 |' in text
    assert 'ESC-50' in printed(summary_table(found))


def test_cells_of_markdown():
    assert markdown_table(['a', 'b'], [['x|y', '1']]) == '| a | b |\n| --- | ---: |\n| x\\|y | 1 |'
