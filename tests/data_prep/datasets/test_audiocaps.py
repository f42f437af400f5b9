import json

import numpy as np
import pytest
from support.small_media import noise, write_sound, write_video

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.audiocaps import read_audiocaps

HEADER = 'audiocap_id,youtube_id,start_time,caption'
TRAIN = [
    '91139,r1nicOVtvkQ,130,A woman talks nearby as water pours',
    '58146,UDGBjjwyaqE,20,"Rustling occurs, ducks quack"',
    '103549,Yabcdefghij,0,"Constant rattling\nand sharp vibrations"',
]
# Rows of one clip lie apart from each other in the published table.
TEST = [
    '1,7fmOlUlwoNg,20,Constant rattling noise',
    '2,6BJ455B1aAs,0,A rocket flies by',
    '3,7fmOlUlwoNg,20,Vibrations and rattling',
    '4,6BJ455B1aAs,0,An explosion',
    '5,7fmOlUlwoNg,20,Constant rattling noise',
    '4,6BJ455B1aAs,0,An explosion',  # a row that is there twice
]


def tree(folder, tables, *, ending='\r\n', encoding='utf-8', place='dataset'):
    """The tables as the repository has them: v1 in `dataset`, with CRLF."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    for split, rows in tables.items():
        text = ending.join([HEADER, *rows, ''])
        (folder / place / f'{split}.csv').write_bytes(text.encode(encoding))
    return folder


def listed(files):
    return {entry.id: (entry.path, entry.captions) for entry in files.entries}


def left_out(files):
    return {clip.id: clip.reason for clip in files.left_out}


@pytest.mark.parametrize(('ending', 'encoding'), [('\r\n', 'utf-8'), ('\n', 'utf-8-sig')])
def test_a_training_clip_has_one_caption(tmp_path, ending, encoding):
    tree(tmp_path, {'train': TRAIN}, ending=ending, encoding=encoding)
    for name in ('r1nicOVtvkQ.wav', '58146.flac', 'Yabcdefghij.wav'):
        write_sound(tmp_path / 'train' / name, 0.1)
    files = read_audiocaps(tmp_path)
    assert listed(files) == {
        'r1nicOVtvkQ_130': ('train/r1nicOVtvkQ.wav', ('A woman talks nearby as water pours',)),
        'UDGBjjwyaqE_20': ('train/58146.flac', ('Rustling occurs, ducks quack',)),
        'Yabcdefghij_0': ('train/Yabcdefghij.wav', ('Constant rattling and sharp vibrations',)),
    }
    assert files.left_out == []
    assert all(entry.labels == () and entry.start == 0 and entry.seconds is None for entry in files.entries)


def test_rows_of_a_clip_are_its_captions(tmp_path):
    tree(tmp_path, {'test': TEST})
    write_sound(tmp_path / 'audio/Y7fmOlUlwoNg.wav', 0.1)
    write_sound(tmp_path / 'audio/4.wav', 0.1)  # by the second of its two ids
    assert listed(read_audiocaps(tmp_path, 'test')) == {
        '7fmOlUlwoNg_20': (
            'audio/Y7fmOlUlwoNg.wav',
            ('Constant rattling noise', 'Vibrations and rattling', 'Constant rattling noise'),
        ),
        '6BJ455B1aAs_0': ('audio/4.wav', ('A rocket flies by', 'An explosion')),
    }


@pytest.mark.parametrize(
    'name',
    [
        '91139.wav',
        'r1nicOVtvkQ.flac',
        'Yr1nicOVtvkQ.wav',
        'r1nicOVtvkQ_130.mp3',
        'Yr1nicOVtvkQ_130.m4a',
        'r1nicOVtvkQ_000130.mp4',
        'r1nicOVtvkQ_130.000_140.000.mp4',
    ],
)
def test_names_that_files_have(tmp_path, name):
    tree(tmp_path, {'train': TRAIN[:1]})
    (tmp_path / name).touch()
    assert listed(read_audiocaps(tmp_path))['r1nicOVtvkQ_130'][0] == name


def test_files_of_other_splits_are_not_taken(tmp_path):
    tree(tmp_path, {'train': TRAIN[:2], 'val': TRAIN[:1]})
    (tmp_path / 'audio/val').mkdir(parents=True)
    (tmp_path / 'audio/train').mkdir()
    (tmp_path / 'audio/val/r1nicOVtvkQ.wav').touch()
    (tmp_path / 'audio/train/UDGBjjwyaqE.wav').touch()
    files = read_audiocaps(tmp_path, 'train')
    assert list(listed(files)) == ['UDGBjjwyaqE_20']
    assert left_out(files) == {'r1nicOVtvkQ_130': 'missing'}
    assert listed(read_audiocaps(tmp_path, 'val'))['r1nicOVtvkQ_130'][0] == 'audio/val/r1nicOVtvkQ.wav'


def test_a_name_that_would_do_for_two_clips_is_not_taken(tmp_path):
    rows = ['7,r1nicOVtvkQ,10,a', '7,r1nicOVtvkQ,40,b', '8,UDGBjjwyaqE,20,c']
    tree(tmp_path, {'train': rows})
    for name in ('7.wav', 'r1nicOVtvkQ.wav', 'r1nicOVtvkQ_40.wav', '8.wav'):
        (tmp_path / name).touch()
    files = read_audiocaps(tmp_path)
    assert {clip: path for clip, (path, _) in listed(files).items()} == {
        'r1nicOVtvkQ_40': 'r1nicOVtvkQ_40.wav',
        'UDGBjjwyaqE_20': '8.wav',
    }
    assert left_out(files) == {'r1nicOVtvkQ_10': 'missing'}


def test_whole_videos_are_cut_at_start_time(tmp_path):
    tree(tmp_path, {'train': TRAIN[1:2]})
    write_sound(tmp_path / 'UDGBjjwyaqE.flac', 32, 8000)
    files = read_audiocaps(tmp_path, whole_videos=True)
    assert [(entry.start, entry.seconds) for entry in files.entries] == [(20.0, 10.0)]
    expected = noise(32, 8000, 'UDGBjjwyaqE.flac')[160000:240000]
    assert np.abs(files.read(0, 8000).audio - expected).max() < 1e-4


def test_versions(tmp_path):
    tree(tmp_path, {'train': TRAIN[:1]})
    other = tree(tmp_path, {'train': [row.lower() for row in TRAIN[:1]]}, place='dataset2.0') / 'dataset2.0/train.csv'
    (tmp_path / '91139.wav').touch()
    assert listed(read_audiocaps(tmp_path))['r1nicOVtvkQ_130'][1] == ('A woman talks nearby as water pours',)
    assert listed(read_audiocaps(tmp_path, captions=other))['r1nicovtvkq_130'][1][0].startswith('a woman')


def test_clips_without_captions_or_excluded_are_left_out(tmp_path):
    tree(tmp_path, {'train': [*TRAIN, '9,zzzzzzzzzzz,0," "']})
    for name in ('r1nicOVtvkQ', 'UDGBjjwyaqE', '103549', 'zzzzzzzzzzz'):
        (tmp_path / f'{name}.wav').touch()
    files = read_audiocaps(tmp_path, excluded=frozenset({'r1nicOVtvkQ', '103549'}))
    assert list(listed(files)) == ['UDGBjjwyaqE_20']
    assert left_out(files) == dict.fromkeys(('r1nicOVtvkQ_130', 'Yabcdefghij_0', 'zzzzzzzzzzz_0'), 'excluded')


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([], 'lists no clips'),
        (['1,r1nicOVtvkQ,soon,a'], 'line 2: expected a YouTube id and a start in seconds'),
        (['1,r1nicOVtvkQ,nan,a'], 'line 2: expected a YouTube id and a start in seconds'),
        (['1,,10,a'], 'line 2: expected a YouTube id'),
        (['1,r1nicOVtvkQ,10,rain, heavy'], 'line 2: more fields'),
        (['1,r1nicOVtvkQ,10'], 'line 2: fewer fields'),
    ],
)
def test_damaged_tables(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_audiocaps(tree(tmp_path, {'train': rows}))


def test_a_bad_row_is_left_out_and_the_others_are_not(tmp_path):
    rows = [*TRAIN, '1,,10,no id', '2,r1nicOVtvkQ,soon,no time', '3,r1nicOVtvkQ,10,rain, heavy']
    (tree(tmp_path, {'train': rows}) / 'UDGBjjwyaqE.wav').touch()
    files = read_audiocaps(tmp_path)
    assert list(listed(files)) == ['UDGBjjwyaqE_20']
    bad = [clip for clip in files.left_out if clip.reason == 'unreadable']
    last = ''.join(f'{row}\n' for row in TRAIN).count('\n') + 1  # one of them has two lines
    numbers = [last + n for n in (1, 2, 3)]
    assert sorted(clip.id for clip in bad) == [f'train.csv:{n}' for n in numbers]
    assert all(f'line {clip.id.split(":")[1]}: ' in clip.message for clip in bad)


def test_what_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match='AudioCaps has train, val and test'):
        read_audiocaps(tmp_path, 'dev')
    with pytest.raises(DataError, match=r'no train\.csv in it: give --captions'):
        read_audiocaps(tmp_path)
    with pytest.raises(DataError, match='none of the 3 listed clips can be used; the first: r1nicOVtvkQ_130: no file'):
        read_audiocaps(tree(tmp_path, {'train': TRAIN}))


def test_build(tmp_path, capsys):
    """From the command line to records, with every fault."""
    source = tmp_path / 'AudioCaps'
    rows = [*TEST, '6,gone0000000,3,gone', '7,empty000000,3,empty', '8,stereo00000,3,two channels', '9,out00000000,3,x']
    tree(source, {'test': rows})
    write_sound(source / 'test/Y7fmOlUlwoNg.wav', 0.5, 44100, channels=2, subtype='PCM_24')
    write_sound(source / 'test/6BJ455B1aAs.flac', 0.5, 8000)
    write_sound(source / 'test/8.wav', 0.25, 16000, channels=2)
    (source / 'test/7.wav').touch()
    write_sound(source / 'test/out00000000.wav', 0.1)
    (tmp_path / 'ids.json').write_text(json.dumps(['Yout00000000.wav']))
    out = tmp_path / 'out'
    flags = ['--out', str(out), '--split', 'test', '--sample-rate', '16000', '--jobs', '1']
    assert main(['build', 'audiocaps', '--source', str(source), *flags, '--exclude', str(tmp_path / 'ids.json')]) == 0
    shards = Shards(out, 'test')
    records = [shards.read(index) for index in range(len(shards))]
    assert [(record.id, len(record.captions), record.num_samples) for record in records] == [
        ('7fmOlUlwoNg_20', 3, 8000),
        ('6BJ455B1aAs_0', 2, 8000),
        ('stereo00000_3', 1, 4000),
    ]
    expected = noise(0.25, 16000, '8.wav', 2).mean(axis=1)
    assert np.abs(shards.waveform(2) - expected).max() < 1e-4
    report = (out / 'splits/test-skipped.csv').read_text()
    reasons = {line.split(',')[0]: line.split(',')[1] for line in report.splitlines()[1:]}
    assert reasons == {'gone0000000_3': 'missing', 'empty000000_3': 'unreadable', 'out00000000_3': 'excluded'}
    assert main(['build', 'audiocaps', '--source', str(source), *flags[:2], '--split', 'dev']) == 2
    assert main(['build', 'audiocaps', '--source', str(tmp_path / 'nowhere'), *flags]) == 1
    assert 'Traceback' not in capsys.readouterr().err


def test_videos(tmp_path):
    pytest.importorskip('av')
    tree(tmp_path, {'train': TRAIN[:1]})
    write_video(tmp_path / 'r1nicOVtvkQ.mp4', 1.0)
    write_sound(tmp_path / 'r1nicOVtvkQ.flac', 1.0)
    assert listed(read_audiocaps(tmp_path))['r1nicOVtvkQ_130'][0] == 'r1nicOVtvkQ.flac'
    files = read_audiocaps(tmp_path, frames=2)
    clip = files.read(0, 16000)
    assert clip.source == 'audiocaps:r1nicOVtvkQ.mp4'
    assert [frame[:2] for frame in clip.frames] == [b'\xff\xd8'] * 2
    assert 15000 < len(clip.audio) < 17500
