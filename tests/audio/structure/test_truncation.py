"""Files that were cut short are refused; those whose header only looks like it are read."""

import io

import numpy as np
import pytest
import soundfile
from support.small_media import cut_short, sine, write_sound

from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.structure.kinds import ASF_GUID
from audiosep_jax.audio.structure.parts import structure_of
from audiosep_jax.audio.structure.truncation import (
    is_sound_file_cut_short,
    walk_avi,
    walk_boxes,
    walk_caf,
    walk_elements,
    walk_flv,
    walk_forms,
    walk_objects,
)
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import AudioFileError


@pytest.mark.parametrize(
    ('name', 'container', 'subtype'),
    [
        ('x.wav', 'WAV', 'PCM_16'),
        ('x.wav', 'WAV', 'FLOAT'),
        ('x.wav', 'WAVEX', 'PCM_24'),
        ('x.wav', 'RF64', 'PCM_16'),
        ('x.w64', 'W64', 'PCM_16'),
        ('x.aiff', 'AIFF', 'PCM_16'),
        ('x.au', 'AU', 'PCM_16'),
        ('x.flac', 'FLAC', 'PCM_16'),
        ('x.ogg', 'OGG', 'VORBIS'),
        ('x.ogg', 'OGG', 'OPUS'),
        ('x.mp3', 'MP3', 'MPEG_LAYER_III'),
    ],
)
def test_whole_files_are_read_and_cut_ones_refused(tmp_path, name, container, subtype):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 2))
    path = tmp_path / name
    soundfile.write(path, noise, 48000, format=container, subtype=subtype)
    sound, rate = read_audio(path)
    assert sound.shape == (2, 48000)
    assert rate == 48000
    cut_short(path, 0.6)
    with pytest.raises(AudioFileError, match='cut short'):
        read_audio(path)


def test_the_header_that_a_pipe_leaves_is_not_damage(tmp_path):
    path = tmp_path / 'x.wav'
    write_audio(path, sine(), 16000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b'\xff\xff\xff\xff'  # what ffmpeg leaves when it cannot seek back
    path.write_bytes(content)
    assert read_audio(path)[0].shape == (1, 8000)


def test_mp3_without_a_length_header_is_read(tmp_path):
    path = tmp_path / 'x.mp3'
    soundfile.write(path, np.zeros(16000), 16000, format='MP3', subtype='MPEG_LAYER_III')
    content = path.read_bytes()
    second_frame = content.index(content[:2], 2)
    path.write_bytes(b'ID3\x04\x00\x00\x00\x00\x01\x00' + bytes(128) + content[second_frame:])
    assert read_audio(path)[0].shape[-1] > 0


@pytest.mark.parametrize('name', ['x.wav', 'x.aiff', 'x.ogg'])
def test_bytes_in_memory_are_checked_like_files(tmp_path, name):
    path = write_sound(tmp_path / name, 2.0)
    for expected in (False, True):
        data = io.BytesIO(path.read_bytes())
        with soundfile.SoundFile(data) as sound:
            position = data.tell()
            assert (is_sound_file_cut_short(sound) or structure_of(data).is_cut_short) is expected
            assert data.tell() == position
        cut_short(path, 0.6)


def test_boxes_and_elements_tell_whether_a_container_was_cut_short(tmp_path):
    box = (16).to_bytes(4, 'big') + b'ftyp' + bytes(8)
    large = (1).to_bytes(4, 'big') + b'mdat' + (32).to_bytes(8, 'big') + bytes(16)
    open_ended = (0).to_bytes(4, 'big') + b'mdat' + bytes(100)
    element = b'\x1a\x45\xdf\xa3' + b'\x84' + bytes(4)
    unknown = b'\x18\x53\x80\x67' + b'\x01' + b'\xff' * 7 + bytes(5)
    for data, expected in [
        (box + large, False),
        (box + large[:-1], True),
        (box + open_ended, False),
        (element * 2, False),
        (element + element[:-1], True),
        (element + unknown, False),
        (b'', False),
    ]:
        assert structure_of(io.BytesIO(data)).is_cut_short is expected
        (tmp_path / 'x').write_bytes(data)
        assert structure_of(tmp_path / 'x').is_cut_short is expected


def test_chunks_and_objects_tell_whether_a_file_was_cut_short(tmp_path):
    avi = b'RIFF' + (1004).to_bytes(4, 'little') + b'AVI ' + bytes(1000)
    unfinished = b'RIFF' + bytes(4) + b'AVI ' + bytes(1000)
    form = b'FORM' + (1004).to_bytes(4, 'big') + b'AIFF' + bytes(1000)
    caf = b'caff\0\1\0\0' + b'data' + (1000).to_bytes(8, 'big') + bytes(1000)
    open_caf = b'caff\0\1\0\0' + b'data' + b'\xff' * 8 + bytes(1000)
    flv = b'FLV\1\5\0\0\0\x09' + bytes(4) + b'\x08' + (1000).to_bytes(3, 'big') + bytes(1011)
    asf = ASF_GUID + (100).to_bytes(8, 'little') + bytes(76) + bytes(16) + (1000).to_bytes(8, 'little') + bytes(976)
    for walk, data, is_known in [
        (walk_avi, avi, True),
        (walk_avi, unfinished, False),
        (walk_forms, form, True),
        (walk_caf, caf, True),
        (walk_caf, open_caf, False),
        (walk_flv, flv, True),
        (walk_objects, asf, True),
    ]:
        assert walk(io.BytesIO(data), len(data)) == ([0], False)
        assert walk(io.BytesIO(data[:900]), 900) == ([0], is_known)
        if is_known:
            assert walk(io.BytesIO(data * 2), 2 * len(data)) == ([0, len(data)], False)


def test_joined_boxes_and_elements_begin_anew():
    ftyp, moov, mdat = ((16).to_bytes(4, 'big') + name + bytes(8) for name in (b'ftyp', b'moov', b'mdat'))
    video = ftyp + mdat + moov
    assert walk_boxes(io.BytesIO(video * 3), 144) == ([0, 48, 96], False)
    assert walk_boxes(io.BytesIO(video + b'TAGtitle'.ljust(128)), 176) == ([0], False)
    assert walk_boxes(io.BytesIO(video + mdat[:-1]), 63) == ([0], True)
    head, known = b'\x1a\x45\xdf\xa3\x80', b'\x18\x53\x80\x67\x84' + bytes(4)
    unknown = b'\x18\x53\x80\x67\x01' + b'\xff' * 7 + b'\x1f\x43\xb6\x75\xff' + b'\xa3\x84' + bytes(4)
    for segment in (known, unknown):
        data = head + segment
        assert walk_elements(io.BytesIO(data * 2), 2 * len(data)) == ([0, len(data)], False)
        assert walk_elements(io.BytesIO(data + data[:-1]), 2 * len(data) - 1) == ([0, len(data)], True)
        assert walk_elements(io.BytesIO(data + b'TAGtitle'.ljust(128)), len(data) + 128) == ([0], False)
