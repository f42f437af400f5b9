import csv
import os

import numpy as np
import pytest
import tyro
from support.small_media import click, cut_short, place_of_click, write_sound, write_video

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.audioset import BuildAudioSet, captions_of, read_audioset

CLASSES = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/0bt9lr,"Dog"
3,/m/05tny_,"Bark"
4,/m/04qvtq,"Police car (siren)"
5,/m/012n7d,"Ambulance (siren)"
"""
HEAD = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=20371, num_segs=20371, num_unique_labels=527, num_positive_labels=51804
# YTID, start_seconds, end_seconds, positive_labels
"""
BALANCED = '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/0bt9lr"\n_1a2b3c4d5e, 0.000, 10.000, "/m/05zppz"\n'
UNBALANCED = 'Yabcdefghij, 210.000, 220.000, "/m/04qvtq,/m/0bt9lr,/m/05tny_"\n'


def tables(folder, balanced=BALANCED, unbalanced=UNBALANCED, evaluation=None, classes=CLASSES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'class_labels_indices.csv').write_text(classes, encoding='utf-8')
    for name, rows in [('balanced_train', balanced), ('unbalanced_train', unbalanced), ('eval', evaluation)]:
        if rows is not None:
            (folder / f'{name}_segments.csv').write_text(HEAD + rows, encoding='utf-8')
    return folder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def by_id(files):
    return {entry.id: entry for entry in files.entries}


def test_tables_labels_and_captions(tmp_path):
    touch(tables(tmp_path), '--PJHxphWEs.wav', '_1a2b3c4d5e.wav', 'Yabcdefghij.wav')
    files = read_audioset(tmp_path)
    assert not files.left_out
    clips = by_id(files)
    assert list(clips) == ['--PJHxphWEs_30', '_1a2b3c4d5e_0', 'Yabcdefghij_210']
    assert [entry.path for entry in files.entries] == ['--PJHxphWEs.wav', '_1a2b3c4d5e.wav', 'Yabcdefghij.wav']
    assert clips['--PJHxphWEs_30'].labels == ('Speech', 'Dog')
    assert clips['--PJHxphWEs_30'].captions == ('Speech, Dog', 'the sounds of speech and dog')
    assert clips['_1a2b3c4d5e_0'].labels == ('Male speech, man speaking',)
    assert (clips['_1a2b3c4d5e_0'].start, clips['_1a2b3c4d5e_0'].seconds) == (0.0, None)


@pytest.mark.parametrize(
    ('labels', 'sentence'),
    [
        (['Dog'], 'the sound of dog'),
        (['Male speech, man speaking', 'Dog'], 'the sounds of male speech (man speaking) and dog'),
        (['Fire engine, fire truck (siren)'], 'the sound of fire engine (fire truck, siren)'),
        (['Vehicle horn, car horn, honking', 'Car', 'Speech'],
         'the sounds of vehicle horn (car horn, honking), car and speech'),
        (['Christmas music', 'French horn'], 'the sounds of Christmas music and French horn'),
        (['Middle Eastern music', 'Middle C'], 'the sounds of Middle Eastern music and middle C'),
        (['UFO'], 'the sound of UFO'),
    ],
)  # fmt: skip
def test_sentences(labels, sentence):
    assert captions_of(labels) == (', '.join(labels), sentence)


@pytest.mark.parametrize(
    'name',
    [
        'YTID.wav',
        'YYTID.wav',
        'YTID_30.flac',
        'YTID_30_40.wav',
        'YYTID_30_40.wav',
        'YTID_30.000_40.000.wav',
        'YYTID_30.000_40.000.ogg',
        'YTID_30.0_40.0.mp3',
        'YTID_30-40.wav',
        'YTID_30.0-40.0.wav',
        'YYTID-30-40.flac',
        'A [good] title [YTID].webm',
        'Title [YTID]_30_40.wav',
        'YTID_30000_40000.flac',
        'YTID_30000.flac',
        'YTID_000030.wav',
        'YTID.mp4',
        'YYTID.m4a',
        'YTID.webm',
        'YTID.mkv',
        'balanced_train_segments/YYTID.WAV',
        'audio/train/ü/YTID_30.wav',
    ],
)
@pytest.mark.parametrize('youtube', ['--PJHxphWEs', '_1a2b3c4d5e', 'Yabcdefghij'])
def test_names_that_files_have(tmp_path, name, youtube):
    tables(tmp_path, f'{youtube}, 30.000, 40.000, "/m/0bt9lr"\n')
    name = name.replace('YTID', youtube)
    touch(tmp_path, name, 'YTID_other.wav', '0therId0000.wav', f'{youtube}.wav.part', f'._{youtube}.wav')
    files = read_audioset(tmp_path, 'balanced_train')
    assert [(entry.id, entry.path) for entry in files.entries] == [(f'{youtube}_30', name)]


def test_splits_are_their_tables(tmp_path):
    tables(tmp_path / 'csv', evaluation='0000evalclp, 5.000, 12.500, "/m/0bt9lr"\n')
    touch(tmp_path, 'a/--PJHxphWEs.wav', 'a/_1a2b3c4d5e.wav', 'b/Yabcdefghij.wav', 'c/0000evalclp_5.000_12.500.wav')
    ids = {
        split: list(by_id(read_audioset(tmp_path, split)))
        for split in ('train', 'balanced_train', 'unbalanced_train', 'eval', 'test')
    }
    assert ids['train'] == ids['balanced_train'] + ids['unbalanced_train']
    assert ids['unbalanced_train'] == ['Yabcdefghij_210']
    assert ids['eval'] == ids['test'] == ['0000evalclp_5']
    own = read_audioset(tmp_path, 'mine', segments=[tmp_path / 'csv' / 'eval_segments.csv'])
    assert list(by_id(own)) == ids['eval']
    with pytest.raises(ConfigError, match="--split 'valid': AudioSet has train"):
        read_audioset(tmp_path, 'valid')


def test_whole_videos_are_cut_by_their_times(tmp_path):
    rows = 'video000001, 3.000, 4.500, "/m/0bt9lr"\nvideo000001, 1.000, 2.000, "/m/09x0r"\n'
    write_sound(tables(tmp_path, rows) / 'video000001.flac', sound=click(6, 22050, 3.75), rate=22050)
    files = read_audioset(tmp_path, 'balanced_train', whole_videos=True)
    assert [(e.id, e.start, e.seconds) for e in files.entries] == [
        ('video000001_3', 3.0, 1.5),
        ('video000001_1', 1.0, 1.0),
    ]
    clip = files.read(0, 16000)
    assert len(clip.audio) == 24000
    assert abs(place_of_click(clip.audio, 16000) - 0.75) < 0.001
    # Cut files of one video can be told apart by their times alone.
    with pytest.raises(DataError, match='none of the 2 listed clips'):
        read_audioset(tmp_path, 'balanced_train')
    touch(tmp_path, 'video000001_1_2.wav')
    assert [(e.id, e.path) for e in read_audioset(tmp_path, 'balanced_train').entries] == [
        ('video000001_1', 'video000001_1_2.wav')
    ]


def test_what_is_left_out(tmp_path):
    rows = BALANCED + 'gone0000000, 1.000, 11.000, "/m/0bt9lr"\nodd00000000, 1.000, 11.000, "/m/none,/t/dd0"\n'
    rows += 'half0000000, 2.000, 12.000, "/m/none,/m/05tny_"\n'
    tables(tmp_path, rows)
    touch(tmp_path, '--PJHxphWEs.wav', '_1a2b3c4d5e.wav', 'odd00000000.wav', 'half0000000.wav')
    files = read_audioset(tmp_path, 'balanced_train', excluded=frozenset({'_1a2b3c4d5e'}))
    assert list(by_id(files)) == ['--PJHxphWEs_30', 'half0000000_2']
    assert by_id(files)['half0000000_2'].labels == ('Bark',)
    left_out = {clip.id: (clip.reason, clip.message) for clip in files.left_out}
    assert {clip_id: reason for clip_id, (reason, _) in left_out.items()} == {
        '_1a2b3c4d5e_0': 'excluded',
        'gone0000000_1': 'missing',
        'odd00000000_1': 'excluded',
    }
    assert 'class_labels_indices.csv: /m/none,/t/dd0' in left_out['odd00000000_1'][1]


def test_a_bad_row_is_left_out_and_the_others_are_not(tmp_path):
    rows = BALANCED + 'x, thirty, 40.000, "/m/09x0r"\nnoquotes000, 30.000, 40.000, /m/09x0r,/m/0bt9lr\n'
    touch(tables(tmp_path, rows), '--PJHxphWEs.wav', '_1a2b3c4d5e.wav')
    files = read_audioset(tmp_path, 'balanced_train')
    assert len(files) == 2
    assert [(clip.id, clip.reason) for clip in files.left_out] == [
        ('balanced_train_segments.csv:6', 'unreadable'),
        ('balanced_train_segments.csv:7', 'unreadable'),
    ]
    assert 'line 7: expected YTID' in files.left_out[1].message


def test_segments_may_be_given_one_by_one(tmp_path):
    touch(tables(tmp_path), '--PJHxphWEs.wav', 'Yabcdefghij.wav')
    paths = [str(tmp_path / f'{name}_segments.csv') for name in ('balanced_train', 'unbalanced_train')]
    for flags in (['--segments', *paths], ['--segments', paths[0], '--segments', paths[1]]):
        options = tyro.cli(BuildAudioSet, args=['--source', str(tmp_path), '--out', 'x', *flags])
        assert list(by_id(options.clips())) == ['--PJHxphWEs_30', 'Yabcdefghij_210']


def test_evaluation_clips_are_spoken_of_where_none_are_excluded(tmp_path, capsys):
    write_sound(tables(tmp_path, evaluation='_1a2b3c4d5e, 0.000, 10.000, "/m/05zppz"\n') / '_1a2b3c4d5e.wav')
    (tmp_path / 'no.txt').write_text('other\n')
    command = ['build', 'audioset', '--source', str(tmp_path), '--jobs', '1', '--out']
    assert main([*command, str(tmp_path / 'a')]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith('note:')]
    assert len(notes) == 1
    assert 'VGGSound' in notes[0]
    assert '--exclude vggsound.csv test.csv' in notes[0]
    assert main([*command, str(tmp_path / 'b'), '--exclude', str(tmp_path / 'no.txt')]) == 0
    assert main([*command, str(tmp_path / 'a'), '--split', 'eval']) == 0
    assert 'note:' not in capsys.readouterr().err


def test_names_that_are_not_utf8_are_left_out(tmp_path, capsys):
    """And a source of such a name: the report of its bad clips is UTF-8 all the same."""
    source = tables(tmp_path / os.fsdecode(b'caf\xe9'), unbalanced=None)
    touch(source, os.fsdecode(b'sounds\xe9/other.wav'))
    write_sound(tmp_path / 'a.wav').rename(source / '--PJHxphWEs.wav')
    touch(source, '_1a2b3c4d5e.wav', os.fsdecode(b'\xe9.wav'))
    command = ['build', 'audioset', '--source', str(source), '--split', 'balanced_train', '--jobs', '1']
    assert main([*command, '--out', str(tmp_path / 'out')]) == 0
    assert 'caf\\udce9' in capsys.readouterr().err
    with open(tmp_path / 'out' / 'splits' / 'balanced_train-skipped.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert {row['id']: row['reason'] for row in rows} == dict.fromkeys(
        ('_1a2b3c4d5e_0', 'sounds\\udce9', '\\udce9.wav'), 'unreadable'
    )
    assert sum('not UTF-8' in row['message'] for row in rows) == 2


def test_a_clip_that_is_listed_twice_has_the_labels_of_both(tmp_path):
    rows = BALANCED + '--PJHxphWEs, 30.000, 40.000, "/m/05tny_,/m/0bt9lr"\n'
    touch(tables(tmp_path, rows), '--PJHxphWEs.wav')
    files = read_audioset(tmp_path, 'balanced_train')
    assert [entry.labels for entry in files.entries] == [('Speech', 'Dog', 'Bark')]


def test_marks_and_line_ends_do_no_harm(tmp_path):
    tables(tmp_path)
    for path in tmp_path.glob('*.csv'):
        path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes().replace(b'\n', b'\r\n') + b'\r\n')
    touch(tmp_path, '--PJHxphWEs.wav')
    assert by_id(read_audioset(tmp_path))['--PJHxphWEs_30'].labels == ('Speech', 'Dog')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(balanced='--PJHxphWEs, 30.000, 40.000, /m/09x0r,/m/0bt9lr\n'), 'line 4: expected YTID, start_seconds'),
        (dict(balanced='--PJHxphWEs, 30.000, 40.000\n'), 'line 4: expected YTID'),
        (dict(balanced='x, thirty, 40.000, "/m/09x0r"\n'), 'line 4: expected YTID'),
        (dict(balanced='x, 40.000, 30.000, "/m/09x0r"\n'), 'line 4: expected YTID'),
        (dict(balanced='x, nan, 30.000, "/m/09x0r"\n'), 'line 4: expected YTID'),
        (dict(balanced='x, 1.0, 3.0, "/m/09x0r\n'), 'not valid CSV'),
        (dict(balanced=''), 'lists no clips'),
        (dict(balanced=None), 'no balanced_train_segments.csv in it'),
        (dict(classes=''), "no column 'mid'"),
        (dict(classes='index,mid,display_name\n'), 'lists no classes'),
        (dict(classes='index,mid,name\n0,/m/09x0r,Speech\n'), "no column 'display_name'"),
    ],
)
def test_tables_with_a_mistake_are_one_clear_error(tmp_path, change, message):
    touch(tables(tmp_path, **change), '--PJHxphWEs.wav')
    with pytest.raises(DataError) as caught:
        read_audioset(tmp_path, 'balanced_train')
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_places_that_are_none(tmp_path):
    with pytest.raises(DataError, match='cannot be listed'):
        read_audioset(tmp_path / 'none')
    touch(tables(tmp_path), 'other.wav')
    with pytest.raises(DataError, match='none of the 3 listed clips can be used; the first: --PJHxphWEs_30: no file'):
        read_audioset(tmp_path)
    (tmp_path / 'class_labels_indices.csv').unlink()
    with pytest.raises(DataError, match=r'class_labels_indices\.csv: no such file'):
        read_audioset(tmp_path)


def test_build_from_a_corpus_with_every_fault(tmp_path, capsys):
    source, out = tmp_path / 'AudioSet ü', tmp_path / 'shards'
    names = ['good0000000', '-dash000000', '_under00000', 'stereo00000', 'bits2400000', 'nil00000000', 'text0000000']
    names += ['gone0000000', 'excluded000', 'nan00000000']
    rows = ''.join(f'{name}, {30 * n}.000, {30 * n + 10}.000, "/m/0bt9lr,/m/09x0r"\n' for n, name in enumerate(names))
    sounds = tables(source, rows, unbalanced=None) / 'balanced_train_segments'
    write_sound(sounds / 'Ygood0000000.wav', 1.0, 44100)
    write_sound(sounds / '-dash000000.flac', 1.0, 32000)
    write_sound(sounds / '_under00000_60_70.ogg', 1.0, 22050)
    write_sound(sounds / 'stereo00000_90.000_100.000.wav', 1.0, 16000, channels=2)
    write_sound(sounds / 'bits2400000.wav', 1.0, 48000, subtype='PCM_24')
    (sounds / 'nil00000000.wav').write_bytes(b'')
    (sounds / 'text0000000.wav').write_text('not found')
    write_sound(sounds / 'excluded000.wav')
    write_sound(sounds / 'nan00000000.wav', sound=np.full(800, np.nan), subtype='FLOAT')
    (tmp_path / 'no.txt').write_text('excluded000\n')
    command = ['build', 'audioset', '--source', str(source), '--out', str(out), '--split', 'balanced_train']
    assert main([*command, '--exclude', str(tmp_path / 'no.txt'), '--jobs', '1', '--sample-rate', '32000']) == 0
    assert 'balanced_train' in capsys.readouterr().out
    shards = Shards(out, 'balanced_train')
    read = [shards.read(k) for k in range(len(shards))]
    assert [record.id for record in read] == [f'{name}_{30 * n}' for n, name in enumerate(names[:5])]
    for record in read:
        assert record.num_samples == 32000
        assert record.labels == ('Dog', 'Speech')
        assert record.captions == ('Dog, Speech', 'the sounds of dog and speech')
        assert record.source.startswith('audioset:balanced_train_segments/')
    with open(out / 'splits' / 'balanced_train-skipped.csv', encoding='utf-8', newline='') as file:
        skipped = {row['id'].rsplit('_', 1)[0]: row['reason'] for row in csv.DictReader(file)}
    assert skipped == {
        'nil00000000': 'unreadable',
        'text0000000': 'unreadable',
        'gone0000000': 'missing',
        'excluded000': 'excluded',
        'nan00000000': 'unreadable',
    }


def test_build_from_whole_videos_with_pictures(tmp_path):
    rows = 'video000001, 2.000, 4.000, "/m/0bt9lr"\ntrunc000000, 1.000, 2.000, "/m/0bt9lr"\n'
    rows += 'short000000, 70.000, 80.000, "/m/0bt9lr"\nmute0000000, 0.000, 10.000, "/m/0bt9lr"\n'
    source = tables(tmp_path / 'videos', rows)
    write_video(source / 'video000001.mp4', 6, sound=click(6, 44100, 3.25))
    cut_short(write_video(source / 'trunc000000.mp4', 3), 0.5)
    write_video(source / 'short000000.webm', 1)
    write_video(source / 'mute0000000.mkv', 1, sound=False)
    command = ['build', 'audioset', '--source', str(source), '--out', str(tmp_path / 'out'), '--jobs', '1']
    assert main([*command, '--split', 'balanced_train', '--whole-videos', '--frames', '3']) == 0
    shards = Shards(tmp_path / 'out', 'balanced_train')
    assert len(shards) == 1
    assert shards.read(0).id == 'video000001_2'
    assert len(shards.waveform(0)) == 64000
    assert abs(place_of_click(shards.waveform(0).astype(np.float32), 32000) - 1.25) < 0.002
    assert len(shards.read(0).frames) == 3
    assert all(frame.startswith(b'\xff\xd8') for frame in shards.read(0).frames)
    report = (tmp_path / 'out' / 'splits' / 'balanced_train-skipped.csv').read_text(encoding='utf-8')
    reasons = {line.split(',')[0]: line.split(',')[1] for line in report.splitlines()[1:]}
    assert reasons == {'trunc000000_1': 'unreadable', 'short000000_70': 'too short', 'mute0000000_0': 'unreadable'}
