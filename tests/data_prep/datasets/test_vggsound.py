import pytest
from support.small_media import click, place_of_click, write_sound, write_video

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.vggsound import read_vggsound

NEW = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
_0a1b2c3d4e,120,"female speech, woman speaking",train
--0PQM4-hqg,45,"race car, auto racing",train
"""
OLD = """---g-f_I2yQ_000001.mp4,people marching
_0a1b2c3d4e_000120.mp4,"female speech, woman speaking"
"""


def corpus(folder, text, *files, name='vggsound.csv'):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding='utf-8')
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def found(files):
    return [(entry.id, entry.path, entry.labels) for entry in files.entries]


def test_the_list_without_a_header(tmp_path):
    names = ['---g-f_I2yQ_000001.mp4', 'train/--0PQM4-hqg_000030.mp4', '_0a1b2c3d4e_000120.wav']
    corpus(tmp_path, NEW, *names)
    files = read_vggsound(tmp_path)
    assert found(files) == [
        ('--0PQM4-hqg_000030', 'train/--0PQM4-hqg_000030.mp4', ('waterfall burbling',)),
        ('_0a1b2c3d4e_000120', '_0a1b2c3d4e_000120.wav', ('female speech, woman speaking',)),
    ]
    assert files.entries[0].captions == ('waterfall burbling', 'the sound of waterfall burbling')
    assert (files.entries[0].start, files.entries[0].seconds) == (0.0, None)
    assert [(clip.id, clip.reason) for clip in files.left_out] == [('--0PQM4-hqg_000045', 'missing')]
    assert [entry.id for entry in read_vggsound(tmp_path, 'test').entries] == ['---g-f_I2yQ_000001']


@pytest.mark.parametrize('split', ['train', 'test'])
def test_the_older_lists(tmp_path, split):
    corpus(tmp_path / 'data', OLD, name=f'{split}.csv')
    corpus(tmp_path, '', '---g-f_I2yQ_000001.mp4', 'v/_0a1b2c3d4e_000120.flac', name='other.csv')
    assert found(read_vggsound(tmp_path, split)) == [
        ('---g-f_I2yQ_000001', '---g-f_I2yQ_000001.mp4', ('people marching',)),
        ('_0a1b2c3d4e_000120', 'v/_0a1b2c3d4e_000120.flac', ('female speech, woman speaking',)),
    ]
    own = read_vggsound(tmp_path, split, table=tmp_path / 'data' / f'{split}.csv')
    assert found(own) == found(read_vggsound(tmp_path, split))


@pytest.mark.parametrize(
    'name', ['_000120.mp4', '_000120.wav', '.wav', '_120.flac', '_120_130.wav', '_120000_130000.flac', '_120.000.m4a']
)
def test_names_that_files_have(tmp_path, name):
    corpus(tmp_path, NEW, f'x/_0a1b2c3d4e{name}', '--0PQM4-hqg.wav')
    # Two clips of a video are not told apart by its id.
    assert [(e.id, e.path) for e in read_vggsound(tmp_path).entries] == [('_0a1b2c3d4e_000120', f'x/_0a1b2c3d4e{name}')]


def test_sounds_come_before_videos_unless_there_are_pictures_to_take(tmp_path):
    corpus(tmp_path, NEW, 'a/_0a1b2c3d4e_000120.mp4', 'b/_0a1b2c3d4e_000120.wav')
    assert read_vggsound(tmp_path).entries[0].path.endswith('.wav')
    with_pictures = read_vggsound(tmp_path, frames=2)
    assert with_pictures.entries[0].path.endswith('.mp4')
    assert with_pictures.frames == 2


def test_marks_line_ends_lost_quotes_and_repetitions(tmp_path):
    text = NEW.replace('"', '') + '_0a1b2c3d4e,120,female singing,train\n_0a1b2c3d4e,120,female singing,train\n\n'
    corpus(tmp_path, '', '_0a1b2c3d4e_000120.wav')
    (tmp_path / 'vggsound.csv').write_bytes(b'\xef\xbb\xbf' + text.replace('\n', '\r\n').encode())
    (entry,) = read_vggsound(tmp_path).entries
    assert entry.labels == ('female speech, woman speaking', 'female singing')
    assert entry.captions == (
        'female speech, woman speaking, female singing',
        'the sounds of female speech (woman speaking) and female singing',
    )


def test_a_bad_row_is_left_out_and_the_others_are_not(tmp_path):
    corpus(tmp_path, NEW + 'x,one,dog,train\n', '_0a1b2c3d4e_000120.wav')
    files = read_vggsound(tmp_path)
    assert len(files) == 1
    bad = [clip for clip in files.left_out if clip.reason == 'unreadable']
    assert [clip.id for clip in bad] == ['vggsound.csv:5']
    assert 'line 5: expected YTID' in bad[0].message


def test_exclusions(tmp_path):
    corpus(tmp_path, NEW, '--0PQM4-hqg_000030.mp4', '--0PQM4-hqg_000045.mp4', '_0a1b2c3d4e_000120.mp4')
    files = read_vggsound(tmp_path, excluded=frozenset({'_0a1b2c3d4e', '--0PQM4-hqg_000045'}))
    assert [entry.id for entry in files.entries] == ['--0PQM4-hqg_000030']
    assert {(clip.id, clip.reason) for clip in files.left_out} == {
        ('_0a1b2c3d4e_000120', 'excluded'),
        ('--0PQM4-hqg_000045', 'excluded'),
    }


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'lists no clips'),
        ('---g-f_I2yQ,1,people marching,test\n', "lists no clips of the split 'train'"),
        ('youtube_id,label\n', 'line 1: expected YTID,start,label,split'),
        ('x,1,train\n', 'line 1: expected'),
        ('x,one,dog,train\n', 'line 1: expected'),
        ('x,1,,train\n', 'line 1: expected'),
        (',1,dog,train\n', 'line 1: expected'),
        ('x,1,dog,valid\n', 'line 1: expected'),
        (NEW + 'x,1,"dog,train\n', 'not valid CSV'),
        (NEW, 'none of the 3 listed clips can be used'),
    ],
)
def test_lists_with_a_mistake_are_one_clear_error(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        read_vggsound(corpus(tmp_path, text))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_no_list_and_no_such_split(tmp_path):
    with pytest.raises(DataError, match=r'no vggsound\.csv or train\.csv in it: give --table'):
        read_vggsound(tmp_path)
    with pytest.raises(ConfigError, match='VGGSound has train and test'):
        read_vggsound(tmp_path, 'val')


def test_whole_videos_are_cut_at_their_start(tmp_path):
    corpus(tmp_path, '_0a1b2c3d4e,7,dog barking,train\n_0a1b2c3d4e,20,dog howling,train\n')
    write_sound(tmp_path / '_0a1b2c3d4e.wav', sound=click(24, 8000, 11.5), rate=8000)
    files = read_vggsound(tmp_path, whole_videos=True)
    assert [(e.id, e.start, e.seconds) for e in files.entries] == [
        ('_0a1b2c3d4e_000007', 7, 10.0),
        ('_0a1b2c3d4e_000020', 20, 10.0),
    ]
    clip = files.read(0, 16000)
    assert len(clip.audio) == 160000
    assert abs(place_of_click(clip.audio, 16000) - 4.5) < 0.001
    assert len(files.read(1, 16000).audio) == 64000  # the video ends


def test_build_with_pictures(tmp_path, capsys):
    source = corpus(tmp_path / 'vgg', NEW)
    write_video(source / 'video' / '--0PQM4-hqg_000030.mp4', 1)
    write_video(source / 'video' / '--0PQM4-hqg_000045.webm', 1, pictures=False)
    (source / 'video' / '_0a1b2c3d4e_000120.mp4').write_bytes(b'\0\0\0\x20ftypisom')
    command = ['build', 'vggsound', '--source', str(source), '--out', str(tmp_path / 'out'), '--jobs', '1']
    assert main([*command, '--frames', '2']) == 0
    shards = Shards(tmp_path / 'out', 'train')
    assert len(shards) == 1
    record = shards.read(0)
    assert (record.id, record.labels, len(record.frames)) == ('--0PQM4-hqg_000030', ('waterfall burbling',), 2)
    report = (tmp_path / 'out' / 'splits' / 'train-skipped.csv').read_text(encoding='utf-8')
    assert report.count('unreadable') == 2
    assert 'has no pictures' in report
    assert main([*command, '--split', 'valid']) == 2
    assert 'VGGSound has train and test' in capsys.readouterr().err
