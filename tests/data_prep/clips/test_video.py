"""Sound tracks and pictures of containers, which PyAV itself writes here."""

import contextlib
import io

import av
import numpy as np
import pytest
from PIL import Image
from support.small_media import CODECS, click, cut_short, noise, place_of_click, write_sound, write_tar, write_video

from audiosep_jax.audio import containers
from audiosep_jax.errors import AudioFileError, LeftOutError
from data_prep.clips.media import read_frames, read_sound, sound_seconds

RATE = 32000
# Seconds that the encoders put before the sound; these containers cannot store that.
ENCODER_DELAY = {'.avi': 0.026, '.ts': 0.024, '.flv': 0.024}


def rate_of(suffix):
    return 48000 if suffix in ('.webm', '.mkv') else 44100


def tones(seconds, rate):
    """Tones instead of noise, because AAC codes noise as 'some noise', which decodes differently each time."""
    time = np.arange(seconds * rate) / rate
    return 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * (500 + 100 * time) * time)


def greys(pictures):
    return [float(np.asarray(Image.open(io.BytesIO(picture)).convert('L')).mean()) for picture in pictures]


@pytest.mark.parametrize('suffix', CODECS)
def test_a_click_is_where_it_was(tmp_path, suffix):
    path = write_video(tmp_path / f'a{suffix}', 9, rate_of(suffix), sound=click(9, rate_of(suffix), 7.0))
    everything = read_sound(path, sample_rate=RATE)
    assert abs(len(everything) / RATE - 9) < 0.06
    assert abs(place_of_click(everything, RATE) - 7 - ENCODER_DELAY.get(suffix, 0)) < 0.002
    assert abs(sound_seconds(path) - 9) < 0.3
    for start in (0.0, 4.0, 6.51):
        part = read_sound(path, sample_rate=RATE, start=start, seconds=2.4 if start else 8.0)
        assert len(part) == (76800 if start else 256000)
        assert part.dtype == np.float32
        if start + len(part) / RATE > 7:
            assert abs(place_of_click(part, RATE) + start - 7 - ENCODER_DELAY.get(suffix, 0)) < 0.002
        else:
            assert np.abs(part).max() < 0.01


@pytest.mark.parametrize('suffix', ['.mp4', '.webm'])
def test_a_part_sounds_like_the_whole(tmp_path, suffix):
    path = write_video(tmp_path / f'a{suffix}', 6, rate_of(suffix), sound=tones(6, rate_of(suffix)))
    everything = read_sound(path, sample_rate=16000)
    part = read_sound(path, sample_rate=16000, start=3.0, seconds=1.0)
    shifts = range(-32, 33)  # Matroska's time stamps are rounded to 1 ms
    errors = [np.abs(part - everything[48000 + s : 64000 + s]).max() for s in shifts]
    best = int(np.argmin(errors))
    assert abs(shifts[best]) <= (0 if suffix == '.mp4' else 16)
    assert errors[best] < (1e-4 if suffix == '.mp4' else 0.05)


def test_little_is_decoded_for_a_part(tmp_path, monkeypatch):
    decoded = []
    real = containers.frame_samples
    monkeypatch.setattr(containers, 'frame_samples', lambda frame: decoded.append(frame.samples) or real(frame))
    for suffix in ('.m4a', '.mp4', '.mkv'):
        path = write_video(tmp_path / f'a{suffix}', 20, rate_of(suffix), sound=click(20, rate_of(suffix), 1))
        decoded.clear()
        read_sound(path, sample_rate=RATE, start=15, seconds=1)
        assert sum(decoded) < 3 * rate_of(suffix)


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.mov'])
def test_a_late_sound_track_begins_with_silence(tmp_path, suffix):
    rate = rate_of(suffix)
    path = write_video(tmp_path / f'a{suffix}', 3, rate, sound=click(3, rate, 1.0), sound_from=0.5)
    everything = read_sound(path, sample_rate=RATE)
    assert abs(place_of_click(everything, RATE) - 1.5) < 0.002
    assert np.abs(everything[: int(0.45 * RATE)]).max() == 0
    part = read_sound(path, sample_rate=RATE, start=0.2, seconds=2.0)
    assert abs(place_of_click(part, RATE) - 1.3) < 0.002
    np.testing.assert_array_equal(read_sound(path, sample_rate=RATE, seconds=0.3), np.zeros(9600))


def test_time_begins_where_the_first_stream_does(tmp_path):
    path = write_video(tmp_path / 'a.m4a', 3, sound=click(3, 44100, 1.0), sound_from=7.0)
    with av.open(str(path)) as container:
        late = container.start_time / 1e6
    assert late > 6.9
    assert abs(place_of_click(read_sound(path, sample_rate=RATE), RATE) + late - 8.0) < 0.002
    part = read_sound(path, sample_rate=RATE, start=0.75, seconds=1)
    assert abs(place_of_click(part, RATE) + 0.75 + late - 8.0) < 0.002


def test_what_a_container_is_called_does_not_matter(tmp_path):
    video = write_video(tmp_path / 'a.m4a', 0.5)
    expected = read_sound(video, sample_rate=RATE)
    video.rename(tmp_path / 'b.wav')
    np.testing.assert_array_equal(read_sound(tmp_path / 'b.wav', sample_rate=RATE), expected)
    write_sound(tmp_path / 'c.wav', 0.5).rename(tmp_path / 'c.mp4')
    assert len(read_sound(tmp_path / 'c.mp4', sample_rate=RATE)) == RATE // 2
    for name in ('-d.mp4', 'x:y.mp4', 'http:z.mp4', 'ü %03d.mp4'):
        assert len(read_sound(write_video(tmp_path / name, 0.3), sample_rate=RATE)) >= 0.3 * RATE


@pytest.mark.parametrize('suffix', ['.mp4', '.m4a', '.webm', '.mkv', '.avi'])
def test_tags_that_are_not_utf8_do_not_matter(tmp_path, suffix):
    path = write_video(tmp_path / f'a{suffix}', 0.5, title='Cafe ????')
    expected = read_sound(path, sample_rate=RATE), sound_seconds(path)
    encoded = path.read_bytes()
    assert b'Cafe ????' in encoded
    path.write_bytes(encoded.replace(b'????', b'\xe9\xff\xfe\xe8'))
    np.testing.assert_array_equal(read_sound(path, sample_rate=RATE), expected[0])
    assert sound_seconds(path) == expected[1]
    with contextlib.closing(containers.ContainerSound(path)) as opened:
        assert sum(block.shape[-1] for block in opened.blocks()) >= 0.5 * opened.rate
    if suffix != '.m4a':
        assert len(read_frames(path, 2)) == 2


def test_members_of_archives(tmp_path):
    video = write_video(tmp_path / 'a.mp4', 3, sound=click(3, 44100, 2.5))
    archive = write_tar(tmp_path / 'x.tar', {'v/a.mp4': video})
    np.testing.assert_array_equal(
        read_sound(f'{archive}::v/a.mp4', sample_rate=RATE), read_sound(video, sample_rate=RATE)
    )
    part = read_sound(f'{archive}::v/a.mp4', sample_rate=RATE, start=2, seconds=1)
    assert abs(place_of_click(part, RATE) - 0.5) < 0.002
    assert read_frames(f'{archive}::v/a.mp4', 2) == read_frames(video, 2)
    cut = write_tar(tmp_path / 'y.tar', {'a.mp4': cut_short(video)})
    with pytest.raises(AudioFileError, match=r'y\.tar::a\.mp4: damaged, cut short or not a video'):
        read_sound(f'{cut}::a.mp4', sample_rate=RATE)


def _without_sound(path):
    write_video(path, 1, sound=False)


def _without_index(path):
    cut_short(write_video(path, 1), 0.9)


def _page(path):
    path.write_text('<html>404</html>')


def _playlist(path):
    path.write_text('#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n')


def _nothing(path):
    path.write_bytes(b'')


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (_without_sound, 'has no sound track'),
        (_without_index, 'damaged, cut short or not a video'),
        (_page, 'damaged, cut short or not a video'),
        (_playlist, 'damaged, cut short or not a video'),
        (_nothing, 'empty'),
    ],
)
def test_unreadable_videos_are_one_line_with_their_path(tmp_path, make, message):
    path = tmp_path / 'bad.mp4'
    make(path)
    archive = write_tar(tmp_path / 'x.tar', {'bad.mp4': path})
    for place in (path, f'{archive}::bad.mp4'):
        with pytest.raises(AudioFileError, match=message) as caught:
            read_sound(place, sample_rate=RATE)
        assert str(caught.value).count(str(tmp_path)) == 1
        assert '\n' not in str(caught.value)
        assert '0x' not in str(caught.value)


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv', '.webm'])
def test_a_video_cut_short_still_has_its_beginning(tmp_path, suffix):
    options = {'movflags': 'faststart'} if suffix == '.mp4' else {}
    path = cut_short(write_video(tmp_path / f'a{suffix}', 6, rate_of(suffix), options=options), 0.6)
    with pytest.raises(AudioFileError, match='cut short'):
        read_sound(path, sample_rate=RATE)
    with pytest.raises(AudioFileError, match='cut short'):
        read_sound(path, sample_rate=RATE, start=2, seconds=3.5)
    assert len(read_sound(path, sample_rate=RATE, start=0.5, seconds=2)) == 2 * RATE


def test_packets_that_cannot_be_decoded_are_silent_if_they_are_few(tmp_path):
    path = write_video(tmp_path / 'a.m4a', 4, sound=tones(4, 44100))
    intact = read_sound(path, sample_rate=44100)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size, p.pts) for p in container.demux() if p.size]
    data = path.read_bytes()
    for share, few in ((0.03, True), (0.5, False)):
        damaged = bytearray(data)
        bad = packets[40 : 40 + int(share * len(packets))]
        for position, size, _ in bad:
            damaged[position : position + size] = b'\xff' * size
        path.write_bytes(bytes(damaged))
        if few:
            sound = read_sound(path, sample_rate=44100)
            assert abs(len(sound) - len(intact)) <= 1024
            end = bad[-1][2] + 4 * 1024
            np.testing.assert_allclose(sound[end:][:40000], intact[end:][:40000], atol=0.05)
        else:
            with pytest.raises(AudioFileError, match='cannot be decoded'):
                read_sound(path, sample_rate=44100)


def test_no_more_sound_is_made_of_a_file_than_it_can_hold(tmp_path, monkeypatch):
    with av.open(str(tmp_path / 'a.avi'), 'w') as container:
        stream = container.add_stream('pcm_s16le', rate=10, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format='s16', layout='mono')
        frame.sample_rate, frame.pts = 10, 0
        container.mux(stream.encode(frame))
    with pytest.raises(AudioFileError, match='a sample rate of 10 Hz'):
        read_sound(tmp_path / 'a.avi', sample_rate=RATE)
    path = write_video(tmp_path / 'a.m4a', 5, sound=tones(5, 44100))
    monkeypatch.setattr(containers, 'LONGEST_SILENCE', 1.0)
    assert len(read_sound(path, sample_rate=RATE)) >= 5 * RATE
    assert 5 <= sound_seconds(path) < 5.1
    monkeypatch.setattr(containers, '_MIN_BYTES_PER_SECOND', path.stat().st_size / 3)
    for part in ({}, dict(start=4.5, seconds=0.5)):
        with pytest.raises(AudioFileError, match=r'a\.m4a: damaged, the file is too small for that much sound'):
            read_sound(path, sample_rate=RATE, **part)
    with pytest.raises(AudioFileError, match='too small for 5 s of sound'):
        sound_seconds(path)


def test_a_part_beyond_the_end_is_too_short(tmp_path):
    path = write_video(tmp_path / 'a.mp4', 1)
    for read in (lambda: read_sound(path, sample_rate=RATE, start=5, seconds=2), lambda: read_frames(path, 2, start=5)):
        with pytest.raises(LeftOutError, match='ends before the part') as caught:
            read()
        assert caught.value.reason == 'too short'


@pytest.mark.parametrize('suffix', ['.mp4', '.webm', '.mkv'])
@pytest.mark.parametrize('gop', [1, 12, 300])
def test_pictures_are_those_shown_in_the_middles_of_equal_pieces(tmp_path, suffix, gop):
    path = write_video(tmp_path / f'a{suffix}', 12, rate_of(suffix), gop=gop)  # picture n: 20 n mod 240
    for count, start, seconds in [(1, 0.0, 1.0), (4, 0.0, 12.0), (3, 6.0, 2.1), (2, 10.0, 2.0)]:
        times = [start + seconds * (k + 0.5) / count for k in range(count)]
        expected = [20 * int(t * 10 + 1e-6) % 240 for t in times]
        found = greys(read_frames(path, count, start=start, seconds=seconds))
        np.testing.assert_allclose(found, expected, atol=4)
    assert read_frames(path, 3) == read_frames(path, 3, start=0, seconds=sound_seconds(path)) or suffix != '.mp4'


@pytest.mark.parametrize('suffix', ['.mkv', '.webm'])
def test_recordings_without_length_and_index(tmp_path, suffix):
    path = write_video(tmp_path / f'a{suffix}', 9, 48000, sound=click(9, 48000, 7.0), options={'live': '1'})
    with av.open(str(path)) as container:
        assert container.duration is None
    assert abs(sound_seconds(path) - 9) < 0.1
    part = read_sound(path, sample_rate=RATE, start=6.0, seconds=2.0)
    assert len(part) == 2 * RATE
    assert abs(place_of_click(part, RATE) - 1.0) < 0.002
    np.testing.assert_allclose(greys(read_frames(path, 2)), [20 * 22 % 240, 20 * 66 % 240], atol=21)
    np.testing.assert_allclose(greys(read_frames(path, 1, start=6.0, seconds=1.0)), [20 * 65 % 240], atol=4)


def test_pictures_are_at_most_256_pixels_on_the_shorter_side(tmp_path):
    for size, expected in [((640, 480), (341, 256)), ((360, 640), (256, 455)), ((64, 48), (64, 48))]:
        (picture,) = read_frames(write_video(tmp_path / 'a.mp4', 0.3, size=size), 1)
        image = Image.open(io.BytesIO(picture))
        assert (image.format, image.size) == ('JPEG', expected)


def test_a_file_with_only_sound_has_no_pictures(tmp_path):
    with pytest.raises(AudioFileError, match='has no pictures'):
        read_frames(write_video(tmp_path / 'a.m4a', 0.3), 1)


def test_sample_formats(tmp_path):
    for codec, form in [('pcm_u8', 'u8'), ('pcm_s32le', 's32'), ('pcm_f32le', 'flt'), ('flac', 's16')]:
        path, sound = tmp_path / f'{codec}.mkv', noise(0.5, 16000)
        with av.open(str(path), 'w') as container:
            stream = container.add_stream(codec, rate=16000, layout='mono')
            resampler = av.AudioResampler(format=form, layout='mono', rate=16000)
            frame = av.AudioFrame.from_ndarray(sound[None], format='fltp', layout='mono')
            frame.sample_rate, frame.pts = 16000, 0
            for piece in resampler.resample(frame):
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
        read = read_sound(path, sample_rate=16000)
        np.testing.assert_allclose(read, sound, atol={'u8': 0.01}.get(form, 1e-4))


@pytest.mark.parametrize('suffix', ['.mp4', '.webm', '.ts', '.flv'])
def test_damage_of_any_kind_is_an_error_of_the_file_or_none(tmp_path, suffix):
    path = write_video(tmp_path / f'a{suffix}', 1)
    intact, random, opened = path.read_bytes(), np.random.default_rng(7), 0
    for trial in range(20):
        damaged = np.frombuffer(intact, np.uint8).copy()
        places = random.integers(0, len(damaged), 30)
        damaged[places if trial % 2 else places % 1000 - 1000 * (suffix == '.mp4')] = random.integers(0, 256, 30)
        path.write_bytes(damaged[: len(damaged) if trial % 3 else random.integers(1, len(damaged))].tobytes())
        for read in (read_sound, lambda path, sample_rate: read_frames(path, 2, start=0.2, seconds=0.5)):
            with contextlib.suppress(AudioFileError, LeftOutError):
                read(path, sample_rate=RATE)
                opened += 1
    assert 0 < opened < 40


def test_pictures_are_rotated_for_display(tmp_path):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:12] = 255  # above
    with av.open(str(tmp_path / 'a.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        stream.set_display_rotation(90)
        frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (turned,) = read_frames(tmp_path / 'a.mp4', 1)
    pixels = np.asarray(Image.open(io.BytesIO(turned)).convert('L'))
    assert pixels.shape == (64, 48)
    assert pixels[:, :8].mean() > 240  # a quarter turn to the left
    assert pixels[:, 16:].mean() < 10
