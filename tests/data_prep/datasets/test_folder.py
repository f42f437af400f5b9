import os

import numpy as np
import pytest
import soundfile

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import ConfigError, DataError
from data_prep.__main__ import main
from data_prep.datasets.folder import read_folder

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 800)


def sounds(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / path, NOISE, 8000, format='WAV')


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def captions(files) -> dict[str, tuple[str, ...]]:
    return {entry.path: entry.captions for entry in files.entries}


def reasons(files) -> list[tuple[str, str]]:
    return [(clip.id, clip.reason) for clip in files.left_out]


def test_class_folders(tmp_path):
    sounds(tmp_path, 'dog_barking/b.wav', 'dog_barking/a.FLAC', 'Schläge/1 2.mp3', 'rain/deep/x.Ogg', 'rain/y.wav')
    files = read_folder(tmp_path)
    assert captions(files) == {
        'Schläge/1 2.mp3': ('Schläge',),
        'dog_barking/a.FLAC': ('dog barking',),
        'dog_barking/b.wav': ('dog barking',),
        'rain/deep/x.Ogg': ('deep',),
        'rain/y.wav': ('rain',),
    }
    assert all(entry.labels == entry.captions and entry.id == entry.path for entry in files.entries)
    assert files.left_out == []
    assert captions(read_folder(tmp_path, class_folder='top'))['rain/deep/x.Ogg'] == ('rain',)


def test_text_files_beside_sounds(tmp_path):
    sounds(tmp_path, 'a.wav', 'clips/b.c.wav', 'clips/b.c.flac', 'clips/D.WAV')
    text(tmp_path / 'a.txt', '\ufeffa dog\r\n\r\n  two  dogs \r\na dog\r\n')
    text(tmp_path / 'clips' / 'b.c.txt', 'rain')
    text(tmp_path / 'clips' / 'D.TXT', 'hail')
    text(tmp_path / 'clips' / 'readme.txt', 'not of a sound')
    files = read_folder(tmp_path)
    assert captions(files) == {
        'a.wav': ('a dog', 'two dogs'),
        'clips/D.WAV': ('hail',),
        'clips/b.c.flac': ('rain',),
        'clips/b.c.wav': ('rain',),
    }
    assert {entry.labels for entry in files.entries} == {()}
    assert files.left_out == []


def test_mixed(tmp_path):
    """Text files make their own folder one of pairs, others remain classes."""
    sounds(tmp_path, 'loose.wav', 'dog/1.wav', 'clips/1.wav', 'clips/2.wav', 'clips/more/3.wav')
    text(tmp_path / 'clips' / '1.txt', 'thunder')
    text(tmp_path / 'dog' / 'LICENSE.txt', 'of no sound')
    files = read_folder(tmp_path)
    assert captions(files) == {'clips/1.wav': ('thunder',), 'clips/more/3.wav': ('more',), 'dog/1.wav': ('dog',)}
    assert reasons(files) == [('clips/2.wav', 'excluded'), ('loose.wav', 'excluded')]
    assert 'others in its folder have a text file' in files.left_out[0].message
    by_class = read_folder(tmp_path, captions='class')
    assert captions(by_class)['clips/2.wav'] == ('clips',)
    assert captions(by_class)['clips/1.wav'] == ('thunder',)
    assert captions(read_folder(tmp_path, captions='text')) == {'clips/1.wav': ('thunder',)}


def test_hidden_and_other_files_are_passed_over(tmp_path):
    sounds(tmp_path, 'dog/a.wav', 'dog/.hidden.wav', 'dog/._a.wav', '.git/b.wav', '__MACOSX/dog/._a.wav')
    text(tmp_path / 'dog' / 'cover.jpg', b'')
    files = read_folder(tmp_path)
    assert list(captions(files)) == ['dog/a.wav']
    assert files.left_out == []


def test_links_are_followed_and_loops_end(tmp_path):
    inside, outside = tmp_path / 'in', tmp_path / 'out'
    sounds(inside, 'dog/a.wav')
    sounds(outside, 'cats/b.wav')
    (inside / 'dog' / 'up').symlink_to(inside, target_is_directory=True)
    (inside / 'aaa').symlink_to(inside / 'dog', target_is_directory=True)  # in the tree: under its own name alone
    (inside / 'meow').symlink_to(outside / 'cats', target_is_directory=True)
    (inside / 'dog' / 'linked.wav').symlink_to(outside / 'cats' / 'b.wav')
    (inside / 'dog' / 'broken.wav').symlink_to(outside / 'none.wav')
    (inside / 'dog' / 'self.wav').symlink_to(inside / 'dog' / 'self.wav')
    files = read_folder(inside)
    assert captions(files) == {'dog/a.wav': ('dog',), 'dog/linked.wav': ('dog',), 'meow/b.wav': ('meow',)}
    assert reasons(files) == [('dog/broken.wav', 'missing'), ('dog/self.wav', 'missing')]


def test_what_cannot_be_used_is_left_out(tmp_path):
    sounds(tmp_path, 'clips/a.wav', 'clips/b.wav', 'clips/c.wav', 'clips/d.wav')
    text(tmp_path / 'clips' / 'a.txt', 'good')
    text(tmp_path / 'clips' / 'b.txt', ' \r\n')
    text(tmp_path / 'clips' / 'c.txt', 'sirène'.encode('latin1'))
    (tmp_path / 'clips' / 'd.txt').mkdir()
    os.mkfifo(tmp_path / 'clips' / 'e.wav')  # whoever opens it waits for ever
    text(tmp_path / 'dog' / os.fsdecode(b'sir\xe8ne.wav'), '')
    files = read_folder(tmp_path)
    assert captions(files) == {'clips/a.wav': ('good',)}
    assert reasons(files) == [
        ('clips/b.wav', 'excluded'),
        ('clips/c.wav', 'unreadable'),
        ('clips/d.wav', 'excluded'),
        ('clips/e.wav', 'unreadable'),
        ('dog/sir\\udce8ne.wav', 'unreadable'),
    ]


def test_accents_may_be_composed_or_not(tmp_path):
    sounds(tmp_path, 'a/e\u0301.wav', 'cafe\u0301/1.wav')
    text(tmp_path / 'a' / '\u00e9.txt', 'yes')
    files = read_folder(tmp_path)
    assert captions(files) == {'a/e\u0301.wav': ('yes',), 'cafe\u0301/1.wav': ('caf\u00e9',)}


def test_clips_are_excluded_by_path_name_and_youtube_id(tmp_path):
    sounds(tmp_path, 'dog/a.wav', 'dog/b.wav', 'cat/a.wav', 'cat/Y0bRUkLsttto_30.wav')
    files = read_folder(tmp_path, excluded=frozenset(['dog/a.wav', 'b', '0bRUkLsttto']))
    assert list(captions(files)) == ['cat/a.wav']
    assert {reason for _, reason in reasons(files)} == {'excluded'}


def test_mistakes_are_one_clear_error(tmp_path):
    with pytest.raises(DataError, match='cannot be listed'):
        read_folder(tmp_path / 'none')
    with pytest.raises(DataError, match='holds no sounds'):
        read_folder(tmp_path)
    sounds(tmp_path, 'a.wav')
    with pytest.raises(DataError, match='no text file beside it'):
        read_folder(tmp_path)
    with pytest.raises(ConfigError, match='--captions'):
        read_folder(tmp_path, captions='both')
    with pytest.raises(ConfigError, match='--class-folder'):
        read_folder(tmp_path, class_folder='2')


def test_fewer_than_no_pictures_are_refused_at_once(tmp_path, capsys):
    sounds(tmp_path / 'in', 'dog/a.wav')
    text(tmp_path / 'in' / 'dog' / 'b.mp4', '')
    command = ['build', 'folder', '--source', str(tmp_path / 'in'), '--out', str(tmp_path / 'out'), '--jobs', '1']
    assert main([*command, '--frames', '-1']) == 2
    assert '--frames -1' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_the_captions_of_an_audiofolder(tmp_path):
    """Its splits may have tables themselves; files without a row and rows without a file are left out."""
    sounds(tmp_path, 'data/a.wav', 'data/b.wav', 'data/c.wav', 'data/train/d.wav', 'data/train/x/e.wav')
    text(tmp_path / 'metadata.csv', '\ufefffile_name,text\r\ndata/a.wav,a dog barks\r\ndata/b.wav,"rain, heavy"\r\n')
    text(tmp_path / 'data' / 'c.txt', 'beside it')
    text(
        tmp_path / 'data' / 'train' / 'metadata.jsonl',
        '{"file_name": "d.wav", "caption": "a bell"}\n{"file_name": "x/e.wav", "caption": "a horn"}\n'
        '{"file_name": "x/e.wav", "caption": "a car horn"}\n{"file_name": "gone.wav", "caption": "wind"}\n',
    )
    sounds(tmp_path, 'data/train/x/f.wav')
    files = read_folder(tmp_path)
    assert captions(files) == {
        'data/a.wav': ('a dog barks',),
        'data/b.wav': ('rain, heavy',),
        'data/c.wav': ('beside it',),
        'data/train/d.wav': ('a bell',),
        'data/train/x/e.wav': ('a horn', 'a car horn'),
    }
    assert [(clip.id, clip.reason) for clip in files.left_out] == [
        ('data/train/gone.wav', 'missing'),
        ('data/train/x/f.wav', 'excluded'),
    ]
    assert captions(read_folder(tmp_path, captions='text')) == captions(files)
    assert captions(read_folder(tmp_path, captions='class'))['data/a.wav'] == ('data',)


def test_a_table_of_something_else_leaves_classes_as_they_are(tmp_path):
    sounds(tmp_path, 'dog/a.wav')
    text(tmp_path / 'metadata.csv', 'speaker,age\nx,5\n')
    assert captions(read_folder(tmp_path)) == {'dog/a.wav': ('dog',)}


def test_a_table_without_captions_is_refused_unless_classes_are_asked_for(tmp_path):
    sounds(tmp_path, 'dog/a.wav')
    text(tmp_path / 'metadata.csv', 'file_name,age,label\ndog/a.wav,5,0\n')
    with pytest.raises(DataError, match=r'found file_name, age, label \(--captions class'):
        read_folder(tmp_path)
    assert captions(read_folder(tmp_path, captions='class')) == {'dog/a.wav': ('dog',)}


def test_what_an_audiofolder_left_out_is_counted_in_one_line(tmp_path, capsys):
    sounds(tmp_path / 'in', 'a.wav', 'b.wav')
    text(tmp_path / 'in' / 'metadata.csv', 'file_name,text\na.wav,a dog\ngone.wav,rain\ngone2.wav,rain\n')
    command = ['build', 'folder', '--source', str(tmp_path / 'in'), '--out', str(tmp_path / 'out'), '--jobs', '1']
    assert main([*command, '--sample-rate', '8000']) == 0
    printed = ''.join(capsys.readouterr())
    assert any('missing 2, ' in line and 'excluded 1' in line for line in printed.splitlines()), printed


def test_build(tmp_path):
    """With an empty sound, one that is none, stereo of 24 bits and several rates."""
    source = tmp_path / 'source'
    sounds(source, 'dog/a.wav')
    soundfile.write(source / 'dog' / 'b.flac', np.stack([NOISE, NOISE], axis=1), 16000, subtype='PCM_24')
    text(source / 'dog' / 'empty.wav', '')
    text(source / 'dog' / 'page.mp3', '<!DOCTYPE html>')
    sounds(source, 'clips/Übung.wav', 'clips/bare.wav')
    text(source / 'clips' / 'Übung.txt', 'a piano\na grand piano\n')
    (tmp_path / 'not.txt').write_text('a.wav\n')
    options = ['--source', str(source), '--out', str(tmp_path / 'shards'), '--jobs', '1', '--sample-rate', '8000']
    assert main(['build', 'folder', *options, '--exclude', str(tmp_path / 'not.txt')]) == 0
    shards = Shards(tmp_path / 'shards')
    records = {shards.read(k).id: (shards.read(k), shards.waveform(k)) for k in range(len(shards))}
    assert {k: record.captions for k, (record, _) in records.items()} == {
        'clips/Übung.wav': ('a piano', 'a grand piano'),
        'dog/b.flac': ('dog',),
    }
    np.testing.assert_allclose(records['clips/Übung.wav'][1], NOISE, atol=1e-4)
    assert records['dog/b.flac'][1].shape == (400,)
    skipped = (tmp_path / 'shards' / 'splits' / 'train-skipped.csv').read_text(encoding='utf-8')
    for name, reason in {'a': 'excluded', 'empty': 'unreadable', 'page': 'unreadable', 'bare': 'excluded'}.items():
        assert any(f'{name}.' in line.split(',')[0] and f',{reason},' in line for line in skipped.splitlines())
