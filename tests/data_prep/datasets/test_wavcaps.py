import json
import math

import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st
from support.small_media import noise, write_sound

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.wavcaps import BLACKLISTS, METADATA, SHORTEST_PIECE, BuildWavCaps, piece_bounds, read_wavcaps

ALL_AC, TEST_AC, UB8K = BLACKLISTS
ARCHIVE = 'mnt/fast/nobackup/scratch4weeks/xm00178/WavCaps/data/waveforms'


def audioset(name, caption='A dog barks.', duration=10.0):
    return {'id': f'Y{name}.wav', 'caption': caption, 'audio': 'wav_path', 'duration': duration}


def freesound(name, caption='Rain, and wind.', duration=0.1):
    return {
        'id': name,
        'file_name': 'r.wav',
        'href': '/s/1',
        'tags': ['rain'],
        'caption': caption,
        'duration': duration,
    }


def bbc(name, caption='Birds sing.', duration=0.1):
    return {'id': name, 'category': '["Nature"]', 'caption': caption, 'audio': 'wav_path', 'duration': duration}


def soundbible(name, caption='A bell rings.', duration=1):
    return {'id': name, 'title': 'Bell', 'href': f'{name}-Bell.html', 'caption': caption, 'duration': duration}


CLIPS = {
    'AudioSet_SL': [audioset('b0RFKhbpFJA'), audioset('Yabcdefghij')],
    'BBC_Sound_Effects': [bbc('07055128'), bbc('NHU05094027')],
    'FreeSound': [freesound('2219'), freesound('117790')],
    'SoundBible': [soundbible('2219')],
}
BARE = 'FreeSound'  # the file that holds the list alone
IDS = [
    *('AudioSet_SL/Yb0RFKhbpFJA', 'AudioSet_SL/YYabcdefghij', 'BBC_Sound_Effects/07055128'),
    *('BBC_Sound_Effects/NHU05094027', 'FreeSound/2219', 'FreeSound/117790', 'SoundBible/2219'),
]


def tree(folder, clips=CLIPS, *, blacklists=None, sounds=True, layout=f'Zip_files/{{0}}/{ARCHIVE}/{{0}}_flac', bom=''):
    """WavCaps as Hugging Face has it, its archives unpacked where they lie."""
    for source, items in clips.items():
        value = items if source == BARE else {'num_captions_per_audio': 1, 'data': items}
        path = folder / 'json_files' / source / METADATA[source]
        path.parent.mkdir(parents=True)
        path.write_text(bom + json.dumps(value), encoding='utf-8')
        for item in items if sounds else ():
            stem = str(item['id']).removesuffix('.wav')
            write_sound(folder / layout.format(source) / f'{stem}.flac', 0.1, 32000)
    (folder / 'json_files/blacklist').mkdir(parents=True)
    for name in BLACKLISTS:
        value = (blacklists or {}).get(name, {'AudioSet': [], 'FreeSound': []})
        (folder / 'json_files/blacklist' / name).write_text(json.dumps(value))
    return folder


def ids(files):
    return [entry.id for entry in files.entries]


def left_out(files):
    return {clip.id: clip.reason for clip in files.left_out}


@pytest.mark.parametrize('layout', [f'Zip_files/{{0}}/{ARCHIVE}/{{0}}_flac', 'Audio/{0}', 'Zip_files/{0}', '{0}_flac'])
@pytest.mark.parametrize('bom', ['', '\ufeff'])
def test_four_sources(tmp_path, layout, bom):
    files = read_wavcaps(tree(tmp_path, layout=layout, bom=bom))
    assert ids(files) == IDS
    assert [entry.captions for entry in files.entries[1:5]] == [
        ('A dog barks.',),
        *[('Birds sing.',)] * 2,
        ('Rain, and wind.',),
    ]
    # The number 2219 is one sound of Freesound and another of SoundBible.
    assert files.entries[4].path == layout.format('FreeSound') + '/2219.flac'
    assert files.entries[6].path == layout.format('SoundBible') + '/2219.flac'
    assert files.left_out == []
    assert len(files.read(6, 32000).audio) == 3200


def test_no_clip_of_an_evaluation_set_comes_through(tmp_path):
    """Each blacklist names clips that the others do not; ids are written in several ways."""
    names = [f'{letter * 10}_' for letter in 'abcdefghijkl']
    sounds = [str(number) for number in range(100, 112)]
    clips = {
        'AudioSet_SL': [audioset(name) for name in names],
        'FreeSound': [freesound(int(name) if number % 2 else name) for number, name in enumerate(sounds)],
        'BBC_Sound_Effects': [bbc(name) for name in sounds],
    }
    blacklists = {
        ALL_AC: {'AudioSet': [f'Y{names[0]}.wav', f'Y{names[1]}.wav'], 'FreeSound': [sounds[0], sounds[1], sounds[0]]},
        TEST_AC: {'AudioSet': [f'Y{names[1]}.wav', names[3]], 'FreeSound': [sounds[4]]},
        UB8K: {
            'AudioSet': [f'Y{names[6]}.wav', f'{names[7]}_000030.mp4'],
            'FreeSound': [int(sounds[6]), f'{sounds[7]}.wav'],
        },
    }
    evaluation = {f'AudioSet_SL/Y{names[k]}' for k in (0, 1, 3, 6, 7)} | {
        f'FreeSound/{sounds[k]}' for k in (0, 1, 4, 6, 7)
    }
    tree(tmp_path, clips, blacklists=blacklists)
    files = read_wavcaps(tmp_path)
    assert {clip for clip, reason in left_out(files).items() if reason == 'excluded'} == evaluation
    assert not evaluation & set(ids(files))
    assert len(files) == 36 - len(evaluation)
    # Of BBC sounds with the same numbers none is lost, and each of the lists counts.
    assert len(read_wavcaps(tmp_path, sources=('BBC_Sound_Effects',))) == 12
    for name in BLACKLISTS:
        (tmp_path / 'json_files/blacklist' / name).write_text(json.dumps({'AudioSet': [], 'FreeSound': []}))
        leaked = set(ids(read_wavcaps(tmp_path))) & evaluation
        assert leaked, name
        (tmp_path / 'json_files/blacklist' / name).write_text(json.dumps(blacklists[name]))
    assert len(read_wavcaps(tmp_path, allow_evaluation_clips=True)) == 36


@pytest.mark.parametrize('name', BLACKLISTS)
def test_without_a_blacklist_nothing_is_built(tmp_path, name):
    source = tree(tmp_path / 'WavCaps')
    path = source / 'json_files/blacklist' / name
    text = path.read_text()
    path.unlink()
    with pytest.raises(DataError, match=f'no {name} in it.*--blacklists, or --allow-evaluation-clips') as caught:
        read_wavcaps(source)
    assert '\n' not in str(caught.value)
    assert ids(read_wavcaps(source, allow_evaluation_clips=True)) == IDS
    # They may lie elsewhere.
    other = tmp_path / 'repository'
    (source / 'json_files/blacklist').rename(other)
    (other / name).write_text(text)
    assert ids(read_wavcaps(source, blacklists=other)) == IDS
    for damaged in ('[', '["a"]', '{}', '{"Freesound": ["1"]}', '{"FreeSound": "1"}', '{"AudioSet": [{}]}'):
        (other / name).write_text(damaged)
        with pytest.raises(DataError, match=name):
            read_wavcaps(source, blacklists=other)


def test_files_are_named_by_id_or_as_the_metadata_say(tmp_path):
    items = [audioset('b0RFKhbpFJA'), audioset('Yabcdefghij'), {**audioset('c0RFKhbpFJA'), 'audio': 'x/third one.flac'}]
    tree(tmp_path, {'AudioSet_SL': items}, sounds=False)
    for name in ('Yb0RFKhbpFJA.wav', 'Yabcdefghij.flac', 'third one.flac', 'wav_path.flac'):
        write_sound(tmp_path / 'audio/AudioSet_SL' / name, 0.1)
    found = [entry.path.removeprefix('audio/AudioSet_SL/') for entry in read_wavcaps(tmp_path).entries]
    assert found == ['Yb0RFKhbpFJA.wav', 'Yabcdefghij.flac', 'third one.flac']


def test_github_layout_and_lfs_notes(tmp_path):
    tree(tmp_path, layout='{0}')
    (tmp_path / 'data').mkdir()
    (tmp_path / 'json_files').rename(tmp_path / 'data/json_files')
    assert ids(read_wavcaps(tmp_path)) == IDS
    path = tmp_path / 'data/json_files/FreeSound/fsd_final.json'
    path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:4499\nsize 147300685\n')
    with pytest.raises(DataError, match=r'fsd_final\.json: is a Git LFS pointer'):
        read_wavcaps(tmp_path)


def test_sources_may_be_chosen_or_absent(tmp_path):
    tree(tmp_path, {source: CLIPS[source] for source in ('AudioSet_SL', 'SoundBible')})
    files = read_wavcaps(tmp_path)
    assert ids(files) == [*IDS[:2], IDS[6]]
    assert left_out(files) == {'BBC_Sound_Effects': 'missing', 'FreeSound': 'missing'}
    assert ids(read_wavcaps(tmp_path, sources=('SoundBible',))) == IDS[6:]
    with pytest.raises(DataError, match=r'no fsd_final\.json in it, which lists FreeSound'):
        read_wavcaps(tmp_path, sources=('FreeSound',))
    with pytest.raises(ConfigError, match='WavCaps has AudioSet_SL'):
        read_wavcaps(tmp_path, sources=('Freesound',))


def test_long_sounds_are_cut_into_pieces(tmp_path):
    clips = {'BBC_Sound_Effects': [bbc('1', duration=64.9), bbc('2', duration=65.0), bbc('3', duration=34.9)]}
    tree(tmp_path, clips, layout='{0}')
    files = read_wavcaps(tmp_path)
    assert [(entry.id.split('/')[1], entry.start, entry.seconds) for entry in files.entries] == [
        ('1#0', 0, 30),
        ('1#1', 30, 35),
        ('2#0', 0, 30),
        ('2#1', 30, 30),
        ('2#2', 60, 35),
        ('3', 0, 35),
    ]
    assert {entry.captions for entry in files.entries} == {('Birds sing.',)}
    assert len({entry.path for entry in files.entries}) == 3
    assert [(e.start, e.seconds) for e in read_wavcaps(tmp_path, piece_seconds=0).entries] == [(0, None)] * 3
    for seconds in (4.9, -1.0, math.inf):
        with pytest.raises(ConfigError, match='at least 5, or 0'):
            read_wavcaps(tmp_path, piece_seconds=seconds)


@given(st.floats(0.01, 4000), st.floats(SHORTEST_PIECE, 60))
def test_pieces_cover_a_sound_once(seconds, piece):
    bounds = piece_bounds(seconds, piece)
    ends = [min(start + length, seconds) for start, length in bounds]
    assert bounds[0][0] == 0
    assert ends[-1] == seconds
    for (start, _), end in zip(bounds[1:], ends, strict=False):
        assert start == pytest.approx(end)
    if len(bounds) > 1:
        assert min(end - start for (start, _), end in zip(bounds, ends, strict=True)) > SHORTEST_PIECE - 1e-6


@pytest.mark.parametrize('duration', [math.nan, None, 'long', 0, -3, math.inf, True, 10**400, 1e12])
def test_durations_that_are_none_are_the_files(tmp_path, duration):
    tree(tmp_path, {'FreeSound': [freesound('1', duration=duration), freesound('2', duration=duration)]}, layout='{0}')
    write_sound(tmp_path / 'FreeSound/1.flac', 14, 8000)
    files = read_wavcaps(tmp_path, piece_seconds=5)
    assert [(entry.id, entry.seconds) for entry in files.entries] == [
        ('FreeSound/1#0', 5),
        ('FreeSound/1#1', 10),
        ('FreeSound/2', 10),
    ]


def test_a_sound_listed_twice_is_one_clip(tmp_path):
    tree(
        tmp_path,
        {'FreeSound': [freesound('1', 'Rain.'), freesound(2), freesound(1, 'Heavy  rain.'), freesound('1', '')]},
    )
    assert [entry.captions for entry in read_wavcaps(tmp_path).entries] == [
        ('Rain.', 'Heavy rain.'),
        ('Rain, and wind.',),
    ]


def test_what_is_left_out(tmp_path):
    clips = {
        'AudioSet_SL': [audioset('b0RFKhbpFJA'), audioset('Yabcdefghij')],
        'FreeSound': [freesound('1', ''), freesound('2', None), freesound('3'), freesound('4'), freesound('5')],
    }
    tree(tmp_path, clips, layout='{0}')
    (tmp_path / 'FreeSound/3.flac').unlink()
    files = read_wavcaps(tmp_path, excluded=frozenset({'Yabcdefghij', '4'}))
    assert ids(files) == ['AudioSet_SL/Yb0RFKhbpFJA', 'FreeSound/5']
    expected = dict.fromkeys(('AudioSet_SL/YYabcdefghij', 'FreeSound/1', 'FreeSound/2', 'FreeSound/4'), 'excluded')
    missing = dict.fromkeys(('BBC_Sound_Effects', 'SoundBible', 'FreeSound/3'), 'missing')
    assert left_out(files) == expected | missing


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        ({}, 'expected {"data"'),
        ({'data': {}}, 'expected {"data"'),
        ({'data': []}, 'lists no clips'),
        ([], 'lists no clips'),
        (['1'], "entry 1: expected a clip with an 'id'"),
        ([{'caption': 'x'}], "entry 1: expected a clip with an 'id'"),
        ([{'id': ' '}], "entry 1: expected a clip with an 'id'"),
        ([freesound('2', 7)], "entry 1: 'caption' must be a text"),
    ],
)
def test_damaged_metadata(tmp_path, value, message):
    tree(tmp_path)
    (tmp_path / 'json_files/SoundBible/sb_final.json').write_text(json.dumps(value))
    with pytest.raises(DataError, match=message):
        read_wavcaps(tmp_path)
    (tmp_path / 'json_files/SoundBible/sb_final.json').write_text('{"data": [')
    with pytest.raises(DataError, match='not valid JSON'):
        read_wavcaps(tmp_path)


def test_a_bad_entry_is_left_out_and_the_others_are_not(tmp_path):
    clips = {'FreeSound': [freesound('1'), freesound('2', 7), freesound('3')]}
    tree(tmp_path, clips)
    files = read_wavcaps(tmp_path)
    assert ids(files) == ['FreeSound/1', 'FreeSound/3']
    assert left_out(files)['fsd_final.json:2'] == 'unreadable'


def test_sources_may_be_given_one_by_one():
    for flags in (['AudioSet_SL', 'SoundBible'], ['AudioSet_SL', '--sources', 'SoundBible']):
        options = tyro.cli(BuildWavCaps, args=['--source', 'x', '--out', 'y', '--sources', *flags])
        assert [name for names in options.sources for name in names] == ['AudioSet_SL', 'SoundBible']


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r'no as_final\.json or .* in it: give the folder of WavCaps'):
        read_wavcaps(tmp_path, allow_evaluation_clips=True)
    with pytest.raises(DataError, match='none of the 7 listed clips can be used'):
        read_wavcaps(tree(tmp_path, sounds=False))


def test_build(tmp_path, capsys):
    """From the command line to records, with every fault, pieces, blacklists and a list of one's own."""
    source = tmp_path / 'WavCaps'
    clips = {
        'AudioSet_SL': [audioset('b0RFKhbpFJA'), audioset('AudioCaps__')],
        'BBC_Sound_Effects': [bbc('07055128', duration=18.0)],
        'FreeSound': [freesound(str(number), f'Sound \ud83d {number}') for number in range(6)],
        'SoundBible': [soundbible('2219')],
    }
    layout = f'Zip_files/{{0}}/{ARCHIVE}/{{0}}_flac'
    tree(source, clips, blacklists={ALL_AC: {'AudioSet': ['YAudioCaps__.wav'], 'FreeSound': ['1']}})
    folders = {name: source / layout.format(name) for name in METADATA}
    write_sound(folders['BBC_Sound_Effects'] / '07055128.flac', 18, 8000)
    write_sound(folders['FreeSound'] / '0.flac', 0.2, 32000, channels=2, subtype='PCM_24')
    (folders['FreeSound'] / '2.flac').write_bytes(b'')
    (folders['FreeSound'] / '3.flac').unlink()
    (folders['FreeSound'] / '4.flac').write_bytes((folders['FreeSound'] / '5.flac').read_bytes()[:2000])
    (tmp_path / 'eval.csv').write_text('fname,labels,mids\n5,Dog,d\n')
    out = tmp_path / 'out'
    flags = ['--source', str(source), '--out', str(out), '--sample-rate', '8000', '--jobs', '1']
    assert main(['build', 'wavcaps', *flags, '--piece-seconds', '6', '--exclude', str(tmp_path / 'eval.csv')]) == 0
    shards = Shards(out)
    records = [shards.read(index) for index in range(len(shards))]
    assert [(record.id, record.num_samples / 8000) for record in records] == [
        ('AudioSet_SL/Yb0RFKhbpFJA', 0.1),
        ('BBC_Sound_Effects/07055128#0', 6),
        ('BBC_Sound_Effects/07055128#1', 6),
        ('BBC_Sound_Effects/07055128#2', 6),
        ('FreeSound/0', 0.2),
        ('SoundBible/2219', 0.1),
    ]
    pieces = np.concatenate([shards.waveform(index) for index in (1, 2, 3)])
    assert np.abs(pieces - noise(18, 8000, '07055128.flac')).max() < 1e-4
    assert records[4].captions == ('Sound ? 0',)
    report = (out / 'splits/train-skipped.csv').read_text()
    reasons = {line.split(',')[0]: line.split(',')[1] for line in report.splitlines()[1:]}
    assert reasons == {
        'AudioSet_SL/YAudioCaps__': 'excluded',
        'FreeSound/1': 'excluded',
        'FreeSound/2': 'unreadable',
        'FreeSound/3': 'missing',
        'FreeSound/4': 'unreadable',
        'FreeSound/5': 'excluded',
    }
    assert main(['build', 'wavcaps', *flags, '--split', 'val']) == 2
    (source / 'json_files/blacklist' / UB8K).unlink()
    assert main(['build', 'wavcaps', *flags]) == 1
    errors = capsys.readouterr().err
    assert UB8K in errors
    assert 'Traceback' not in errors
