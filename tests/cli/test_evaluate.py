"""The command line: evaluate."""

import importlib.util
import json
import os

import numpy as np
import pytest
from support import tiny_clap
from support.band_separator import HERTZ, BandSeparator, make_music, make_numbered, sound, write_pair, write_table
from support.quarter_separator import one_error

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.cli import terminal
from audiosep_jax.cli.main import main
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.evaluation import protocols
from audiosep_jax.evaluation.loading import load_mono
from audiosep_jax.weights.tensor_files import write_tensors
from data_prep.build import build_shards
from data_prep.clips.base import Clip

AUDIOCAPS = 'idx,caption,labels,src_wav,noise_wav'


@pytest.fixture
def band(monkeypatch):
    """What the command line then gets for a checkpoint of any name."""
    fake = BandSeparator()
    monkeypatch.setattr(terminal, 'load', lambda path, **options: fake)
    return fake


def evaluate(*arguments):
    return main(['evaluate', '--data', 'bench', '--checkpoint', 'c', '--skip-pictures', *arguments])


def test_one_benchmark(folder, band, capsys):
    make_music(folder / 'bench')
    assert evaluate('--benchmark', 'music', '--json', 'r.json') == 0
    captured = capsys.readouterr()
    for part in (
        'MUSIC: 4 mixtures',
        'separated',
        'shuffled query',
        'AudioSep, 4M steps',
        'evaluation/music/report.md',
    ):
        assert part in captured.out
    assert 'note: music: 4 items here, the complete benchmark has 5004' in captured.err
    record = json.loads((folder / 'r.json').read_text())
    assert record['benchmark'] == 'music'
    assert record['SDRi'] > 15
    assert len(record['items']) == 4
    own = json.loads((folder / 'evaluation' / 'music' / 'results.json').read_text())
    assert {**record, 'data': None} == {**own, 'data': None}


@pytest.mark.parametrize('variable', ['SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'])
def test_a_job_of_one_task_is_a_cluster_of_one(folder, band, monkeypatch, variable):
    make_music(folder / 'bench')
    monkeypatch.setenv(variable, '1')
    assert evaluate('--several-hosts') == 0


def test_the_same_command_again_computes_nothing(folder, band, capsys):
    make_music(folder / 'bench')
    assert evaluate() == 0
    calls = band.calls
    first = (folder / 'evaluation' / 'music' / 'results.json').read_bytes()
    assert evaluate() == 0
    assert band.calls == calls
    assert (folder / 'evaluation' / 'music' / 'results.json').read_bytes() == first


def test_what_is_left_out_is_said_and_ends_with_1(folder, band, capsys):
    make_music(folder / 'bench')
    (folder / 'bench' / 'mixture-1.wav').unlink()
    write_audio(folder / 'bench' / 'segment-3.wav', np.zeros((1, 8000)), 16000)
    assert evaluate('--json', 'r.json') == 1
    captured = capsys.readouterr()
    assert 'audiosep-jax: note: left out (missing): bench/mixture-1.wav: no such file' in captured.err
    [error] = [line for line in captured.err.splitlines() if line.startswith('audiosep-jax: error: ')]
    assert captured.err.splitlines()[-1] == error
    assert 'left out in all: 1 (missing 1)' in captured.err
    assert 'scores are those of the other 3' in captured.err
    assert '1 target is silent but counts, as in the original: 3' in captured.err
    assert 'separated, without 1 silent target' in captured.out
    assert (folder / 'r.json').exists()


def test_the_page_and_the_row_of_the_training_set(folder, band, capsys):
    make_music(folder / 'bench')
    make_music(folder / 'bench' / 'data' / 'music')
    clips = [Clip(kind, sound(kind), (f'a {kind}',), (kind,)) for kind in HERTZ]
    build_shards(clips, folder / 'shards', sample_rate=8000, name='small')
    arguments = ('--train-data', 'shards', '--report', 'page', '--json', 'r.json')
    assert evaluate(*arguments) == 0
    captured = capsys.readouterr()
    assert 'page/index.html' in captured.out
    assert 'half of the mixture' in captured.out
    assert 'fixed spectral mask: fitted on 3 clips of 3 classes in shards' in captured.err
    rows = json.loads((folder / 'r.json').read_text())['rows']
    assert rows['fixed spectral mask']['SDRi'] > 15
    assert rows['half of the mixture']['SDRi'] == pytest.approx(3.01, abs=0.1)
    assert 'fixed spectral mask' in (folder / 'page' / 'index.html').read_text()
    assert not list((folder / 'page').glob('*.png'))
    assert evaluate('--benchmark', 'all', '--report', 'pages') == 0
    assert (folder / 'pages' / 'music' / 'index.html').is_file()
    capsys.readouterr()
    assert evaluate('--report', 'no/page') == 1
    assert '--report no/page: the folder' in capsys.readouterr().err


def test_all_benchmarks(folder, band, capsys):
    make_music(folder / 'bench' / 'data' / 'music')
    make_numbered(folder / 'bench' / 'data' / 'audiocaps', 'audiocaps_eval.csv', AUDIOCAPS, lambda i, k: [k, f'a {k}'])
    assert evaluate('--benchmark', 'all', '--json', 'r.json', '--query-type', 'both') == 0
    out = capsys.readouterr().out
    assert 'separated, caption' in out
    assert 'published SDRi' in out
    records = json.loads((folder / 'r.json').read_text())['benchmarks']
    assert list(records) == ['audiocaps', 'music']
    assert set(records['audiocaps']['rows']) > {'separated, caption', 'separated, label'}
    assert 'separated' in records['music']['rows']  # which has labels only
    assert '[MUSIC](music/report.md)' in (folder / 'evaluation' / 'report.md').read_text()


def test_of_several_benchmarks_a_bad_one_does_not_cost_the_others(folder, band, capsys):
    for name in ('music', 'esc50'):
        make_numbered(
            folder / 'bench' / name, f'{name}_eval.csv', 'idx,caption,src_wav,noise_wav', lambda i, kind: [kind]
        )
    for path in (folder / 'bench' / 'esc50').glob('*.wav'):
        path.unlink()
    (folder / 'bench' / 'clotho').mkdir()
    assert evaluate('--benchmark', 'all', '--json', 'r.json') == 1
    errors = capsys.readouterr().err
    assert 'bench/clotho/clotho_eval.csv: No such file' in errors
    assert 'error: esc50: none of the 4 items could be scored' in errors
    assert list(json.loads((folder / 'r.json').read_text())['benchmarks']) == ['music']
    for path in (folder / 'bench' / 'music').glob('*.wav'):
        path.unlink()
    assert evaluate('--benchmark', 'all') == 1
    assert 'bench: no benchmark could be scored' in capsys.readouterr().err


def test_queries_side_by_side(folder, band):
    make_numbered(folder / 'bench', 'audiocaps_eval.csv', AUDIOCAPS, lambda i, kind: [kind, f'the {kind}'])
    write_table(folder / 'mine.csv', 'idx,caption', [[i, 'whistle'] for i in range(4)])
    assert evaluate('--query-type', 'label,caption', '--captions', 'mine.csv', '--json', 'r.json') == 0
    rows = json.loads((folder / 'r.json').read_text())['rows']
    assert list(rows)[:3] == ['separated, label', 'separated, caption', 'separated, captions of mine.csv']
    assert rows['separated, captions of mine.csv']['SDRi'] < rows['separated, caption']['SDRi']
    assert evaluate('--query', 'hiss', '--json', 'r.json') == 0
    record = json.loads((folder / 'r.json').read_text())
    assert {item['query'] for item in record['items']} == {'hiss'}


def test_speech(folder, band):
    for i in range(2):
        pair = (folder / 'bench' / f'{kind}_testset_wav' / f'p232_{i:03}.wav' for kind in ('clean', 'noisy'))
        write_pair(*pair, 'low hum', 'hiss', samples=16000)
    assert evaluate('--benchmark', 'voicebank-demand', '--query', 'low hum', '--json', 'r.json') == 0
    record = json.loads((folder / 'r.json').read_text())
    assert {'PESQ', 'STOI', 'CSIG', 'CBAK', 'COVL', 'SSNR', 'SDRi'} <= set(record)
    assert record['SSNR'] > record['rows']['no separation']['SSNR']
    assert 'shuffled query' not in record['rows']  # all of them are asked for by the same words


def test_an_interrupted_evaluation_says_that_it_resumes(folder, band, capsys, monkeypatch):
    make_music(folder / 'bench')

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(band, 'separate_batch', interrupted)
    assert evaluate() == 130
    assert one_error(capsys) == 'audiosep-jax: error: interrupted; the same command resumes'


def test_speech_without_its_packages_is_refused_before_the_work(folder, band, capsys, monkeypatch):
    make_music(folder / 'bench' / 'music')
    for kind in ('clean', 'noisy'):
        (folder / 'bench' / 'voicebank-demand' / f'{kind}_testset_wav').mkdir(parents=True)
        (folder / 'bench' / 'voicebank-demand' / f'{kind}_testset_wav' / 'p232_001.wav').touch()
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert evaluate('--benchmark', 'all') == 2
    assert "pip install 'audiosep_jax[speech]'" in one_error(capsys)
    assert band.calls == 0


@pytest.mark.parametrize(
    ('arguments', 'code', 'says'),
    [
        (['--json', 'missing/r.json'], 1, 'does not exist'),
        (['--json', '.'], 1, 'is a folder'),
        (['--out', 'missing/out'], 1, 'does not exist'),
        (['--out', 'bench/music_eval.csv'], 1, 'is a file'),
        (['--batch-size', '0'], 2, 'at least 1'),
        (['--max-items', '0'], 2, 'at least 1'),
        (['--seed', '-1'], 2, 'not be negative'),
        (['--data', 'nowhere'], 1, 'nowhere: not a benchmark: no such folder'),
        (['--data', 'nowhere', '--benchmark', 'music'], 1, 'nowhere/music_eval.csv: No such file'),
        (['--data', 'nowhere', '--benchmark', 'all'], 1, 'nowhere: not a benchmark: no such folder'),
        (['--data', 'bench', '--benchmark', 'all'], 1, 'bench: has none of the sub-folders'),
        (['--query-type', 'caption'], 2, 'music has label queries only'),
        (['--query-type', 'both'], 2, 'music has label queries only'),
        (['--query-type', 'label,caption'], 2, 'music has label queries only'),
        (['--metadata', 'nowhere'], 2, '--metadata nowhere: no such folder'),
        (['--query-type', 'words'], 2, 'give label, caption, or both'),
        (['--query', ' '], 2, '--query is empty'),
        (['--query', 'x', '--query-type', 'label'], 2, 'only one of them'),
        (['--captions', 'x.csv', '--benchmark', 'all'], 2, 'describes the items of one benchmark'),
        (['--captions', 'x.csv'], 1, 'x.csv: No such file or directory; --captions is a table idx,caption'),
        (['--clap', 'own'], 2, "the encoder 'words' does not encode audio"),
        (['--clap', 'nowhere.safetensors'], 2, 'unknown query encoder'),
        (['--several-hosts'], 2, 'finds no cluster here'),
    ],
)
def test_mistakes_are_one_line(folder, band, capsys, arguments, code, says):
    make_music(folder / 'bench')
    assert evaluate(*arguments) == code
    assert says in one_error(capsys)
    assert not (folder / 'evaluation' / 'music').exists()


def test_a_folder_without_write_permission(folder, band, capsys, monkeypatch):
    make_music(folder / 'bench')
    (folder / 'locked').mkdir()
    monkeypatch.setattr(os, 'access', lambda path, mode: not str(path).endswith('locked'))
    for flags in (['--json', 'locked/r.json'], ['--out', 'locked'], ['--out', 'locked/out']):
        assert evaluate(*flags) == 1
        captured = capsys.readouterr()
        assert 'no permission to write' in captured.err
        assert captured.out == ''  # before the work


def test_a_full_disk_is_one_line_and_keeps_what_was_scored(folder, band, capsys, monkeypatch):
    make_music(folder / 'bench')
    real, count = os.fsync, []

    def full(descriptor):
        count.append(descriptor)
        if len(count) == 2:
            raise OSError(28, 'No space left on device')
        real(descriptor)

    monkeypatch.setattr(os, 'fsync', full)
    assert evaluate('--batch-size', '1') == 1
    assert 'No space left on device' in one_error(capsys)
    monkeypatch.setattr(os, 'fsync', real)
    calls = band.calls
    assert evaluate('--batch-size', '1') == 0
    assert band.calls - calls <= 3


def test_the_flag_knows_every_benchmark(capsys):
    assert main(['evaluate', '--help']) == 0
    text = capsys.readouterr().out.replace('\n', '').replace('│', '').replace(' ', '')
    assert ','.join([*protocols.PROTOCOLS, 'all']) in text


def test_help_says_defaults_once_and_breaks_no_line_early(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    assert main(['evaluate', '--help']) == 0
    text = capsys.readouterr().out
    lines = [line.strip('│ ') for line in text[text.index('--data') :].splitlines()]
    for part in ('(default: 8 for each', "(default: the protocol's", '`mixture,target,query`', 'OUT on a shared disk.'):
        assert sum(part in line for line in lines) == 1
    # Wide as it is, each flag has its line, or one for its own name and one for its help.
    assert all(line.startswith('-') or line.endswith(')') for line in lines if line.strip('─╰╯'))


def test_recordings_without_a_target_need_clap(folder, band, capsys):
    write_pair(folder / 'bench' / 'unused.wav', folder / 'bench' / 'street.wav', 'low hum', 'hiss')
    write_table(folder / 'bench' / 'own.csv', 'mixture,query', [['street.wav', 'low hum']])
    assert evaluate() == 2
    assert '--clap PATH' in one_error(capsys)


def test_recordings_without_a_target_are_scored_by_clap(folder, band, capsys):
    """With random weights the cosine means nothing, but it is one, and it is that of query and output."""
    clap = folder / 'clap'
    clap.mkdir()
    write_tensors(clap / 'model.safetensors', tiny_clap.hugging_face_tensors())
    (clap / 'config.json').write_text(json.dumps(tiny_clap.CONFIG))
    tiny_clap.write_tokenizer(clap)
    write_pair(folder / 'bench' / 'unused.wav', folder / 'bench' / 'street.wav', 'low hum', 'hiss')
    write_table(folder / 'bench' / 'own.csv', 'mixture,query', [['street.wav', 'low hum']])
    assert evaluate('--clap', str(clap), '--json', 'r.json') == 0
    assert 'CLAP' in capsys.readouterr().out
    record = json.loads((folder / 'r.json').read_text())
    encoder = load_encoder(str(clap))
    mixture = load_mono(folder / 'bench' / 'street.wav', band.config.sample_rate)
    output = band.separate_batch([mixture], band.embed(['low hum']), batch_size=1)
    heard = encoder.encode_audio(output, sample_rate=band.config.sample_rate)[0]
    assert record['CLAP'] == pytest.approx(float(heard @ encoder.encode_text(['low hum'])[0]), abs=1e-4)
    assert 'SDRi' not in record
    assert set(record['rows']) == {'separated', 'no separation'}
