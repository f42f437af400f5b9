import dataclasses
import json

import pytest
import tyro

from audiosep_jax.errors import DataError
from data_prep.exclusions import ExcludingOptions, is_excluded, read_all_ids, read_ids, youtube_id


def write(path, text, encoding='utf-8'):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('0bRUkLsttto', '0bRUkLsttto'),
        ('Y0bRUkLsttto.wav', '0bRUkLsttto'),
        ('0bRUkLsttto_30', '0bRUkLsttto'),
        ('0bRUkLsttto_000030.mp4', '0bRUkLsttto'),
        ('Y0bRUkLsttto_30.000_40.000.flac', '0bRUkLsttto'),
        ('-_0bRUkLstt_30000_40000', '-_0bRUkLstt'),
        ('0bRUkLsttto_30-40.wav', '0bRUkLsttto'),
        ('Y0bRUkLsttto-30-40', '0bRUkLsttto'),
        ('A [dog] barks [0bRUkLsttto].webm', '0bRUkLsttto'),
        ('Yabcdefghij', 'Yabcdefghij'),  # an id that begins with Y
        ('YYabcdefghij', 'Yabcdefghij'),
        ('Yabcdefghij_30', 'Yabcdefghij'),
        ('Y0bRUkLstt_30', None),
        ('117790', None),
        ('Santa Motor.wav', None),
        ('', None),
    ],
)
def test_youtube_ids_in_the_names_that_files_have(name, expected):
    assert youtube_id(name) == expected


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('ids.txt', '\ufeff# evaluation\r\n0bRUkLsttto\r\n\r\n 117790 \r\n'),
        ('ids.json', json.dumps(['Y0bRUkLsttto.wav', 117790])),
        ('ids.json', json.dumps({'AudioSet': ['Y0bRUkLsttto.wav'], 'FreeSound': ['117790'], 'note': 'ours'})),
        ('ids.json', json.dumps({'data': [{'id': 'Y0bRUkLsttto.wav'}, {'id': 117790}]})),
        ('ids.csv', 'index,id\n0,Y0bRUkLsttto.wav\n1,117790\n'),
        ('ids.CSV', '0bRUkLsttto_000030.mp4,dog\n117790.mp4,cat\n'),  # the older test.csv of VGGSound
        (
            'ids.csv',
            '# Segments csv\n# num\n# YTID, start\n0bRUkLsttto, 30.0, 40.0, "/m/1,/m/2"\n117790, 0, 10, "/m/1"\n',
        ),
    ],
)
def test_lists_in_all_their_forms(tmp_path, name, text):
    ids = read_ids(write(tmp_path / name, text))
    assert {'0bRUkLsttto', '117790'} <= ids
    assert not any('m/' in clip_id or clip_id in ('dog', '1', 'id', 'ours', '') for clip_id in ids)


def test_published_tables(tmp_path):
    audiocaps = write(
        tmp_path / 'test.csv', 'audiocap_id,youtube_id,start_time,caption\r\n103549,0bRUkLsttto,20,"a, b"\r\n'
    )
    assert read_ids(audiocaps) == {'0bRUkLsttto'}  # its own numbers would hit Freesound's
    assert read_ids(f'{audiocaps}:audiocap_id') == {'103549'}
    fsd50k = write(tmp_path / 'eval.csv', 'fname,labels,mids\n37199,"Electric_guitar,Music","/m/02sgy,/m/04rlf"\n')
    assert read_ids(fsd50k) == {'37199'}
    clotho = write(tmp_path / 'meta.csv', 'file_name,keywords,sound_id\nÜber.wav,a;b,1234\n', 'latin-1')
    assert read_ids(clotho) == {'Über.wav', 'Über', '1234'}
    vggsound = 'abcdefghijk,30,"dog, barking",train\nABCDEFGHIJK,40,cat,test\n'
    assert read_ids(write(tmp_path / 'vggsound.csv', vggsound)) == {'ABCDEFGHIJK'}
    assert read_all_ids([audiocaps, fsd50k]) == {'0bRUkLsttto', '37199'}
    assert read_all_ids([]) == frozenset()


def test_a_clip_is_excluded_by_any_of_its_names():
    ids = frozenset({'0bRUkLsttto', 'rain #2.wav', 'rain #2'})
    assert is_excluded(ids, 'other', '0bRUkLsttto')
    assert is_excluded(ids, '0bRUkLsttto.flac')
    assert is_excluded(ids, 'rain #2.flac')
    assert not is_excluded(ids, '0bRUkLsttt', '')


def test_every_list_on_the_command_line_counts(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Build(ExcludingOptions):
        def clips(self):
            raise NotImplementedError

    paths = [str(write(tmp_path / f'{name}.txt', name)) for name in 'abc']
    for flags in (['--exclude', *paths], ['--exclude', *paths[:2], '--exclude', paths[2]]):
        assert tyro.cli(Build, args=['--out', 'x', *flags]).excluded == {'a', 'b', 'c'}
    assert tyro.cli(Build, args=['--out', 'x']).excluded == frozenset()


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('ids.txt', '\n# none\n', 'holds no ids'),
        ('ids.csv', 'id\n', 'holds no ids'),
        ('ids.csv', 'id\n"a', 'line 2: not valid CSV'),
        ('ids.json', '[', 'not valid JSON'),
        ('ids.json', '{"a": 1}', 'expected a list of ids'),
        ('ids.json', '[["a"]]', 'expected ids'),
        ('ids.json', '[true]', 'expected ids'),
        ('ids.json', '[{"name": "a"}]', "without 'id'"),
        ('ids.xlsx', 'a', 'must be named .txt, .json or .csv'),
        ('ids.csv:name', 'id\na\n', "no column 'name': it has id"),
    ],
)
def test_what_is_no_list(tmp_path, name, text, message):
    write(tmp_path / name.split(':')[0], text)
    with pytest.raises(DataError, match=message) as caught:
        read_ids(tmp_path / name)
    assert '\n' not in str(caught.value)


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match='no such file'):
        read_ids(tmp_path / 'ids.txt')
