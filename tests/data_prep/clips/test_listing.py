import json
import os
import unicodedata

import pytest

from audiosep_jax.errors import ConfigError, DataError, LeftOut
from data_prep.clips.base import Entry
from data_prep.clips.listing import (
    delimiter_of,
    distinct,
    files_or_refuse,
    find_file,
    first_of,
    list_media,
    read_json_lines,
    read_table,
    read_text,
    refuse_wrong_table,
    stem_of,
)


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def table(path, text, encoding='utf-8'):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ('header', 'delimiter'),
    [('', ','), ('wav', ','), ('\n\nwav,caption', ','), ('wav;caption\na,b,c', ';'), ('wav\tcaption;x\tid', '\t')],
)
def test_the_delimiter_is_the_header_s(header, delimiter):
    assert delimiter_of(header) == delimiter


def test_lines_of_json(tmp_path):
    path = table(tmp_path / 't.jsonl', '\ufeff{"a": "x\u2028y"}\r\n\r\n{"a": 2}\n[3]\n')
    bad = []
    assert read_json_lines(path, bad=bad) == [(1, {'a': 'x\u2028y'}), (3, {'a': 2})]
    assert [clip.id for clip in bad] == ['t.jsonl:4']
    with pytest.raises(DataError, match='line 4: expected an object, got a list'):
        read_json_lines(path)


@pytest.mark.parametrize('ending', ['\n', '\r\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_tables_of_any_system(tmp_path, ending, encoding):
    text = ending.join(['id, caption ', 'a,"rain, heavy"', '', 'ü,"two', 'lines"', ''])
    rows = read_table(table(tmp_path / 't.csv', text, encoding), ['id', 'caption'])
    assert [(row['id'], row['caption'].split()) for _, row in rows] == [
        ('a', ['rain,', 'heavy']),
        ('ü', ['two', 'lines']),
    ]
    assert [line for line, _ in rows] == [2, 5]


def test_encodings_are_tried_in_order(tmp_path):
    both = ('utf-8-sig', 'latin-1')
    assert read_text(table(tmp_path / 'a', 'Über', 'latin-1'), both) == 'Über'
    assert read_text(table(tmp_path / 'a', 'Über', 'utf-8'), both) == 'Über'
    with pytest.raises(DataError, match=r'cannot be read as utf-8 text \(at byte \d+\): save it as UTF-8$'):
        read_text(table(tmp_path / 'a', 'Über', 'latin-1'))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', "no column 'id': expected id,caption, found $"),
        ('id;caption\na;b\n', "no column 'id': expected id,caption, found id;caption"),
        ('id,text\na,b\n', "no column 'caption'"),
        ('id,caption\na,rain, heavy\n', 'line 2: more fields than the header has; a text with a comma needs quotes'),
        ('id,caption\na,b\nc\n', 'line 3: fewer fields'),
        ('id,caption\na,"b\n', 'not valid CSV'),
        ('version https://git-lfs.github.com/spec/v1\noid sha256:44\n', 'Git LFS'),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_table(table(tmp_path / 't.csv', text), ['id', 'caption'])
    assert '\n' not in str(caught.value)


def test_loose_tables_need_only_their_columns(tmp_path):
    path = table(tmp_path / 't.csv', 'id,tags,note\na,x;y,free, text\nb,z\n')
    assert [(row['id'], row['tags']) for _, row in read_table(path, ['id', 'tags'], loose=True)] == [
        ('a', 'x;y'),
        ('b', 'z'),
    ]
    with pytest.raises(DataError, match='line 3: fewer'):
        read_table(path, ['id', 'note'], loose=True)


def test_captions_are_lines():
    assert distinct(['a  dog\nbarks ', '', ' ', 'a dog barks', 'rain']) == ('a dog barks', 'rain')
    half = json.loads('"half \\ud83d"')
    assert distinct([half]) == ('half ?',)


def test_stems():
    assert [stem_of(name) for name in ('a.wav', 'a.b.FLAC', '12.5 kHz', 'a.txt')] == ['a', 'a.b', '12.5 kHz', 'a.txt']
    assert stem_of(unicodedata.normalize('NFD', 'ü.wav')) == unicodedata.normalize('NFC', 'ü')


def test_files_are_listed_at_any_depth_in_order_of_preference(tmp_path):
    touch(*(tmp_path / name for name in ('b/x.wav', 'a/x.mp4', 'a/x.mp3', 'c/x.flac', 'd/e/y.WAV', 'z.wav', 'a/n.txt')))
    touch(tmp_path / '._z.wav', tmp_path / '__MACOSX/q.wav', tmp_path / '.cache/r.wav', tmp_path / 'test/t.wav')
    (tmp_path / 'folder.wav').mkdir()
    listed = list_media(tmp_path, left_out=[], skip={'test'})
    assert [path for stem, path in listed if stem == 'x'] == ['c/x.flac', 'b/x.wav', 'a/x.mp3', 'a/x.mp4']
    assert first_of(listed) == {'x': 'c/x.flac', 'y': 'd/e/y.WAV', 'z': 'z.wav'}
    assert first_of(list_media(tmp_path, left_out=[], video_first=True))['x'] == 'a/x.mp4'


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / 'sounds/a.wav')
    (tmp_path / 'data').mkdir()
    os.symlink(tmp_path / 'sounds', tmp_path / 'data/audio')
    os.symlink(tmp_path, tmp_path / 'sounds/up')
    os.symlink(tmp_path / 'nowhere.wav', tmp_path / 'data/broken.txt')
    assert first_of(list_media(tmp_path / 'data', left_out=[])) == {'a': 'audio/a.wav'}
    with pytest.raises(DataError, match='cannot be listed'):
        list_media(tmp_path / 'nowhere', left_out=[])


def test_metadata_is_found_one_level_deeper(tmp_path):
    touch(tmp_path / 'second/t.csv', tmp_path / 'first/t.csv', tmp_path / 'deep/er/u.csv')
    assert find_file(tmp_path, 't.csv') == tmp_path / 'first/t.csv'
    assert find_file(tmp_path, 't.csv', folders=('second',)) == tmp_path / 'second/t.csv'
    assert find_file(tmp_path, 'er/u.csv', 'u.csv') == tmp_path / 'deep/er/u.csv'
    assert find_file(tmp_path, 'u.csv') is None
    with pytest.raises(DataError, match='cannot be listed'):
        find_file(tmp_path / 'nowhere', 't.csv')


def test_links_to_themselves_are_not_folders(tmp_path):
    touch(tmp_path / 'a.wav', tmp_path / 'meta/t.csv')
    for name in ('x.wav', 'folder'):
        (tmp_path / name).symlink_to(tmp_path / name)
    assert list_media(tmp_path, left_out=[]) == [('a', 'a.wav'), ('x', 'x.wav')]  # which will be missing
    assert find_file(tmp_path, 't.csv') == tmp_path / 'meta/t.csv'


def test_names_that_are_not_utf8_are_left_out(tmp_path):
    odd = os.fsdecode(b'caf\xe9')
    touch(tmp_path / 'a.wav', tmp_path / odd / 'b.wav', tmp_path / f'{odd}.wav', tmp_path / f'{odd}.txt')
    left_out = []
    assert list_media(tmp_path, left_out=left_out) == [('a', 'a.wav')]
    assert [(clip.id, clip.reason) for clip in left_out] == [
        ('caf\\udce9', 'unreadable'),
        ('caf\\udce9.wav', 'unreadable'),
    ]
    assert all('rename it' in clip.message.encode().decode() for clip in left_out)


def test_bad_rows_are_left_out_unless_most_are_bad(tmp_path):
    bad = []
    rows = read_table(table(tmp_path / 't.csv', 'id,caption\na,b\nc\nd,e,f\ng,h\n'), ['id', 'caption'], bad=bad)
    assert [row['id'] for _, row in rows] == ['a', 'g']
    assert [(clip.id, clip.reason) for clip in bad] == [('t.csv:3', 'unreadable'), ('t.csv:4', 'unreadable')]
    assert 't.csv: line 3: fewer fields' in bad[0].message
    refuse_wrong_table(bad, 2)
    with pytest.raises(DataError, match='line 3: fewer fields'):
        refuse_wrong_table(bad, 1)


def test_a_negative_number_of_pictures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='--frames -1'):
        files_or_refuse([Entry('s', 's.wav', ('x',))], tmp_path, [], 'kind', -1)


def test_nothing_to_build_from_says_why(tmp_path):
    with pytest.raises(DataError, match='none of the 1 listed clips can be used; the first: a: gone'):
        files_or_refuse([], tmp_path, [LeftOut('a', 'missing', 'a: gone')], 'kind')
    assert len(files_or_refuse([Entry('a', 'a.wav', ('x',))], tmp_path, [], 'kind')) == 1
