"""Nothing of a file is left out: chained and joined recordings, and headers that broken recorders have left."""

import io
import struct

import av
import numpy as np
import pytest
import soundfile
from support.paths import SOUNDS
from support.small_media import noise, sine, write_video

from audiosep_jax.audio.reading import open_sound, read_audio, sound_seconds
from audiosep_jax.audio.structure.parts import structure_of
from audiosep_jax.errors import AudioFileError

RATE = 16000


@pytest.mark.parametrize(
    ('name', 'seconds'),
    [
        ('chained.ogg', 1.98),
        ('joined.mp3', 2.13),
        ('joined.ts', 2.18),
        ('vbr_without_xing.mp3', 3.03),
        ('unknown_length.flac', 1.00),
        ('mp3_in_wav.wav', 1.08),
        ('m4a_with_id3v1.m4a', 1.02),
        ('zero_sizes.wav', 1.00),
        ('flac_in_ogg.oga', 1.00),
        ('aac_named.mp3', 1.09),
        ('theora_and_vorbis.ogv', 0.50),
        ('tone.amr', 0.50),
        ('tone.gsm', 0.50),
    ],
)
def test_files_that_people_have_are_read_to_their_end(capfd, name, seconds):
    sound, rate = read_audio(SOUNDS / name)
    assert abs(sound.shape[1] / rate - seconds) < 0.03
    assert abs(sound_seconds(SOUNDS / name) - seconds) < 0.05
    with open_sound(io.BytesIO((SOUNDS / name).read_bytes()), name='x') as opened:
        np.testing.assert_array_equal(opened.read(), sound)
    assert np.abs(sound[:, -rate // 10 :]).max() > 0.01  # to the end there is sound
    assert capfd.readouterr() == ('', '')


def _encoded(path, form, codec, samples, rate=RATE):
    """A file of a format and a codec of FFmpeg, without pictures."""
    with av.open(str(path), 'w', format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout='mono')
        context = stream.codec_context
        if codec == 'wavpack':
            context.format = 's16p'
        if codec == 'wmav2':
            context.bit_rate = 64000
        context.open()
        resampler = av.AudioResampler(format=context.format, layout='mono', rate=rate, frame_size=context.frame_size)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format='fltp', layout='mono')
        frame.sample_rate, frame.pts = rate, 0
        for ready in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize(
    ('form', 'codec', 'is_exact'),
    [
        ('flac', 'flac', True),
        ('wav', 'pcm_s16le', True),
        ('aiff', 'pcm_s16be', True),
        ('w64', 'pcm_s16le', True),
        ('caf', 'pcm_s16le', True),
        ('caf', 'alac', True),
        ('au', 'pcm_s16be', True),
        ('wv', 'wavpack', True),
        ('tta', 'tta', True),
        ('mov', 'alac', True),
        ('ogg', 'flac', True),
        ('avi', 'pcm_s16le', True),
        ('mp3', 'libmp3lame', False),
        ('mp2', 'mp2', False),
        ('adts', 'aac', False),
        ('ac3', 'ac3', False),
        ('eac3', 'eac3', False),
        ('mp4', 'aac', False),
        ('matroska', 'pcm_s16le', True),
        ('flv', 'aac', False),
        ('asf', 'wmav2', False),
        ('mpegts', 'mp2', False),
        ('mpeg', 'mp2', False),
    ],
)
def test_every_format_and_two_of_it_joined(tmp_path, form, codec, is_exact):
    """The second one is louder, and all of it is there."""
    first, second = 0.1 * noise(1.5, 48000, 1), 0.4 * noise(1.0, 48000, 2)
    data = [_encoded(tmp_path / f'{i}', form, codec, part, 48000) for i, part in enumerate((first, second))]
    (tmp_path / 'x').write_bytes(data[0])
    alone, rate = read_audio(tmp_path / 'x')
    assert rate == 48000
    slack = 8 if is_exact else 6000
    assert 0 <= alone.shape[1] - len(first) <= slack
    if form == 'tta':  # its header has a table of all that follows
        return
    (tmp_path / 'x').write_bytes(data[0] + data[1])
    joined, _ = read_audio(tmp_path / 'x')
    assert 0 <= joined.shape[1] - len(first) - len(second) <= 2 * slack
    if is_exact:
        np.testing.assert_allclose(joined[0, : len(first)], first, atol=1.1 / 2**15)
        np.testing.assert_allclose(joined[0, -len(second) - 2 :][: len(second) - 4].std(), second.std(), rtol=0.01)
    else:
        assert joined[0, -40000:-8000].std() > 3 * joined[0, 8000:60000].std()
    with open_sound(tmp_path / 'x', whole=False) as sound:
        part = sound.read(len(first) + 20_000, len(first) + 30_000)
    assert part.shape == (1, 10_000)
    assert part.std() > 2.5 * first.std()


@pytest.mark.parametrize('name', ['a.ogg', 'a.opus', 'a.flac', 'a.wav'])
def test_parts_with_other_rates_or_channels_are_refused(tmp_path, name):
    for other in (dict(rate=24000), dict(channels=2)):
        data = b''
        for options in ({}, other):
            rate, channels = options.get('rate', 48000), options.get('channels', 1)
            kind = ('OGG', 'OPUS') if name == 'a.opus' else (name[2:].upper(), None)
            soundfile.write(tmp_path / name, noise(0.5, rate, channels=channels), rate, kind[1], format=kind[0])
            data += (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data)
        if name == 'a.opus' and 'rate' in other:
            continue  # libsndfile gives the rate that the encoder had
        with pytest.raises(AudioFileError, match='rate or channels change midway'):
            read_audio(tmp_path / name)


PCM = np.round(sine(1.0, RATE)[0] * 32767).astype('<i2')
FORM = struct.pack('<HHIIHH', 1, 1, RATE, 2 * RATE, 2, 16)


def _chunk(name, content, *, is_padded=True):
    return name + struct.pack('<I', len(content)) + content + (b'\0' if is_padded and len(content) % 2 else b'')


def _wav(*chunks, size=None, name=b'RIFF'):
    body = b'WAVE' + b''.join(chunks)
    return name + struct.pack('<I', len(body) if size is None else size) + body


FMT, DATA = _chunk(b'fmt ', FORM), _chunk(b'data', PCM.tobytes())
DS64 = _chunk(b'ds64', struct.pack('<QQQI', 80 + 2 * RATE, 2 * RATE, 0, 0))
UNFINISHED = b'data\0\0\0\0' + PCM.tobytes()
STREAMED = b'data\xff\xff\xff\xff' + PCM.tobytes()
WAVS = {
    'sizes of 0': _wav(FMT, UNFINISHED, size=0),
    'data size of 0': _wav(FMT, UNFINISHED),
    'sizes of -1': _wav(FMT, STREAMED, size=0xFFFFFFFF),
    'one byte too many': _wav(FMT, UNFINISHED, size=0) + b'\1',
    'zeros behind': _wav(FMT, DATA) + bytes(1001),
    'a tag behind': _wav(FMT, DATA) + b'TAG'.ljust(128),
    'bytes behind': _wav(FMT, DATA) + bytes(range(256)) * 5,
    'a tag before': b'ID3\4\0\0\0\0\0\x20' + bytes(32) + _wav(FMT, DATA),
    'an odd chunk': _wav(_chunk(b'LIST', b'INFOabc'), FMT, DATA),
    'an odd chunk without padding': _wav(_chunk(b'LIST', b'INFOabc', is_padded=False), FMT, DATA),
    'an odd PEAK without padding': _wav(FMT, _chunk(b'PEAK', b'\1\0\0\0zzzzz', is_padded=False), DATA),
    'a short PEAK': _wav(FMT, _chunk(b'PEAK', b'\1\0\0\0'), DATA),
    'a list behind': _wav(FMT, DATA, _chunk(b'LIST', b'INFOISFT\4\0\0\0abcd')),
    'BW64': _wav(DS64, FMT, STREAMED, size=0xFFFFFFFF, name=b'BW64'),
    'RF64': _wav(DS64, FMT, STREAMED, size=0xFFFFFFFF, name=b'RF64'),
    'a small BW64': _wav(_chunk(b'JUNK', bytes(28)), FMT, DATA, name=b'BW64'),
}


@pytest.mark.parametrize('what', WAVS)
def test_odd_headers_of_wav(tmp_path, what):
    path = tmp_path / 'x.wav'
    path.write_bytes(WAVS[what])
    sound, rate = read_audio(path)
    assert rate == RATE
    np.testing.assert_array_equal(sound[0], PCM / np.float32(32768))
    with open_sound(path, whole=False) as opened:
        np.testing.assert_array_equal(opened.read(5000, 6000), sound[:, 5000:6000])
    path.write_bytes(WAVS[what] * 2)
    if 'behind' not in what and 'too many' not in what and 'sizes of' not in what and what != 'a tag before':
        np.testing.assert_array_equal(read_audio(path)[0], np.tile(sound, 2))


def test_an_empty_wav_is_empty(tmp_path):
    for content in (_wav(FMT, b'data\0\0\0\0'), _wav(FMT, b'data\0\0\0\0', _chunk(b'LIST', b'INFO'))):
        (tmp_path / 'x.wav').write_bytes(content)
        with pytest.raises(AudioFileError, match='no samples'):
            read_audio(tmp_path / 'x.wav')


@pytest.mark.parametrize('tail', [b'TAG'.ljust(128), b'TAGitle and artist'.ljust(128), bytes(700)])
@pytest.mark.parametrize('suffix', ['.m4a', '.webm', '.avi', '.mkv', '.flv'])
def test_bytes_behind_the_last_box_do_not_matter(tmp_path, tail, suffix):
    path = write_video(tmp_path / f'a{suffix}', 1.0)
    expected = read_audio(path)[0]
    path.write_bytes(path.read_bytes() + tail)
    np.testing.assert_array_equal(read_audio(path)[0], expected)


def test_tags_around_flac_and_between_mp3(tmp_path):
    before, behind = b'ID3\4\0\0\0\0\0\x20' + bytes(32), b'TAG'.ljust(128)
    soundfile.write(tmp_path / 'x.flac', PCM, RATE)
    data = (tmp_path / 'x.flac').read_bytes()
    (tmp_path / 'x.flac').write_bytes(before + data + behind)
    np.testing.assert_array_equal(read_audio(tmp_path / 'x.flac')[0][0], PCM / np.float32(32768))
    data = (SOUNDS / 'vbr_without_xing.mp3').read_bytes()
    picture = before[:6] + b'\0\0\x7f\x7f' + (b'\xff\xfb\x90\x44' * 4096)[: 127 * 129]
    (tmp_path / 'x.mp3').write_bytes(picture + data + behind + picture + data)
    once = read_audio(SOUNDS / 'vbr_without_xing.mp3')[0].shape[1]
    assert abs(read_audio(tmp_path / 'x.mp3')[0].shape[1] - 2 * once) <= 2 * 1152


def test_a_transport_stream_goes_on_with_another_codec(tmp_path):
    first, second = (_encoded(tmp_path / codec, 'mpegts', codec, noise(1.0, 48000), 48000) for codec in ('mp2', 'aac'))
    (tmp_path / 'x.ts').write_bytes(first + second)
    assert 96000 <= read_audio(tmp_path / 'x.ts')[0].shape[1] < 96000 + 6000
    assert len(structure_of(tmp_path / 'x.ts').parts) == 2


def test_what_is_known_of_a_path_is_forgotten_when_it_changes(tmp_path):
    soundfile.write(tmp_path / 'x.flac', PCM, RATE)
    data = (tmp_path / 'x.flac').read_bytes()
    assert len(structure_of(tmp_path / 'x.flac').parts) == 1
    (tmp_path / 'x.flac').write_bytes(data * 2)
    assert len(structure_of(tmp_path / 'x.flac').parts) == 2


def test_chains_without_an_end_are_cut_short(tmp_path):
    data = (SOUNDS / 'chained.ogg').read_bytes()
    last = data.rindex(b'OggS')
    (tmp_path / 'x.ogg').write_bytes(data[:last])
    with pytest.raises(AudioFileError, match='cut short'):
        read_audio(tmp_path / 'x.ogg')
    second = (
        data.index(b'OggS', 4 + data.index(b'\x01vorbis'))
        and [place for place in range(len(data)) if data[place : place + 4] == b'OggS' and data[place + 5] & 2][1]
    )
    (tmp_path / 'x.ogg').write_bytes(data[:second])
    assert read_audio(tmp_path / 'x.ogg')[0].shape[1] == RATE
