import unicodedata

import numpy as np
import pytest
from support.small_media import noise, write_sound

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.clotho import read_clotho

CAPTIONS = 'file_name,caption_1,caption_2,caption_3,caption_4,caption_5'
METADATA = 'file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license'
NAMES = ['Santa Motor.wav', 'métro, Gare du Nord #2.wav', 'rain.on roof 24.wav']


def quoted(name):
    return f'"{name}"' if ',' in name else name


def five(name):
    return [f'{quoted(name)},A {name[:4]} hums.,"Rain, and wind","Someone\nwalks",It rains.,It rains.']


def known(name, keywords='rain;Wind', sound_id='117790'):
    return f'{quoted(name)},{keywords},{sound_id},https://freesound.org/s/1,"[0, 881999]",Ünal,CC0'


def tree(
    folder, names=NAMES, part='development', *, files=None, rows=None, metadata=None, encoding='utf-8', ending='\r\n'
):
    """Clotho 2.1 as Zenodo has it, its archives unpacked; the metadata in Latin-1."""
    folder.mkdir(exist_ok=True)
    rows = [row for name in names for row in five(name)] if rows is None else rows
    text = ending.join([CAPTIONS, *rows, ''])
    (folder / f'clotho_captions_{part}.csv').write_bytes(text.encode(encoding))
    lines = [known(name) for name in names] if metadata is None else metadata
    if lines:
        text = ending.join([METADATA, *lines, ''])
        (folder / f'clotho_metadata_{part}.csv').write_bytes(text.encode('latin-1'))
    (folder / part).mkdir()
    for name in names if files is None else files:
        write_sound(folder / part / name, 0.1, 44100)
    return folder


@pytest.mark.parametrize(('ending', 'encoding'), [('\r\n', 'utf-8'), ('\n', 'utf-8-sig'), ('\n', 'latin-1')])
def test_five_captions_and_keywords(tmp_path, ending, encoding):
    files = read_clotho(tree(tmp_path, ending=ending, encoding=encoding))
    assert [(entry.id, entry.path) for entry in files.entries] == [(name, f'development/{name}') for name in NAMES]
    assert files.entries[0].captions == ('A Sant hums.', 'Rain, and wind', 'Someone walks', 'It rains.', 'It rains.')
    assert {entry.labels for entry in files.entries} == {('rain', 'Wind')}
    assert files.left_out == []
    assert all(entry.seconds is None for entry in files.entries)
    assert len(files.read(1, 44100).audio) == 4410


@pytest.mark.parametrize(
    ('split', 'part'),
    [('train', 'development'), ('val', 'validation'), ('test', 'evaluation'), ('evaluation', 'evaluation')],
)
def test_splits(tmp_path, split, part):
    for number, other in enumerate(('development', 'validation', 'evaluation')):
        tree(tmp_path, ['same.wav', f'{number}.wav'], other)
    assert read_clotho(tmp_path, split).entries[0].path == f'{part}/same.wav'


def test_folders_one_level_deeper(tmp_path):
    tree(tmp_path)
    for kind in ('captions', 'metadata'):
        path = tmp_path / f'clotho_{kind}_development.csv'
        (tmp_path / 'clotho_csv_files').mkdir(exist_ok=True)
        path.rename(tmp_path / 'clotho_csv_files' / path.name)
    (tmp_path / 'clotho_audio_files').mkdir()
    (tmp_path / 'development').rename(tmp_path / 'clotho_audio_files/development')
    files = read_clotho(tmp_path)
    assert files.entries[0].path == f'clotho_audio_files/development/{NAMES[0]}'
    assert files.entries[0].labels == ('rain', 'Wind')


def test_names_that_unpacking_has_changed(tmp_path):
    """Blanks before the suffix lost, Unicode decomposed as on a Mac, converted to FLAC."""
    names = ['two blanks .wav', NAMES[1], 'river.wav']
    there = ['two blanks.wav', unicodedata.normalize('NFD', NAMES[1]), 'river.flac']
    files = read_clotho(tree(tmp_path, names, files=there))
    assert [entry.id for entry in files.entries] == names
    assert [entry.path for entry in files.entries] == [f'development/{name}' for name in there]


def test_a_file_listed_twice_is_one_clip(tmp_path):
    rows = ['a.wav,1,2,3,4,5', 'a.wav,5,6,7,8,9']
    files = read_clotho(tree(tmp_path, ['a.wav'], rows=rows))
    assert [entry.captions for entry in files.entries] == [tuple('123456789')]


def test_labels_are_for_who_wants_them_and_has_them(tmp_path):
    assert read_clotho(tree(tmp_path), labels=False).entries[0].labels == ()
    (tmp_path / 'clotho_metadata_development.csv').unlink()
    assert read_clotho(tmp_path).entries[0].labels == ()


def test_what_is_left_out(tmp_path):
    names = ['gone.wav', 'silent.wav', 'mine.wav', 'theirs.wav', 'kept.wav']
    rows = [row for name in names for row in five(name) if name != 'silent.wav'] + ['silent.wav,,, ,,']
    metadata = [known('theirs.wav', sound_id='4711'), known('kept.wav', sound_id='Not found')]
    tree(tmp_path, names, rows=rows, metadata=metadata, files=names[1:])
    files = read_clotho(tmp_path, excluded=frozenset({'mine', '4711', 'Not found'}))
    assert [entry.id for entry in files.entries] == ['kept.wav']
    assert {clip.id: clip.reason for clip in files.left_out} == {
        'gone.wav': 'missing',
        'silent.wav': 'excluded',
        'mine.wav': 'excluded',
        'theirs.wav': 'excluded',
    }


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([], 'lists no clips'),
        (['a.wav,1,2,3,4'], 'line 2: fewer fields'),
        (['a.wav,1,2,3,4,5, 6'], 'line 2: more fields'),
        ([' ,1,2,3,4,5'], 'line 2: no file name'),
    ],
)
def test_damaged_captions(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_clotho(tree(tmp_path, rows=rows))


def test_a_bad_row_is_left_out_and_the_others_are_not(tmp_path):
    tree(
        tmp_path, rows=['a.wav,1,2,3,4,5', ' ,1,2,3,4,5', 'b.wav,1,2,3,4', 'c.wav,1,2,3,4,5'], files=['a.wav', 'c.wav']
    )
    files = read_clotho(tmp_path)
    assert [entry.id for entry in files.entries] == ['a.wav', 'c.wav']
    assert {clip.id: clip.reason for clip in files.left_out} == {
        f'clotho_captions_development.csv:{n}': 'unreadable' for n in (3, 4)
    }


def test_what_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match='Clotho has train'):
        read_clotho(tmp_path, 'dev')
    with pytest.raises(DataError, match=r'no clotho_captions_development\.csv in it'):
        read_clotho(tmp_path)
    (tmp_path / 'clotho_captions_development.csv').write_text('name,caption\na,b\n')
    with pytest.raises(DataError, match="no column 'file_name'"):
        read_clotho(tmp_path)
    with pytest.raises(DataError, match='none of the 3 listed clips can be used'):
        read_clotho(tree(tmp_path, files=()))


def test_build(tmp_path, capsys):
    """From the command line to records, with every fault."""
    source = tmp_path / 'clotho'
    tree(source, [*NAMES, 'stereo.wav', 'gone.wav', 'empty.wav'], 'evaluation', files=NAMES)
    write_sound(source / 'evaluation/stereo.wav', 0.2, 32000, channels=2, subtype='PCM_24')
    (source / 'evaluation/empty.wav').touch()
    (tmp_path / 'ids.txt').write_text(NAMES[2] + '\n')
    out = tmp_path / 'out'
    flags = ['--out', str(out), '--split', 'test', '--sample-rate', '32000', '--jobs', '1']
    exclude = ['--exclude', str(tmp_path / 'ids.txt')]
    assert main(['build', 'clotho', '--source', str(source), *flags, *exclude]) == 0
    shards = Shards(out, 'test')
    records = [shards.read(index) for index in range(len(shards))]
    assert [(record.id, len(record.captions), record.num_samples) for record in records] == [
        (NAMES[0], 5, 3200),
        (NAMES[1], 5, 3200),
        ('stereo.wav', 5, 6400),
    ]
    assert records[1].labels == ('rain', 'Wind')
    assert records[1].source == f'clotho:evaluation/{NAMES[1]}'
    assert np.abs(shards.waveform(2) - noise(0.2, 32000, 'stereo.wav', 2).mean(axis=1)).max() < 1e-4
    report = (out / 'splits/test-skipped.csv').read_text()
    reasons = {line.split(',')[0]: line.split(',')[1] for line in report.splitlines()[1:]}
    assert reasons == {'gone.wav': 'missing', 'empty.wav': 'unreadable', NAMES[2]: 'excluded'}
    assert main(['build', 'clotho', '--source', str(source), *flags[:2], '--split', 'train']) == 1
    assert 'clotho_captions_development.csv' in capsys.readouterr().err
