"""The sound track of a container: blocks, parts of it, and what is refused. tests/data_prep/clips covers more."""

import contextlib
import io

import av
import numpy as np
import pytest
from support.small_media import click, cut_short, place_of_click, write_video

from audiosep_jax.audio import containers
from audiosep_jax.audio.containers import ContainerSound
from audiosep_jax.audio.reading import SoundInput, open_sound, read_audio
from audiosep_jax.errors import AudioFileError

RATE = 48000


def read(sound, start=0, stop=None):
    return SoundInput('name', [sound]).read(start, stop)


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
    """Containers by suffix, with a click at 2.5 of 4 seconds."""
    folder = tmp_path_factory.mktemp('recordings')
    suffixes = ('.m4a', '.mp4', '.mkv', '.avi')
    return {s: write_video(folder / f'a{s}', 4, RATE, sound=click(4, RATE, 2.5)) for s in suffixes}


def test_blocks_are_the_whole_and_have_the_channels_of_the_track(recordings):
    with ContainerSound(recordings['.m4a']) as sound:
        assert (sound.rate, sound.channels) == (RATE, 2)
        assert abs(sound.seconds - 4) < 0.1
        blocks = list(sound.blocks())
    assert all(block.dtype == np.float32 and block.shape[0] == 2 and block.shape[1] for block in blocks)
    with ContainerSound(recordings['.m4a'], mono=True) as sound:
        mono = read(sound)
    assert mono.shape[0] == 1
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1).mean(axis=0, keepdims=True), mono)
    np.testing.assert_array_equal(read_audio(recordings['.m4a'])[0], np.concatenate(blocks, axis=1))


@pytest.mark.parametrize('suffix', ['.m4a', '.mp4', '.mkv', '.avi'])
@pytest.mark.parametrize('in_memory', [False, True])
def test_a_part_has_its_samples_and_no_more(recordings, suffix, in_memory):
    path = recordings[suffix]
    with ContainerSound(path) as sound:
        whole = read(sound)
    for start, stop in [(0, 1000), (10_000, 10_001), (100_000, 130_000), (whole.shape[1] - 10, whole.shape[1] + 9999)]:
        with ContainerSound(io.BytesIO(path.read_bytes()) if in_memory else path, 'name', mono=False) as sound:
            part = read(sound, start, stop)
        if suffix == '.mkv':  # its time stamps are rounded to 1 ms
            assert abs(part.shape[1] - min(stop, whole.shape[1]) + start) <= RATE // 1000
        else:
            assert part.shape == (2, min(stop, whole.shape[1]) - start)
            np.testing.assert_allclose(part, whole[:, start:stop], atol=2e-3)
    with ContainerSound(path) as sound:
        assert read(sound, whole.shape[1] + RATE, None).shape == (2, 0)
    assert abs(place_of_click(whole[0], RATE) - 2.5) < 0.03


def test_a_late_track_and_a_gap_are_silent(tmp_path):
    """The track begins at 0.5 s; between two parts of it nothing is written for two seconds."""
    path = tmp_path / 'a.mkv'
    with av.open(str(path), 'w') as container:
        video = container.add_stream('mpeg4', rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, 'yuv420p'
        audio = container.add_stream('pcm_s16le', rate=8000, layout='mono')
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format='rgb24')
        picture.pts = 0
        packets = video.encode(picture) + video.encode(None)
        for begin in (0.5, 3.5):
            samples = np.full((1, 8000), 8192, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format='s16', layout='mono')
            frame.sample_rate, frame.pts = 8000, round(begin * 8000)
            packets += audio.encode(frame)
        container.mux(packets)
    with ContainerSound(path) as sound:
        blocks = list(sound.blocks())
    assert max(block.shape[1] for block in blocks) <= 8000  # a long gap is no large array
    expected = np.zeros(36000, np.float32)
    expected[4000:12000] = expected[28000:36000] = 0.25
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1)[0], expected)
    for start, stop in [(2000, 5000), (11_000, 29_000), (15_000, 20_000)]:
        with ContainerSound(path) as sound:
            np.testing.assert_array_equal(read(sound, start, stop)[0], expected[start:stop])


def test_seeking_past_the_place_is_noticed(recordings, monkeypatch):
    """As with a wrong index: the track is then decoded from its beginning."""
    with ContainerSound(recordings['.m4a']) as sound:
        expected = read(sound, 100_000, 101_000)
    seek = containers.seek_container
    monkeypatch.setattr(containers, 'seek_container', lambda container, _, name: seek(container, 3_500_000, name))
    with ContainerSound(recordings['.m4a']) as sound:
        np.testing.assert_allclose(read(sound, 100_000, 101_000), expected, atol=1e-3)


def test_files_that_were_cut_short_are_refused_when_opened(tmp_path):
    for suffix, options in [('.mp4', {'movflags': 'faststart'}), ('.mkv', {})]:
        path = cut_short(write_video(tmp_path / f'a{suffix}', 4, RATE, options=options), 0.6)
        with pytest.raises(AudioFileError, match='cut short'), open_sound(path):
            pass
        with ContainerSound(path) as sound:
            assert sound.is_cut_short
            assert read(sound, 0, RATE).shape[1] == RATE
        with ContainerSound(path) as sound, pytest.raises(AudioFileError, match='cut short'):
            read(sound, 0, 4 * RATE)


def test_a_silence_of_hours_is_damage(recordings, monkeypatch):
    monkeypatch.setattr(containers, 'LONGEST_SILENCE', -1e-9)
    with ContainerSound(recordings['.m4a']) as sound, pytest.raises(AudioFileError, match='time stamps jump'):
        read(sound)


def test_a_rate_or_channels_that_change_are_refused(recordings):
    with ContainerSound(recordings['.m4a']) as sound:
        sound.channels = 1
        with pytest.raises(AudioFileError, match='change midway'):
            read(sound)


def test_tags_that_are_not_utf8_do_not_matter(tmp_path):
    path = write_video(tmp_path / 'a.m4a', 0.5, title='Cafe ????')
    path.write_bytes(path.read_bytes().replace(b'????', b'\xe9\xff\xfe\xe8'))
    with contextlib.closing(ContainerSound(path)) as opened:
        assert sum(block.shape[-1] for block in opened.blocks()) >= 0.5 * opened.rate
