"""The format of a file is that of its content."""

import io

import pytest
import soundfile
from support.paths import SOUNDS
from support.small_media import noise, write_video

from audiosep_jax.audio.reading import open_sound
from audiosep_jax.audio.structure.kinds import AAC, AVI, FLAC, MP3, MP4, OGG, OTHER, WAV, kind_of, mpeg_frame
from audiosep_jax.errors import AudioFileError


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('aac_named.mp3', AAC),
        ('vbr_without_xing.mp3', MP3),
        ('unknown_length.flac', FLAC),
        ('flac_in_ogg.oga', OGG),
        ('zero_sizes.wav', WAV),
        ('m4a_with_id3v1.m4a', MP4),
        ('cut_in_half.avi', AVI),
    ],
)
def test_the_bytes_tell_the_format(tmp_path, name, kind):
    data = (SOUNDS / name).read_bytes()
    tag = b'ID3\x04\x00\x00\x00\x00\x01\x00' + bytes(128)
    for content in (data, tag + data):
        (tmp_path / 'x.txt').write_bytes(content)
        assert kind_of(tmp_path / 'x.txt') == kind_of(io.BytesIO(content)) == kind


def test_frames_are_found_behind_a_part_of_one():
    for name, kind in (('vbr_without_xing.mp3', MP3), ('aac_named.mp3', AAC)):
        data = (SOUNDS / name).read_bytes()
        assert kind_of(io.BytesIO(data[150:])) == kind


@pytest.mark.parametrize('content', [b'text' * 100, noise(1, 8000).tobytes(), b'\xff\xfb', b'\0' * 5000, b'\xd0'])
def test_what_is_no_sound_has_no_format(content):
    assert kind_of(io.BytesIO(content)) == OTHER


def test_headers_of_frames():
    frame = mpeg_frame(b'\xff\xfb\x90\x00')  # MPEG 1, layer 3, 128 kbit/s, 44.1 kHz
    assert (frame.size, frame.samples, frame.rate, frame.channels) == (417, 1152, 44100, 2)
    assert mpeg_frame(b'\xff\xf3\x80\xc0').samples == 576  # MPEG 2
    for none in (b'', b'\xff\xfb\xf0\x00', b'\xff\xf9\x90\x00', b'\xff\xfb\x9c\x00'):
        assert mpeg_frame(none) is None


def test_unsupported_and_damaged_are_told_apart(tmp_path, capfd):
    for name, content, says in [
        ('a.mid', b'MThd' + bytes(100), 'MIDI .* is not supported; convert'),
        ('a.wav', b'FRM8' + bytes(100), 'DSDIFF is not supported; convert'),
        ('a.flac', b'fLaC' + bytes(100), r'damaged, cut short or not an audio file \(.*\); download or export'),
        ('a.mp3', b'ID3\x04\x00\x00\x00\x00\x00\x00' + bytes(100), 'damaged, cut short or not an audio file'),
        ('b.mp3', b'\xff\xfb' + bytes(100), 'damaged, cut short or not an audio file'),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioFileError, match=says) as caught, open_sound(tmp_path / name) as sound:
            sound.read()
        assert '\n' not in str(caught.value)
    assert capfd.readouterr() == ('', '')


def test_a_codec_without_decoder_is_unsupported(tmp_path):
    path = tmp_path / 'a.wav'
    soundfile.write(path, noise(0.1, 8000), 8000)
    data = bytearray(path.read_bytes())
    data[20:22] = b'\x99\x99'  # no codec has this number
    path.write_bytes(data)
    with pytest.raises(AudioFileError, match='is not supported; convert'), open_sound(path) as sound:
        sound.read()
    video = write_video(tmp_path / 'a.m4a', 0.2)
    video.write_bytes(video.read_bytes().replace(b'mp4a', b'enca'))
    with pytest.raises(AudioFileError, match='encrypted audio is not supported'), open_sound(video) as sound:
        sound.read()
