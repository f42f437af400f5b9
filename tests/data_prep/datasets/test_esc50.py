import numpy as np
import pytest
import soundfile

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import AudioFileError, ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.esc50 import read_esc50

HEADER = 'filename,fold,target,category,esc10,src_file,take\n'
ROWS = [
    '1-100032-A-0.wav,1,0,dog,True,100032,A',
    '1-100038-A-14.wav,1,14,chirping_birds,False,100038,A',
    '2-100210-A-36.wav,2,36,vacuum_cleaner,False,100210,A',
    '5-9032-A-0.wav,5,0,dog,True,9032,A',
]
NAMES = [row.split(',')[0] for row in ROWS]
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 2205)


def tree(folder, rows=ROWS, *, encoding='utf-8', ending='\n', files=NAMES):
    """ESC-50 as its authors publish it, its clips shorter."""
    (folder / 'meta').mkdir(parents=True)
    (folder / 'audio').mkdir()
    text = (HEADER + '\n'.join(rows) + '\n').replace('\n', ending)
    (folder / 'meta' / 'esc50.csv').write_bytes(text.encode(encoding))
    for name in files:
        soundfile.write(folder / 'audio' / name, NOISE, 44100)
    return folder


@pytest.mark.parametrize(('encoding', 'ending'), [('utf-8', '\n'), ('utf-8-sig', '\r\n')])
def test_a_clip_is_captioned_with_its_category(tmp_path, encoding, ending):
    files = read_esc50(tree(tmp_path, encoding=encoding, ending=ending))
    assert [entry.id for entry in files.entries] == NAMES
    captions = [('dog',), ('chirping birds',), ('vacuum cleaner',), ('dog',)]
    assert [entry.captions for entry in files.entries] == captions == [entry.labels for entry in files.entries]
    assert files.left_out == []
    assert files.read(1, 44100).audio.shape == (2205,)


@pytest.mark.parametrize(
    'place', ['audio/{name}', 'audio/audio/{name}', 'audio/audio/44100/{name}', 'audio/audio/16000/{name}']
)
@pytest.mark.parametrize('nested', ['', 'esc-50'])
def test_the_mirror_on_kaggle_is_found(tmp_path, nested, place):
    """The table is beside the sounds, which are in nested folders."""
    folder = tmp_path / nested
    for name in NAMES:
        path = folder / place.format(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, NOISE, 44100)
    (folder / 'esc50.csv').write_text(HEADER + '\n'.join(ROWS) + '\n')
    files = read_esc50(tmp_path)
    assert [(entry.id, entry.path) for entry in files.entries] == [(name, place.format(name=name)) for name in NAMES]
    assert files.entries[1].captions == ('chirping birds',)
    assert files.read(1, 44100).audio.shape == (2205,)


def test_of_several_copies_the_one_at_the_full_rate_is_taken(tmp_path):
    tree(tmp_path)
    for rate in (16000, 44100):
        (tmp_path / f'audio/audio/{rate}').mkdir(parents=True)
        soundfile.write(tmp_path / f'audio/audio/{rate}' / NAMES[0], NOISE, rate)
    assert read_esc50(tmp_path).entries[0].path == f'audio/{NAMES[0]}'
    (tmp_path / 'audio' / NAMES[0]).unlink()
    assert read_esc50(tmp_path).entries[0].path == f'audio/audio/44100/{NAMES[0]}'
    (tmp_path / 'audio/audio/44100' / NAMES[0]).unlink()
    assert read_esc50(tmp_path).entries[0].path == f'audio/audio/16000/{NAMES[0]}'


def test_folds_choose(tmp_path):
    tree(tmp_path / 'ESC-50-master')
    assert [entry.id for entry in read_esc50(tmp_path, folds=(5, 2)).entries] == NAMES[2:]
    for folds in ((), (0,), (1, 6)):
        with pytest.raises(ConfigError, match='folds 1 to 5'):
            read_esc50(tmp_path, folds=folds)


def test_missing_files_are_left_out_and_only_of_the_folds_asked_for(tmp_path):
    files = read_esc50(tree(tmp_path, files=NAMES[:1]), folds=(1, 2))
    assert [entry.id for entry in files.entries] == NAMES[:1]
    assert [(clip.id, clip.reason) for clip in files.left_out] == [(name, 'missing') for name in NAMES[1:3]]
    with pytest.raises(DataError, match='none of the 1 listed clips can be used'):
        read_esc50(tmp_path, folds=(5,))


def test_a_file_listed_twice_is_one_clip(tmp_path):
    rows = [ROWS[0], ROWS[0], ROWS[0].replace('dog', 'crow')]
    files = read_esc50(tree(tmp_path, rows))
    assert [(entry.id, entry.captions) for entry in files.entries] == [(NAMES[0], ('dog and crow',))]
    assert files.entries[0].labels == ('dog', 'crow')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', "no column 'filename'"),
        ('filename,fold\na.wav,1\n', "no column 'category'"),
        (HEADER + 'a.wav,6,0,dog,True,1,A\n', 'line 2: expected a file name, a fold of 1 to 5'),
        (HEADER + 'a.wav\n', 'line 2: fewer fields'),
        (HEADER + '../a.wav,1,0,dog,True,1,A\n', 'line 2: expected a file name'),
        (HEADER + 'a.wav,1,0,"dog\n', 'not valid CSV'),
        (HEADER + 'sirène.wav,1,0,siren,True,1,A\n', 'cannot be read as utf-8'),
    ],
)
def test_damaged_metadata_is_one_clear_error(tmp_path, text, message):
    tree(tmp_path)
    (tmp_path / 'meta' / 'esc50.csv').write_bytes(text.encode('latin1'))
    with pytest.raises(DataError, match=message) as caught:
        read_esc50(tmp_path)
    assert '\n' not in str(caught.value)


def test_a_bad_row_is_left_out_and_the_others_are_not(tmp_path):
    files = read_esc50(tree(tmp_path, [*ROWS, 'a.wav', 'b.wav,6,0,dog,True,1,A', ROWS[0].replace(',1,', ',2,')]))
    assert [entry.id for entry in files.entries] == NAMES
    assert {clip.reason for clip in files.left_out} == {'unreadable'}
    numbers = [f'esc50.csv:{len(ROWS) + 1 + n}' for n in (1, 2, 3)]
    assert sorted(clip.id for clip in files.left_out) == numbers
    assert any('is in fold 1 and in 2' in clip.message for clip in files.left_out)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r'esc50\.csv: no such file'):
        read_esc50(tmp_path)
    (tree(tmp_path, files=()) / 'audio').rmdir()
    with pytest.raises(DataError, match='cannot be listed'):
        read_esc50(tmp_path)


def test_build(tmp_path, capsys):
    """With a clip missing, one empty, one in stereo of 24 bits and at another rate."""
    source, out = tree(tmp_path / 'ESC-50-master'), tmp_path / 'shards'
    (source / 'audio' / NAMES[0]).unlink()
    (source / 'audio' / NAMES[1]).write_bytes(b'')
    soundfile.write(source / 'audio' / NAMES[2], np.stack([NOISE, NOISE], axis=1), 48000, subtype='PCM_24')
    options = ['--source', str(source), '--out', str(out), '--jobs', '1', '--sample-rate', '16000']
    assert main(['build', 'esc50', *options, '--folds', '1', '--folds', '2']) == 0
    shards = Shards(out)
    record = shards.read(0)
    assert (len(shards), record.id, record.captions) == (1, NAMES[2], ('vacuum cleaner',))
    assert (record.source, record.labels) == (f'esc50:audio/{NAMES[2]}', ('vacuum cleaner',))
    assert shards.waveform(0).shape == (735,)
    skipped = (out / 'splits' / 'train-skipped.csv').read_text()
    assert NAMES[1] in skipped
    with pytest.raises(AudioFileError):
        read_esc50(source).read(0, 16000)
    assert main(['build', 'esc50', *options, '--folds', '7']) == 2
    assert 'folds 1 to 5' in capsys.readouterr().err
