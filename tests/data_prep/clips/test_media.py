import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile
from support.small_media import click, cut_short, noise, place_of_click, write_sound, write_tar

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.errors import AudioFileError, LeftOutError
from data_prep.clips import media
from data_prep.clips.media import read_frames, read_sound, sound_seconds, tar_members

RATE = 32000


def whole(path):
    """What `read_audio` makes of the file."""
    return read_audio(path, sample_rate=RATE, mono=True)[0][0]


@pytest.mark.parametrize(
    ('name', 'rate', 'channels', 'subtype'),
    [
        ('a.wav', 44100, 1, 'PCM_16'),
        ('a.wav', 22050, 2, 'PCM_24'),
        ('a.wav', 32000, 2, 'FLOAT'),
        ('a.wav', 44101, 1, 'PCM_16'),
        ('a.wav', 8000, 6, 'PCM_U8'),
        ('a.flac', 48000, 2, 'PCM_24'),
        ('a.ogg', 44100, 2, 'VORBIS'),
        ('a.mp3', 44100, 2, 'MPEG_LAYER_III'),
    ],
)
def test_a_part_is_what_the_whole_has_there(tmp_path, name, rate, channels, subtype):
    path = write_sound(tmp_path / name, 4.0, rate, channels=channels, subtype=subtype)
    everything = whole(path)
    np.testing.assert_array_equal(read_sound(path, sample_rate=RATE), everything)
    for start, seconds in [(0.0, 1.0), (1.2345, 1.5), (2.5, None), (3.5, 10.0)]:
        part = read_sound(path, sample_rate=RATE, start=start, seconds=seconds)
        first = round(start * RATE)
        expected = everything[first:] if seconds is None else everything[first : first + round(seconds * RATE)]
        assert part.dtype == np.float32
        assert abs(len(part) - len(expected)) <= (1 if first + len(expected) == len(everything) else 0)
        kept = min(len(part), len(expected))
        np.testing.assert_allclose(part[:kept], expected[:kept], atol=2e-5)


def test_a_part_of_a_long_file_is_found_by_seeking(tmp_path, monkeypatch):
    path = write_sound(tmp_path / 'hour.wav', sound=click(600, 8000, 451.25), rate=8000)
    counts = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, 'read', lambda f, n, **kw: counts.append(n) or read(f, n, **kw))
    part = read_sound(path, sample_rate=16000, start=450, seconds=10)
    assert abs(place_of_click(part, 16000) - 1.25) < 0.001
    assert sum(counts) < 11 * 8000


def test_members_of_archives_are_read_at_their_offset(tmp_path):
    files = {
        'a/b.flac': write_sound(tmp_path / 'b.flac', 0.5),
        './c ü.wav': write_sound(tmp_path / 'c.wav', 1.0, channels=2),
    }
    archive = write_tar(tmp_path / 'x.tar', files)
    np.testing.assert_array_equal(read_sound(f'{archive}::a/b.flac', sample_rate=RATE), whole(files['a/b.flac']))
    for name in ('c ü.wav', './c ü.wav'):
        np.testing.assert_allclose(
            read_sound(tmp_path / f'x.tar::{name}', sample_rate=RATE), whole(files['./c ü.wav']), atol=1e-6
        )
    part = read_sound(f'{archive}::c ü.wav', sample_rate=RATE, start=0.25, seconds=0.5)
    np.testing.assert_allclose(part, whole(files['./c ü.wav'])[8000:24000], atol=1e-5)
    assert sound_seconds(f'{archive}::a/b.flac') == 0.5


def test_an_archive_is_listed_once_and_again_when_it_changed(tmp_path, monkeypatch):
    archive = write_tar(tmp_path / 'x.tar', {'a.wav': write_sound(tmp_path / 'a.wav')})
    opened = []
    real = tarfile.open
    monkeypatch.setattr(tarfile, 'open', lambda *args: opened.append(args) or real(*args))
    for _ in range(3):
        read_sound(f'{archive}::a.wav', sample_rate=RATE)
    assert len(opened) == 1
    write_tar(archive, {'longer.wav': write_sound(tmp_path / 'longer.wav', 3.0)})
    os.utime(archive, ns=(1, 1))
    assert list(tar_members(archive)) == ['longer.wav']


def test_what_is_missing(tmp_path):
    archive = write_tar(tmp_path / 'x.tar', {'a.wav': write_sound(tmp_path / 'a.wav')})
    for path in (tmp_path / 'none.wav', tmp_path / 'none.mp4', f'{archive}::b.wav', f'{tmp_path}/y.tar::a.wav'):
        with pytest.raises(LeftOutError) as caught:
            read_sound(path, sample_rate=RATE)
        assert caught.value.reason == 'missing'
        assert str(path).split('::')[0] in str(caught.value)


def test_a_part_beyond_the_end_is_too_short(tmp_path):
    for name in ('a.wav', 'a.flac', 'a.mp3'):
        path = write_sound(tmp_path / name, 1.0)
        with pytest.raises(LeftOutError, match='ends before the part that begins at 30 s') as caught:
            read_sound(path, sample_rate=RATE, start=30, seconds=10)
        assert caught.value.reason == 'too short'


def _empty(path):
    path.write_bytes(b'')


def _no_samples(path):
    soundfile.write(path, np.zeros(0), 8000)


def _text(path):
    path.write_text('<html>404 not found</html>')


def _nan(path):
    soundfile.write(path, np.where(np.arange(8000) == 4000, np.nan, 0.1), 8000, subtype='FLOAT')


def _cut(path):
    cut_short(write_sound(path, sound=noise(1.0, 16000)), 0.3)


def _folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ('name', 'make'),
    [
        ('0.wav', _empty),
        ('none.wav', _no_samples),
        ('page.wav', _text),
        ('page.flac', _text),
        ('nan.wav', _nan),
        ('cut.flac', _cut),
        ('folder.wav', _folder),
    ],
)
@pytest.mark.parametrize('part', [(0.0, None), (0.25, 0.5)])
@pytest.mark.parametrize('in_archive', [False, True])
def test_unreadable_files_are_one_line_with_their_path(tmp_path, name, make, part, in_archive):
    path = tmp_path / name
    make(path)
    if in_archive:
        path = f'{write_tar(tmp_path / "x.tar", {name: path})}::{name}'
    with pytest.raises((AudioFileError, LeftOutError)) as caught:
        read_sound(path, sample_rate=RATE, start=part[0], seconds=part[1])
    assert str(path) in str(caught.value)
    assert '\n' not in str(caught.value)
    if isinstance(caught.value, LeftOutError):  # a folder is no member; without samples a part begins beyond the end
        assert name in ('folder.wav', 'none.wav')


def test_files_that_are_not_archives(tmp_path):
    (tmp_path / 'text.tar').write_text('no archive' * 100)
    with tarfile.open(tmp_path / 'packed.tar', 'w:gz') as packed:
        packed.add(write_sound(tmp_path / 'a.wav'), 'a.wav')
    for name in ('text.tar', 'packed.tar'):
        with pytest.raises(AudioFileError, match=f'{name}: not an uncompressed tar archive'):
            read_sound(tmp_path / f'{name}::a.wav', sample_rate=RATE)
    archive = write_tar(tmp_path / 'cut.tar', {'a.wav': tmp_path / 'a.wav'})
    cut_short(archive, 0.3)
    assert list(tar_members(archive)) == ['a.wav']
    with pytest.raises((AudioFileError, LeftOutError), match=r'cut\.tar'):
        read_sound(f'{archive}::a.wav', sample_rate=RATE)


@pytest.mark.parametrize('rate', [10, 2_000_000_000])
def test_rates_that_no_sound_has_are_refused(tmp_path, rate):
    path = write_sound(tmp_path / 'a.wav', sound=np.zeros(1000), rate=rate)
    archive = write_tar(tmp_path / 'x.tar', {'a.wav': path})
    for place, part in [(path, {}), (path, dict(seconds=1.0)), (f'{archive}::a.wav', {})]:
        with pytest.raises(AudioFileError, match=f'its header gives a sample rate of {rate} Hz'):
            read_sound(place, sample_rate=RATE, **part)


def test_lengths_that_a_file_cannot_have_are_refused(tmp_path):
    path = write_sound(tmp_path / 'a.flac', 1.0)
    assert sound_seconds(path) == 1.0
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # the highest four of 36 bits for the number of samples
    path.write_bytes(data)
    for read in (sound_seconds, lambda path: read_sound(path, sample_rate=RATE)):
        with pytest.raises(AudioFileError, match=r'a\.flac: '):
            read(path)


def test_sounds_of_many_hours_are_only_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(media, 'LONGEST', 2.0)
    path = write_sound(tmp_path / 'a.wav', 3.0)
    archive = write_tar(tmp_path / 'x.tar', {'a.wav': path})
    for place, part in [(path, {}), (path, dict(start=0.5)), (f'{archive}::a.wav', {}), (path, dict(seconds=2.5))]:
        with pytest.raises(AudioFileError, match='lasts more than'):
            read_sound(place, sample_rate=RATE, **part)
    assert len(read_sound(path, sample_rate=RATE, start=1.5, seconds=1.0)) == RATE


def test_sounds_too_large_for_memory_are_unreadable(tmp_path, monkeypatch):
    def no_memory(*args):
        raise MemoryError

    path = write_sound(tmp_path / 'a.wav', 1.0)
    monkeypatch.setattr(media, 'resample', no_memory)
    for part in ({}, dict(seconds=0.5)):
        with pytest.raises(AudioFileError, match=r'a\.wav: damaged, or too long to fit into memory'):
            read_sound(path, sample_rate=RATE, **part)


@pytest.mark.parametrize('name', ['a.wav', 'a.ogg', 'a.aiff', 'a.flac'])
def test_what_was_cut_short_is_unreadable_as_a_whole_as_a_member_and_in_parts(tmp_path, name):
    path = cut_short(write_sound(tmp_path / name, 4.0), 0.6)
    archive = write_tar(tmp_path / 'x.tar', {name: path})
    for place in (path, f'{archive}::{name}'):
        for part in ({}, dict(start=0.5), dict(start=1.0, seconds=2.0), dict(start=3.5, seconds=0.5)):
            with pytest.raises(AudioFileError, match='damaged'):
                read_sound(place, sample_rate=RATE, **part)
        assert len(read_sound(place, sample_rate=RATE, start=0.5, seconds=0.5)) == RATE // 2  # before the cut


def test_lengths_that_are_not_known_or_miscounted_do_no_harm(tmp_path):
    path = write_sound(tmp_path / 'a.wav', 1.0)
    data = bytearray(path.read_bytes())
    place = data.index(b'data') + 4
    for promised in (0x7FFFF000, 0xFFFFFFFF, 32000 + 44):
        data[place : place + 4] = promised.to_bytes(4, 'little')
        path.write_bytes(data)
        archive = write_tar(tmp_path / f'{promised}.tar', {'a.wav': path})
        for place_of in (path, f'{archive}::a.wav'):
            assert len(read_sound(place_of, sample_rate=RATE)) == RATE
            assert len(read_sound(place_of, sample_rate=RATE, start=0.5)) == RATE // 2


def test_messages_are_the_same_every_time(tmp_path):
    (tmp_path / 'page.wav').write_text('<html>')
    (tmp_path / 'page.raw').write_text('<html>')
    archive = write_tar(tmp_path / 'x.tar', {'page.wav': tmp_path / 'page.wav'})
    for place in (tmp_path / 'page.wav', tmp_path / 'page.raw', f'{archive}::page.wav'):
        for part in ({}, dict(seconds=0.5)):
            with pytest.raises(AudioFileError) as caught:
                read_sound(place, sample_rate=RATE, **part)
            assert str(caught.value).count(str(tmp_path)) == 1
            assert '0x' not in str(caught.value)
            assert "b'" not in str(caught.value)


def test_silence_is_a_sound(tmp_path):
    path = write_sound(tmp_path / 'a.wav', sound=np.zeros(1600), rate=16000)
    np.testing.assert_array_equal(read_sound(path, sample_rate=RATE), np.zeros(3200))


def test_sounds_have_no_pictures(tmp_path):
    with pytest.raises(AudioFileError, match='has no pictures'):
        read_frames(write_sound(tmp_path / 'a.wav'), 2)


def test_names_that_could_be_something_else(tmp_path):
    for name in ('-dash.wav', '_x.wav', 'a:b.wav', 'b.tar::c.wav', 'ü ü.flac'):
        path = write_sound(tmp_path / name, 0.1)
        assert len(read_sound(path, sample_rate=RATE)) == 3200


@pytest.mark.parametrize('part', [(-1.0, None), (0.0, 0.0), (0.0, float('inf')), (float('nan'), None)])
def test_parts_that_cannot_be_are_mistakes_of_the_caller(tmp_path, part):
    path = write_sound(tmp_path / 'a.wav')
    with pytest.raises(ValueError, match='start'):
        read_sound(path, sample_rate=RATE, start=part[0], seconds=part[1])


def test_nothing_heavy_is_imported_before_it_is_needed():
    program = (
        'import sys, data_prep.__main__, data_prep.clips.media; print({"av", "PIL", "apache_beam"} & set(sys.modules))'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'
