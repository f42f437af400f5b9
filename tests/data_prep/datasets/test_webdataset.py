import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
import tyro

from audiosep_jax.data.shards import Shards
from audiosep_jax.errors import DataError
from data_prep.__main__ import main
from data_prep.datasets.webdataset import BuildWebDataset, read_webdataset


def sound(seed=0, rate=8000, channels=1, form='FLAC', subtype=None) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (800, channels))
    soundfile.write(buffer, noise, rate, format=form, subtype=subtype)
    return buffer.getvalue()


FLAC, WAV = sound(), sound(1, 16000, 2, 'WAV', 'PCM_24')


def archive(path, *members):
    """A tar archive of (name, content), where content is bytes, a text, or what JSON holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            if not isinstance(content, bytes):
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(path, **settings):
    return read_webdataset([path], **settings)


def captions(files) -> dict[str, tuple[str, ...]]:
    return {entry.id: entry.captions for entry in files.entries}


def reasons(files) -> list[tuple[str, str]]:
    return [(clip.id, clip.reason) for clip in files.left_out]


def test_captions_and_labels_of_every_form(tmp_path):
    path = archive(
        tmp_path / 'data-000000.tar',
        ('1.flac', FLAC),
        ('1.json', {'text': 'a dog barks', 'tag': ['Dog'], 'original_data': {'text': 'not this'}}),
        ('2.json', {'text': ['rain', ' heavy  rain ', 'rain', 3, None], 'duration': 5.0}),
        ('2.WAV', WAV),
        ('2.jpg', b'of no use'),
        ('3.flac', FLAC),
        ('3.txt', '\ufeffa cat\r\n\r\na kitten'),
        ('4.mp3', b''),
        ('4.cls', 'Siren\n'),
        ('5.ogg', b''),
        ('5.cls', '1\n'),
        ('6.m4a', b''),
        ('6.json', {'label': [0, 1, 7, True]}),
        ('7.flac', FLAC),
        ('7.json', b'\xef\xbb\xbf{"text": [], "caption": "wind", "tag": "Wind"}'),
        ('7.txt', 'a breeze'),
    )
    files = read(path, class_names=('Dog', 'Horse'))
    assert [(e.id, e.path, e.captions, e.labels) for e in files.entries] == [
        ('data-000000/1', 'data-000000.tar::1.flac', ('a dog barks',), ('Dog',)),
        ('data-000000/2', 'data-000000.tar::2.WAV', ('rain', 'heavy rain'), ()),
        ('data-000000/3', 'data-000000.tar::3.flac', ('a cat', 'a kitten'), ()),
        ('data-000000/4', 'data-000000.tar::4.mp3', ('Siren', 'the sound of siren'), ('Siren',)),
        ('data-000000/5', 'data-000000.tar::5.ogg', ('Horse', 'the sound of horse'), ('Horse',)),
        ('data-000000/6', 'data-000000.tar::6.m4a', ('Dog, Horse', 'the sounds of dog and horse'), ('Dog', 'Horse')),
        ('data-000000/7', 'data-000000.tar::7.flac', ('wind', 'a breeze'), ('Wind',)),
    ]
    assert files.left_out == []
    chosen = read(path, caption_keys=('tag',), label_keys=())
    assert captions(chosen)['data-000000/1'] == ('Dog',)


def test_keys_may_have_dots_and_folders(tmp_path):
    long = 'very/' * 40 + 'long'
    names = ('./a/1.5', './a/1.6', 'b.c/1.5', 'Übung 1', long)
    members = [(f'{name}.{suffix}', content) for name in names for suffix, content in (('flac', FLAC), ('txt', name))]
    files = read(archive(tmp_path / 'x.y.tar', *members))
    assert captions(files) == {f'x.y/{name.removeprefix("./")}': (name,) for name in names}
    assert files.left_out == []
    for index, entry in enumerate(files.entries):
        assert files.read(index, 8000).id == entry.id


def test_members_of_a_sample_may_lie_apart_and_a_lossless_sound_is_preferred(tmp_path):
    members = [('1.mp4', b''), ('2.mp3', b''), ('1.mp3', b''), ('2.flac', b''), ('2.txt', 'two'), ('1.txt', 'one')]
    path = archive(tmp_path / 'x.tar', *members)
    assert [(e.path, e.captions) for e in read(path).entries] == [
        ('x.tar::1.mp3', ('one',)),
        ('x.tar::2.flac', ('two',)),
    ]
    assert [e.path for e in read(path, frames=2).entries] == ['x.tar::1.mp4', 'x.tar::2.flac']  # pictures wanted


def test_archives_by_name_folder_and_pattern(tmp_path):
    for n in range(12):
        archive(tmp_path / 'train' / f'data-{n:06d}.tar', ('1.flac', FLAC), ('1.txt', f'number {n}'))
    archive(tmp_path / 'valid' / 'data-000000.tar', ('1.flac', FLAC), ('1.txt', 'valid'))
    (tmp_path / 'train' / 'sizes.json').write_text('{}')
    (tmp_path / 'train' / '.part.tar').write_text('')
    assert len(read(tmp_path)) == 13
    train = read(tmp_path / 'train')
    assert list(captions(train)) == [f'data-{n:06d}/1' for n in range(12)]
    assert train.folder == tmp_path / 'train'
    for pattern, number in {'data-*.tar': 12, 'data-{000002..000010}.tar': 9, 'data-00000{1,3}.tar': 2}.items():
        files = read(tmp_path / 'train' / pattern)
        assert len(files) == number
        assert all(entry in train.entries for entry in files.entries)  # the same ids and paths
    both = read_webdataset([tmp_path / 'valid', tmp_path / 'train' / 'data-000000.tar', tmp_path / 'valid'])
    assert list(captions(both)) == ['train/data-000000/1', 'valid/data-000000/1']
    assert both.read(1, 8000).captions == ('valid',)
    gap = read(tmp_path / 'train' / 'data-{000011..000012}.tar')
    assert reasons(gap) == [('data-000012.tar', 'missing')]


def test_faulty_samples_are_left_out(tmp_path):
    path = archive(
        tmp_path / 'x.tar',
        ('good.flac', FLAC),
        ('good.txt', 'good'),
        ('broken.flac', FLAC),
        ('broken.json', '{"text": "a dog'),
        ('list.flac', FLAC),
        ('list.json', ['a dog']),
        ('deep.flac', FLAC),
        ('deep.json', '[' * 100_000),
        ('latin.flac', FLAC),
        ('latin.txt', 'sirène'.encode('latin1')),
        ('wordless.flac', FLAC),
        ('wordless.json', {'text': '', 'title': 'x'}),
        ('alone.flac', FLAC),
        ('number.flac', FLAC),
        ('number.cls', '5'),
        ('silent.json', {'text': 'no sound'}),
        ('saved.flac', FLAC),
        ('saved.json', '{'),
        ('saved.txt', 'by its text'),
        ('half.flac', FLAC),
        ('half.json', '{"text": "half a \\ud83d pair"}'),
    )
    files = read(path)
    assert captions(files) == {
        'x/good': ('good',),
        'x/saved': ('by its text',),
        'x/half': ('half a ? pair',),
    }
    assert dict(reasons(files)) == {
        'x/broken': 'unreadable',
        'x/list': 'unreadable',
        'x/deep': 'unreadable',
        'x/latin': 'unreadable',
        'x/wordless': 'excluded',
        'x/alone': 'excluded',
        'x/number': 'excluded',
        'x/silent': 'missing',
    }
    messages = {clip.id: clip.message for clip in files.left_out}
    assert '.json without a sound' in messages['x/silent']
    assert '--class-names' in messages['x/number']
    assert not any('\n' in message for message in messages.values())


def test_of_members_with_one_name_the_last_counts(tmp_path):
    other = sound(7)
    members = [('1.flac', FLAC), ('1.txt', 'first'), ('2.flac', FLAC), ('2.txt', 'two'), ('1.flac', other)]
    files = read(archive(tmp_path / 'x.tar', *members, ('1.txt', 'last')))
    assert captions(files) == {'x/1': ('last',), 'x/2': ('two',)}
    assert reasons(files) == [('x/1', 'excluded'), ('x/1', 'excluded')]
    expected, _ = soundfile.read(io.BytesIO(other), dtype='float32')
    np.testing.assert_allclose(files.read(0, 8000).audio, expected, atol=1e-4)


def test_what_is_no_file_is_passed_over(tmp_path):
    path = archive(tmp_path / 'x.tar', ('1.flac', FLAC), ('1.txt', 'one'), ('._1.flac', b'x'), ('a/.b.flac', b'x'))
    with tarfile.open(path, 'a') as tar:
        for name, kind in (('2.flac', tarfile.SYMTYPE), ('3.flac', tarfile.DIRTYPE), ('4.flac', tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, '1.flac'
            tar.addfile(info)
    files = read(path)
    assert captions(files) == {'x/1': ('one',)}
    assert files.left_out == []


@pytest.fixture
def three(tmp_path):
    """An archive of three samples, and where in it the members' headers are."""
    path = archive(
        tmp_path / 'x.tar',
        *((f'{n}.{suffix}', content) for n in range(3) for suffix, content in (('txt', f'number {n}'), ('flac', FLAC))),
    )
    with tarfile.open(path) as tar:
        return path, {member.name: member for member in tar}


def test_of_an_archive_cut_short_what_is_whole_is_used(three):
    path, members = three
    whole = path.read_bytes()
    end = members['2.flac'].offset_data + members['2.flac'].size
    cuts = {
        members['2.flac'].offset_data + 100: (2, 'within 2.flac'),
        members['2.flac'].offset + 100: (2, 'cannot be read on'),
        members['2.flac'].offset: (2, 'without a mark of its end'),
        members['1.flac'].offset_data + 100: (1, 'within 1.flac'),
        end: (3, 'unexpected end of data'),
        members['0.flac'].offset: (0, ''),
    }
    for cut, (number, message) in cuts.items():
        path.write_bytes(whole[:cut])
        if number == 0:
            with pytest.raises(DataError, match='can be used'):
                read(path)
            continue
        files = read(path)
        assert list(captions(files)) == [f'x/{n}' for n in range(number)]
        assert all(files.read(i, 8000).audio.shape == (800,) for i in range(number))
        archive_left_out = [clip for clip in files.left_out if clip.id == 'x.tar']
        assert [clip.reason for clip in archive_left_out] == ['unreadable']
        assert message in archive_left_out[0].message


def test_damage_and_appended_archives_are_reported(three):
    path, members = three
    whole = path.read_bytes()
    path.write_bytes(whole + whole)
    assert len(read(path)) == 3
    assert 'goes on' in read(path).left_out[-1].message
    damaged = bytearray(whole)
    damaged[members['1.txt'].offset : members['1.txt'].offset + 512] = b'\x55' * 512
    path.write_bytes(damaged)
    files = read(path)
    assert captions(files) == {'x/0': ('number 0',)}
    assert f'cannot be read on after {members["1.txt"].offset} of' in files.left_out[0].message


def test_archives_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r'no archive \(\*\.tar\)'):
        read(tmp_path)
    archive(tmp_path / 'good.tar', ('1.flac', FLAC), ('1.txt', 'one'))
    (tmp_path / 'empty.tar').write_bytes(b'')
    (tmp_path / 'page.tar').write_text('<!DOCTYPE html>' * 100)
    (tmp_path / 'folder.tar').mkdir()
    files = read(tmp_path)
    assert captions(files) == {'good/1': ('one',)}
    assert reasons(files) == [('empty.tar', 'unreadable'), ('page.tar', 'unreadable')]


def test_compressed_and_remote_archives_are_refused(tmp_path):
    plain = archive(tmp_path / 'x.tar', ('1.flac', FLAC), ('1.txt', 'one'))
    (tmp_path / 'z.tar.gz').write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / 'z.tar.gz.md5').write_text('')
    for source in (tmp_path, tmp_path / 'z.tar.gz'):
        with pytest.raises(DataError, match=r'z\.tar\.gz: is compressed, .* unpack it to a \.tar'):
            read(source)
    (tmp_path / 'z.tar.gz').rename(tmp_path / 'z.tar')
    with pytest.raises(DataError, match=r'z\.tar: is compressed \(gzip\)'):
        read(tmp_path)
    with pytest.raises(DataError, match='fetch or mount'):
        read('s3://bucket/x-{000..100}.tar')
    with pytest.raises(DataError, match=r'is not named \.tar'):
        read(tmp_path / 'sizes.json')


def test_clips_are_excluded_by_key_and_youtube_id(tmp_path):
    keys = ('train/Y0bRUkLsttto_30', '12', 'a/13', '14')
    path = archive(tmp_path / 'x.tar', *((f'{k}.{s}', c) for k in keys for s, c in (('flac', FLAC), ('txt', 'sound'))))
    files = read(path, excluded=frozenset(['0bRUkLsttto', '12', '13']))
    assert list(captions(files)) == ['x/14']
    assert [reason for _, reason in reasons(files)] == ['excluded'] * 3


def test_keys_may_be_given_one_by_one(tmp_path):
    path = archive(
        tmp_path / 'x.tar', ('1.flac', FLAC), ('1.json', {'a': 'one', 'b': 'two', 'text': 'no', 'tag': 'Dog'})
    )
    for flags, expected in {
        ('--caption-keys', 'a', 'b'): (('one', 'two'), ('Dog',)),
        ('--caption-keys', 'a', '--caption-keys', 'b', '--label-keys'): (('one', 'two'), ()),
        (): (('no',), ('Dog',)),
    }.items():
        options = tyro.cli(BuildWebDataset, args=['--source', str(path), '--out', 'x', *flags])
        (entry,) = options.clips().entries
        assert (entry.captions, entry.labels) == expected


def test_build(tmp_path, capsys):
    """Over two archives, one of them cut short, with an empty sound, a bad one, stereo of 24 bits and two rates."""
    source, out = tmp_path / 'tars', tmp_path / 'shards'
    archive(
        source / 'data-000000.tar',
        *(('1.flac', FLAC), ('1.json', {'text': ['a dog', 'a puppy'], 'tag': ['Dog']})),
        *(('2.wav', WAV), ('2.json', {'text': 'rain'})),
        *(('3.wav', b''), ('3.json', {'text': 'nothing'})),
        *(('4.mp3', b'<!DOCTYPE html>'), ('4.json', {'text': 'a page'})),
    )
    cut = archive(source / 'data-000001.tar', ('1.txt', 'thunder'), ('1.flac', FLAC), ('2.flac', FLAC), ('2.txt', 'x'))
    cut.write_bytes(cut.read_bytes()[: 512 * 3 + 600 + len(FLAC)])
    options = ['--out', str(out), '--jobs', '1', '--sample-rate', '8000']
    several = ['--source', str(source / 'data-000000.tar'), '--source', str(cut)]
    assert main(['build', 'webdataset', *several, *options]) == 0
    assert main(['build', 'webdataset', '--source', str(source / 'data-*.tar'), *options]) == 0  # the same
    assert main(['build', 'webdataset', *options]) == 2
    shards = Shards(out)
    records = [shards.read(k) for k in range(len(shards))]
    assert [(r.id, r.captions, r.labels) for r in records] == [
        ('data-000000/1', ('a dog', 'a puppy'), ('Dog',)),
        ('data-000000/2', ('rain',), ()),
        ('data-000001/1', ('thunder',), ()),
    ]
    assert [r.source for r in records[::2]] == [
        'webdataset:data-000000.tar::1.flac',
        'webdataset:data-000001.tar::1.flac',
    ]
    expected, _ = soundfile.read(io.BytesIO(FLAC), dtype='float32')
    np.testing.assert_allclose(shards.waveform(0), expected, atol=1e-4)
    assert [shards.waveform(k).shape for k in range(3)] == [(800,), (400,), (800,)]
    assert '5' in capsys.readouterr().err
    assert (
        main(['build', 'webdataset', '--source', str(tmp_path), '--class-names', str(tmp_path / 'no'), *options]) == 1
    )
