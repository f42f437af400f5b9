"""Tests that every layout is read as the original's evaluators read it."""

import dataclasses

import numpy as np
import pytest
from support.band_separator import KINDS, BandSeparator, make_music, make_numbered, write_pair, write_table
from support.small_dataset import build_small

from audiosep_jax.errors import ConfigError, DataError
from audiosep_jax.evaluation.protocols import PROTOCOLS, detect, find_benchmarks, read_benchmark
from audiosep_jax.evaluation.run import Options, evaluate

CLASSES = [[0, '/m/09x0r', 'Speech'], [1, '/m/05zppz', 'Male speech, man speaking'], [2, '/m/0', 'hiss']]


def queries(benchmark, kind):
    return [item.queries[kind] for item in benchmark.items]


def test_audioset(tmp_path):
    """The first ten sorted names of each class are read, and classes without a folder are reported."""
    write_table(tmp_path / 'class_labels_indices.csv', 'index,mid,display_name', CLASSES)
    for i in [11, *range(11)]:
        folder, stem = tmp_path / 'class_id=0', f'class_id=0,index={i:03}'
        write_pair(folder / f'{stem},source.wav', folder / f'{stem},mixture.wav', 'hiss', 'whistle', samples=99)
    folder = tmp_path / 'class_id=2'
    write_pair(folder / 'a,b,source.wav', folder / 'a,b,mixture.wav', 'hiss', 'whistle', samples=99)
    (folder / 'unrelated.wav').touch()
    (folder / 'notes.txt').touch()
    benchmark = read_benchmark(tmp_path)
    assert benchmark.name == 'audioset'
    assert [item.mixture.name for item in benchmark.items[:10]] == [
        f'class_id=0,index={i:03},mixture.wav' for i in range(10)
    ]
    assert len(benchmark.items) == 11
    assert benchmark.items[10].mixture == folder / 'a,b,mixture.wav'
    assert queries(benchmark, 'label') == ['Speech'] * 10 + ['hiss']
    assert [left.reason for left in benchmark.bad_rows] == ['missing']
    assert 'class_id=1' in benchmark.bad_rows[0].message
    assert benchmark.statistic == 'mean of class medians'


def test_audiocaps_has_captions_and_labels(tmp_path):
    header = 'idx,caption,labels,src_wav,noise_wav'
    rows = [[0, ' a dog, barking ', 'Dog Bark', 'Y1.wav', 'Y2.wav'], [1, 'rain', 'Rain', 'Y1.wav', 'Y3.wav']]
    write_table(tmp_path / 'audiocaps_eval.csv', header, rows)
    benchmark = read_benchmark(tmp_path)
    assert benchmark.query_types == ('caption', 'label')
    # As the original passes it on: blanks are not removed.
    assert queries(benchmark, 'caption') == [' a dog, barking ', 'rain']
    assert queries(benchmark, 'label') == ['Dog Bark', 'Rain']
    assert [item.group for item in benchmark.items] == ['Y1.wav', 'Y1.wav']
    assert benchmark.items[1].target == tmp_path / 'segment-1.wav'
    assert benchmark.items[1].mixture == tmp_path / 'mixture-1.wav'


def test_vggsound_names_its_files(tmp_path):
    header = 'file_id,mix_wav,s0_wav,s0_text,s1_wav,s1_text'
    rows = [['a+++b', 'data/mix_wav/a+++b.wav', 'data/s0_wav/a+++b.wav', 'playing accordion', 'x', 'sea lion barking']]
    write_table(tmp_path / 'vggsound_eval.csv', header, [*rows, ['c', '', 'y', 'z', 'w', 'v']])
    benchmark = read_benchmark(tmp_path)
    [item] = benchmark.items
    assert (item.mixture, item.target) == (tmp_path / 'data/mix_wav/a+++b.wav', tmp_path / 'data/s0_wav/a+++b.wav')
    assert item.queries == {'label': 'playing accordion'}
    assert 'line 3: a field is empty' in benchmark.bad_rows[0].message


def test_clotho_may_name_a_column_twice(tmp_path):
    header = 'idx,caption,src_wav,noise_wav1,noise_wav1'
    make_numbered(tmp_path, 'clotho_eval.csv', header, lambda i, kind: [f'{kind}, outdoors'])
    benchmark = read_benchmark(tmp_path)
    assert (benchmark.name, len(benchmark.items), benchmark.bad_rows) == ('clotho', 4, ())
    assert queries(benchmark, 'caption')[2] == 'whistle, outdoors'


@pytest.mark.parametrize('name', ['music', 'esc50'])
def test_labels_are_classes(tmp_path, name):
    make_numbered(tmp_path, f'{name}_eval.csv', 'idx,caption,src_wav,noise_wav', lambda i, kind: [kind])
    benchmark = read_benchmark(tmp_path)
    assert benchmark.name == name
    assert [item.label for item in benchmark.items] == queries(benchmark, 'label') == KINDS
    assert benchmark.statistic == {'music': 'mean of class means', 'esc50': 'mean'}[name]


def test_voicebank_pairs_by_name(tmp_path):
    clean, noisy = tmp_path / 'clean_testset_wav', tmp_path / 'noisy_testset_wav' / 'noisy_testset_wav'
    write_pair(clean / 'p232_001.wav', noisy / 'p232_001.wav', 'hiss', 'whistle')
    (clean / 'p257_001.wav').touch()
    benchmark = read_benchmark(tmp_path)
    assert [item.name for item in benchmark.items] == ['p232_001', 'p257_001']
    assert queries(benchmark, 'label') == ['speech', 'speech']
    assert benchmark.items[1].mixture == noisy / 'p257_001.wav'  # its absence is reported when the audio is read
    assert benchmark.speech


def test_any_folder_with_a_table(tmp_path):
    rows = [['a.wav', 'b.wav', 'a dog'], ['sub/c.wav', '', 'rain'], ['', 'd.wav', 'x'], ['a.wav', 'b.wav', 'a dog']]
    write_table(tmp_path / 'own.csv', 'mixture,target,query', rows)
    benchmark = read_benchmark(tmp_path)
    assert benchmark.name == 'csv'
    assert [item.name for item in benchmark.items] == ['a.wav', 'sub/c.wav', 'a.wav (2)']
    assert benchmark.items[1].target is None
    assert len(benchmark.bad_rows) == 1
    assert read_benchmark(tmp_path / 'own.csv').items == benchmark.items
    write_table(tmp_path / 'other.csv', 'mixture,target,query', rows)
    with pytest.raises(DataError, match=r'expected one CSV .* found other\.csv, own\.csv'):
        read_benchmark(tmp_path)


def test_dcase_rows(tmp_path):
    rows = [['a', 'b', '-5', 'a dog'], ['a', 'b', 'loud', 'a dog'], ['a', 'b', '5'], ['', 'b', 5, 'c']]
    write_table(tmp_path / 'lass_synthetic_validation.csv', 'source,noise,snr,query', rows)
    benchmark = read_benchmark(tmp_path)
    [item] = benchmark.items
    assert (item.target, item.noise, item.snr_db) == (tmp_path / 'a.wav', tmp_path / 'b.wav', -5.0)
    assert [left.reason for left in benchmark.bad_rows] == ['bad row'] * 3
    assert benchmark.sample_rate == 16000


def test_tables_are_found_where_the_original_has_them(tmp_path):
    make_music(tmp_path / 'evaluation' / 'data' / 'music')
    metadata = tmp_path / 'evaluation' / 'metadata'
    metadata.mkdir()
    (tmp_path / 'evaluation' / 'data' / 'music' / 'music_eval.csv').rename(metadata / 'music_eval.csv')
    folder = tmp_path / 'evaluation' / 'data' / 'music'
    assert len(read_benchmark(folder).items) == 4
    for root in (tmp_path / 'evaluation', tmp_path / 'evaluation' / 'data'):
        assert find_benchmarks(root) == {'music': folder}
    beside = tmp_path / 'evaluation' / 'data' / 'music_eval.csv'
    (metadata / 'music_eval.csv').rename(beside)
    assert len(read_benchmark(folder).items) == 4
    beside.rename(metadata / 'music_eval.csv')
    metadata.rename(tmp_path / 'tables')
    with pytest.raises(DataError, match='--metadata'):
        read_benchmark(folder)
    assert len(read_benchmark(folder, metadata=tmp_path / 'tables').items) == 4
    with pytest.raises(DataError, match='has none of the sub-folders audioset, audiocaps'):
        find_benchmarks(tmp_path / 'tables')


@pytest.mark.parametrize('suffix', ['.flac', '.ogg'])
def test_other_formats_than_wav(tmp_path, suffix):
    make_music(tmp_path, suffix=suffix)
    assert read_benchmark(tmp_path).items[0].target == tmp_path / f'segment-0{suffix}'
    assert len(evaluate(BandSeparator(), read_benchmark(tmp_path), Options(shuffled=False)).items) == 4


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (None, 'No such file'),
        (b'', 'no column idx and caption'),
        (b'idx,text\n0,a dog\n', 'no column caption'),
        (b'idx,caption\n', 'no usable row'),
        (b'idx,caption\n0,\n', 'no usable row.*line 2'),
        (b'idx,caption\n0,\xff\xfe\n', r'music_eval\.csv: cannot be read as utf-8'),
        (b'idx,caption\n0,a dog\x00\n', 'no such file|NUL'),
    ],
)
def test_damaged_tables_are_refused_in_one_line(tmp_path, content, says):
    if content is not None:
        (tmp_path / 'music_eval.csv').write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        evaluate(BandSeparator(), read_benchmark(tmp_path, 'music'))
    assert '\n' not in str(caught.value)


def test_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / 'music_eval.csv').write_text('idx,caption\n0,a dog\n', 'utf-8-sig')
    benchmark = read_benchmark(tmp_path)
    assert benchmark.bad_rows == ()
    assert benchmark.items[0].mixture == tmp_path / 'mixture-0.wav'


def test_names(tmp_path):
    with pytest.raises(ConfigError, match=r'unknown benchmark .x.: audioset, .* csv'):
        read_benchmark(tmp_path, 'x')
    with pytest.raises(DataError, match=r'not a benchmark: it holds none of audiocaps_eval\.csv'):
        detect(tmp_path)


def test_a_table_takes_precedence_over_the_name_of_the_folder(tmp_path):
    write_table(tmp_path / 'music' / 'table.csv', 'mixture,target,query', [['a.wav', 'b.wav', 'a dog']])
    assert read_benchmark(tmp_path / 'music').name == 'csv'
    write_table(tmp_path / 'music' / 'music_eval.csv', 'idx,caption', [[0, 'tuba']])
    assert read_benchmark(tmp_path / 'music').name == 'music'
    (tmp_path / 'esc50' / 'metadata').mkdir(parents=True)
    write_table(tmp_path / 'esc50' / 'notes.csv', 'a,b', [])
    write_table(tmp_path / 'esc50' / 'metadata' / 'esc50_eval.csv', 'idx,caption', [[0, 'rain']])
    assert read_benchmark(tmp_path / 'esc50').name == 'esc50'


def test_folders_that_are_not_benchmarks_are_refused(tmp_path):
    for find in (detect, find_benchmarks):
        with pytest.raises(DataError, match=r'nowhere: not a benchmark: no such folder$'):
            find(tmp_path / 'nowhere')
    with pytest.raises(DataError, match=r'own\.csv: not a benchmark: no such file$'):
        detect(tmp_path / 'own.csv')
    with pytest.raises(DataError, match=r'no folders class_id=K \(AudioSet\), and no table mixture,target,query$'):
        detect(tmp_path)
    build_small(tmp_path / 'music', 2)  # the folder's name does not make it one
    with pytest.raises(DataError, match='is a dataset of data_prep for training; give a benchmark'):
        detect(tmp_path / 'music')


def test_part_of_a_benchmark(tmp_path):
    make_music(tmp_path)
    benchmark = read_benchmark(tmp_path, most_items=3)
    assert [item.name for item in benchmark.items] == ['0', '1', '2']
    assert any('3 of 4 items' in note for note in benchmark.notes)
    assert any('the complete benchmark has 5004' in note for note in benchmark.notes)
    assert len(read_benchmark(tmp_path, most_items=9).items) == 4


def test_one_query_for_all_items_and_own_captions(tmp_path):
    make_music(tmp_path)
    assert queries(read_benchmark(tmp_path, query='a tuba'), 'given') == ['a tuba'] * 4
    write_table(tmp_path / 'new.csv', 'idx,caption', [['7', 'x']])
    with pytest.raises(DataError, match='none of its idx is in the benchmark'):
        read_benchmark(tmp_path, 'music', captions=tmp_path / 'new.csv')
    with pytest.raises(DataError, match=r'nowhere\.csv: No such file'):
        read_benchmark(tmp_path, 'music', captions=tmp_path / 'nowhere.csv')


def test_other_data_in_the_layout_of_a_benchmark_gets_neither_its_title_nor_its_scores(tmp_path, monkeypatch):
    make_music(tmp_path)
    found = read_benchmark(tmp_path)
    assert (found.name, found.title, found.published) == ('music', 'data in the layout of music', ())
    assert any('--benchmark music adds its published scores' in note for note in found.notes)
    assert 'MUSIC' not in str(found)
    named = read_benchmark(tmp_path, 'music')
    assert (named.title, named.published) == ('MUSIC', PROTOCOLS['music'].published)
    for changes, is_music in (
        ({'num_items': 4, 'num_classes': 3}, True),
        ({'num_items': 4, 'num_classes': 10}, False),
        ({'num_items': 5, 'num_classes': 3}, False),
    ):
        monkeypatch.setitem(PROTOCOLS, 'music', dataclasses.replace(PROTOCOLS['music'], **changes))
        found = read_benchmark(tmp_path)
        assert bool(found.published) == is_music
        assert (found.title == 'MUSIC') == is_music
        assert read_benchmark(tmp_path, most_items=2).title == found.title


def test_audioset_is_known_by_its_classes(tmp_path, monkeypatch):
    write_table(tmp_path / 'class_labels_indices.csv', 'index,mid,display_name', CLASSES)
    write_pair(tmp_path / 'class_id=0' / 'a,source.wav', tmp_path / 'class_id=0' / 'a,mixture.wav', 'hiss', 'whistle')
    assert read_benchmark(tmp_path).title == 'data in the layout of audioset'
    monkeypatch.setitem(PROTOCOLS, 'audioset', dataclasses.replace(PROTOCOLS['audioset'], num_classes=3))
    assert read_benchmark(tmp_path).title == 'AudioSet'


def test_published_scores_are_those_of_the_originals_readme():
    scores = {name: protocol.published[0].scores for name, protocol in PROTOCOLS.items() if protocol.published}
    assert scores['audiocaps'] == {'SDRi': 8.220, 'SI-SDR': 7.189}
    assert np.mean([scores[n]['SDRi'] for n in ('audioset', 'vggsound', 'audiocaps', 'clotho', 'music', 'esc50')]) == (
        pytest.approx(8.7502, abs=1e-3)
    )
