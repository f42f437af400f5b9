import json

import numpy as np
import pytest
from support.small_media import click, place_of_click, write_sound, write_video

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.music import captions_of, read_music

SOLO = {'acoustic_guitar': ['-guitar0000', 'gone0000000'], 'erhu': ['_erhu000000'], 'tuba': []}
DUET = {'flute violin': ['duet0000000'], 'saxophone acoustic_guitar': ['Yduet000000']}


def lists(folder, solo=SOLO, duet=None):
    folder.mkdir(parents=True, exist_ok=True)
    for name, videos in (('solo', solo), ('duet', duet)):
        if videos is not None:
            text = json.dumps({'version': 1.0, 'videos': videos}, ensure_ascii=False)
            (folder / f'MUSIC_{name}_videos.json').write_text(text, encoding='utf-8')
    return folder


def pieces(files):
    return {entry.id: (entry.path, entry.start, entry.seconds) for entry in files.entries}


def test_videos_are_cut_into_pieces(tmp_path):
    lists(tmp_path, duet=DUET)
    guitar = write_sound(tmp_path / 'acoustic_guitar' / '-guitar0000.wav', sound=click(26, 8000, 23.5), rate=8000)
    write_sound(tmp_path / 'erhu' / '_erhu000000.flac', 14.0, 8000)
    write_sound(tmp_path / 'flute violin' / 'duet0000000.ogg', 5.5, 8000)
    write_sound(tmp_path / 'Yduet000000.wav', 4.0, 8000)
    files = read_music(tmp_path)
    path = guitar.relative_to(tmp_path).as_posix()
    assert pieces(files) == {
        '-guitar0000_0': (path, 0.0, 10.0),
        '-guitar0000_10': (path, 10.0, 10.0),
        '-guitar0000_20': (path, 20.0, 10.0),
        '_erhu000000_0': ('erhu/_erhu000000.flac', 0.0, 10.0),
        'duet0000000_0': ('flute violin/duet0000000.ogg', 0.0, 10.0),
    }
    assert [(clip.id, clip.reason) for clip in files.left_out] == [
        ('gone0000000', 'missing'),
        ('Yduet000000', 'too short'),
    ]
    last = files.read(2, 16000)
    assert len(last.audio) == 96000
    assert abs(place_of_click(last.audio, 16000) - 3.5) < 0.001
    assert files.entries[0].labels == ('acoustic guitar',)
    assert files.entries[0].captions == ('acoustic guitar', 'the sound of an acoustic guitar')
    assert files.entries[4].labels == ('flute', 'violin')
    assert files.entries[4].captions == ('flute and violin', 'the sound of a flute and a violin')


def test_pieces_of_another_length(tmp_path):
    write_sound(lists(tmp_path) / '-guitar0000.wav', 6.0, 8000)
    assert [entry.id for entry in read_music(tmp_path, piece_seconds=2.5).entries] == [
        '-guitar0000_0',
        '-guitar0000_2.5',
    ]
    for seconds in (0.0, -1.0, float('nan'), float('inf')):
        with pytest.raises(ConfigError, match='--piece-seconds'):
            read_music(tmp_path, piece_seconds=seconds)


def test_a_video_is_taken_from_the_folder_of_its_instrument(tmp_path):
    lists(tmp_path, {'cello': ['same0000000'], 'tuba': ['same0000000']})
    write_sound(tmp_path / 'a' / 'same0000000.wav', 10.0, 8000)
    assert read_music(tmp_path).entries[0].path == 'a/same0000000.wav'
    write_sound(tmp_path / 'solo' / 'tuba' / 'same0000000.wav', 10.0, 8000)
    (entry,) = read_music(tmp_path).entries
    assert entry.path == 'solo/tuba/same0000000.wav'
    assert entry.labels == ('cello', 'tuba')


def test_captions():
    assert captions_of(['erhu']) == ('erhu', 'the sound of an erhu')
    assert captions_of(['ukulele']) == ('ukulele', 'the sound of a ukulele')


def test_exclusions(tmp_path):
    lists(tmp_path)
    write_sound(tmp_path / '-guitar0000.wav', 20.0, 8000)
    write_sound(tmp_path / '_erhu000000.wav', 10.0, 8000)
    files = read_music(tmp_path, excluded=frozenset({'_erhu000000', '-guitar0000_10'}))
    assert list(pieces(files)) == ['-guitar0000_0']
    assert sorted((clip.id, clip.reason) for clip in files.left_out) == [
        ('-guitar0000_10', 'excluded'),
        ('_erhu000000', 'excluded'),
        ('gone0000000', 'missing'),
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'not valid JSON'),
        ('[]', 'expected {"videos"'),
        ('{"videos": ["a"]}', 'expected {"videos"'),
        ('{"videos": {"cello": "a"}}', 'expected {"videos"'),
        ('{"videos": {"cello": [1]}}', "under 'cello': entry 1: expected a YouTube id, got 1"),
        ('{"videos": {"cello": []}}', 'lists no videos'),
        ('{"videos": {"cello": ["a"]}}', 'none of the 1 listed clips can be used; the first: a: no file'),
    ],
)
def test_lists_with_a_mistake_are_one_clear_error(tmp_path, text, message):
    (tmp_path / 'MUSIC_solo_videos.json').write_text('\ufeff' + text, encoding='utf-8')
    with pytest.raises(DataError) as caught:
        read_music(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_bad_entry_is_left_out_and_the_others_are_not(tmp_path):
    (tmp_path / 'MUSIC_solo_videos.json').write_text('{"videos": {"cello": [null, "_cello00000", "-"]}}')
    write_sound(tmp_path / 'Bach [_cello00000].wav', 10.0, 8000)
    files = read_music(tmp_path)
    assert [entry.path for entry in files.entries] == ['Bach [_cello00000].wav']
    assert [(clip.id, clip.reason) for clip in files.left_out] == [
        ('MUSIC_solo_videos.json:1', 'unreadable'),
        ('-', 'missing'),
    ]


def test_no_list(tmp_path):
    with pytest.raises(DataError, match=r'no MUSIC_solo_videos\.json or MUSIC_duet_videos\.json in it: give --lists'):
        read_music(tmp_path)


def test_build_from_videos(tmp_path):
    source = lists(tmp_path / 'MUSIC', {'erhu': ['_erhu000000', 'bad00000000', 'mute0000000']})
    write_video(source / 'erhu' / '_erhu000000.mp4', 5, sound=click(5, 44100, 3.0))
    (source / 'erhu' / 'bad00000000.mp4').write_bytes(b'')
    write_video(source / 'erhu' / 'mute0000000.mp4', 2, sound=False)
    command = ['build', 'music', '--source', str(source), '--out', str(tmp_path / 'out'), '--jobs', '1']
    assert main([*command, '--piece-seconds', '2', '--frames', '1']) == 0
    shards = Shards(tmp_path / 'out', 'test')
    records = [shards.read(k) for k in range(len(shards))]
    assert [record.id for record in records] == ['_erhu000000_0', '_erhu000000_2', '_erhu000000_4']
    assert [record.num_samples for record in records[:2]] == [64000, 64000]
    assert abs(place_of_click(shards.waveform(1).astype(np.float32), 32000) - 1.0) < 0.002
    assert [len(record.frames) for record in records] == [1, 1, 1]
    report = (tmp_path / 'out' / 'splits' / 'test-skipped.csv').read_text(encoding='utf-8')
    assert report.count('unreadable') == 2
