"""Reading sound files: what is returned, and what is refused with which message."""

import os
import random
import resource

import numpy as np
import pytest
import soundfile
from support.paths import SOUNDS
from support.small_media import noise, sine, write_video

from audiosep_jax.audio.reading import open_sound, read_audio
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import AudioFileError


def test_mono_is_the_mean_of_the_channels(tmp_path):
    sound = sine(channels=2)
    write_audio(tmp_path / 'x.wav', sound, 16000, subtype='FLOAT')
    mono, rate = read_audio(tmp_path / 'x.wav', mono=True, sample_rate=8000)
    assert rate == 8000
    assert mono.shape == (1, 4000)
    np.testing.assert_allclose(mono, resample(sound, 16000, 8000).mean(axis=0, keepdims=True), atol=1e-6)


def bad_files(folder):
    (folder / 'folder.wav').mkdir()
    (folder / 'empty.wav').touch()
    (folder / 'text.wav').write_text('This is not a sound.\n' * 100)
    (folder / 'text.mp3').write_text('This is not a sound.\n' * 100)
    (folder / 'noise.flac').write_bytes(b'fLaC' + np.random.default_rng(0).bytes(5000))
    (folder / 'header.raw').write_bytes(bytes(1000))
    soundfile.write(folder / 'zero.wav', np.zeros((0, 1)), 16000)
    sound = np.zeros(100, np.float32)
    sound[7] = np.nan
    soundfile.write(folder / 'nan.wav', sound, 16000, subtype='FLOAT')
    sound[7] = np.inf
    soundfile.write(folder / 'inf.wav', sound, 16000, subtype='FLOAT')


@pytest.mark.parametrize(
    ('name', 'says'),
    [
        ('missing.wav', 'no such file'),
        ('folder.wav', 'is a folder'),
        ('empty.wav', '0 bytes'),
        ('text.wav', 'not an audio file'),
        ('text.mp3', 'not an audio file'),
        ('noise.flac', 'not an audio file'),
        ('header.raw', 'headerless'),
        ('zero.wav', 'no samples'),
        ('nan.wav', '1 samples are NaN'),
        ('inf.wav', '1 samples are NaN or infinite'),
        ('text.wav/inside.wav', 'cannot be read'),
        ('n' * 300 + '.wav', 'cannot be read'),
        ('nul\0byte.wav', 'not a file name'),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, capfd, name, says):
    bad_files(tmp_path)
    with pytest.raises(AudioFileError, match=says) as caught:
        read_audio(tmp_path / name)
    assert '\n' not in str(caught.value)
    assert name.partition('\0')[0] in str(caught.value)
    assert capfd.readouterr() == ('', '')


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'x.wav')
    with pytest.raises(AudioFileError, match='not a regular file'):
        read_audio(tmp_path / 'x.wav')


def test_tones_come_from_their_loudspeakers():
    """Vorbis has another order than WAV: FL FC FR BL BR LFE."""
    with open_sound(SOUNDS / 'surround_5_1.ogg') as sound:
        assert sound.mask == 0x3F
        heard = sound.read()
    written, rate = soundfile.read(SOUNDS / 'surround_5_1.ogg', always_2d=True)
    np.testing.assert_allclose(heard, written.T[[0, 2, 1, 5, 3, 4]], atol=1e-6)
    hertz = [np.argmax(np.abs(np.fft.rfft(channel))) * rate / len(channel) for channel in heard]
    assert len({round(h) for h in hertz}) == 6


@pytest.mark.parametrize('channels', [2, 8, 16])
@pytest.mark.parametrize('codec', ['pcm_s16le', 'flac', 'pcm_f32le', 'wavpack'])
def test_many_channels_are_read_by_pyav(tmp_path, channels, codec):
    """PyAV itself crashes at eight planes and more."""
    if codec == 'flac' and channels > 8:
        return
    import av

    layout = {2: 'stereo', 8: '7.1', 16: 'hexadecagonal'}[channels]
    samples = (noise(0.1, 48000, channels=channels).T * 0.5).astype(np.float32)
    with av.open(str(tmp_path / 'x.mkv'), 'w') as container:
        stream = container.add_stream(codec, rate=48000, layout=layout)
        if codec == 'wavpack':
            stream.codec_context.format = 's16p'
        stream.codec_context.open()
        form = stream.codec_context.format
        resampler = av.AudioResampler(
            format=form, layout=layout, rate=48000, frame_size=stream.codec_context.frame_size
        )
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format='flt', layout=layout)
        frame.sample_rate, frame.pts = 48000, 0
        for ready in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))
    sound, _ = read_audio(tmp_path / 'x.mkv')
    np.testing.assert_allclose(sound, samples, atol=1.1 / 2**15)


@pytest.mark.parametrize('rate', [1, 99, 10_000_001, 2**31 - 1])
def test_rates_that_no_sound_has_are_refused_at_once(tmp_path, rate):
    soundfile.write(tmp_path / 'x.wav', np.zeros(8000), rate)
    for path in (tmp_path / 'x.wav', *([SOUNDS / 'hz_max.wav'] if rate == 2**31 - 1 else [])):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(AudioFileError, match=f'a sample rate of {rate} Hz; export it again'):
            read_audio(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_half_an_avi_is_refused():
    with pytest.raises(AudioFileError, match='cut short'):
        read_audio(SOUNDS / 'cut_in_half.avi')


def test_parts_of_what_cannot_be_sought_exactly(tmp_path):
    """libsndfile seeks to whole blocks of GSM 6.10 and of ADPCM."""
    for subtype in ('GSM610', 'IMA_ADPCM', 'MS_ADPCM'):
        soundfile.write(tmp_path / 'x.wav', noise(1.0, 8000), 8000, subtype)
        whole = read_audio(tmp_path / 'x.wav')[0]
        for start, stop in [(0, 100), (1234, 2345), (7000, 7001), (7000, None)]:
            with open_sound(tmp_path / 'x.wav') as sound:
                np.testing.assert_array_equal(sound.read(start, stop), whole[:, start:stop])


def test_ogg_that_is_cut_into_parts_has_the_order_of_wav(tmp_path):
    whole = read_audio(SOUNDS / 'surround_5_1.ogg')[0]
    with open_sound(SOUNDS / 'surround_5_1.ogg') as sound:
        np.testing.assert_allclose(sound.read(20_000, 30_000), whole[:, 20_000:30_000], atol=1e-6)
    with open_sound(SOUNDS / 'surround_5_1.ogg', mono=True) as sound:
        np.testing.assert_allclose(sound.read(), whole.mean(axis=0, keepdims=True), atol=1e-6)


def _read_or_message(path):
    total = 0
    try:
        with open_sound(path) as sound:
            for block in sound.blocks():
                total += block.nbytes
    except AudioFileError as error:
        return total, str(error)
    return total, ''


def _mutations(data, rng):
    for _ in range(12):
        changed = bytearray(data)
        kind = rng.choice(['anywhere', 'header', 'cut', 'gap'])
        if kind == 'cut':
            del changed[rng.randrange(1, len(changed)) :]
        elif kind == 'gap':
            place = rng.randrange(len(changed))
            del changed[place : place + rng.randrange(1, 2000)]
        else:
            end = len(changed) if kind == 'anywhere' else min(200, len(changed))
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(end)] = rng.choice([0, 255, rng.randrange(256)])
        yield kind, bytes(changed)


@pytest.mark.parametrize('name', [path.name for path in sorted(SOUNDS.iterdir()) if path.suffix != '.md'])
def test_damaged_bytes_give_a_sound_or_one_line(tmp_path, capfd, name):
    rng = random.Random(name)
    path = tmp_path / name
    for kind, changed in _mutations((SOUNDS / name).read_bytes(), rng):
        path.write_bytes(changed)
        total, message = _read_or_message(path)
        assert '\n' not in message, kind
        assert name in message or not message, kind
        assert total < 200e6, kind
    assert capfd.readouterr() == ('', '')


def test_a_small_file_does_not_become_hours_of_silence(tmp_path):
    """The header of an AVI says how long a sample lasts: with another number there, its clock jumps."""
    path = write_video(tmp_path / 'x.avi', 2.0)
    data = path.read_bytes()
    place = data.index(b'auds') + 20  # the scale of the track's header
    for scale in (0x7FFFFFFF, 0x00FFFFFF, 0x0000FFFF):
        path.write_bytes(data[:place] + scale.to_bytes(4, 'little') + data[place + 4 :])
        total, message = _read_or_message(path)
        assert 'damaged' in message or not message
        assert total < 100e6
