"""Writing sound files: what is read back, overshoot, limits of formats, and that no half file is ever left."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_media import sine

from audiosep_jax.audio import writing
from audiosep_jax.audio.reading import open_sound, read_audio
from audiosep_jax.audio.writing import write_audio, write_together, written_together
from audiosep_jax.errors import AudioFileError, ConfigError


@pytest.mark.parametrize(
    ('name', 'subtype', 'tolerance'),
    [
        ('x.wav', 'PCM_16', 0.5 / 2**15),
        ('x.wav', 'PCM_24', 0.5 / 2**23),
        ('x.wav', 'FLOAT', 0),
        ('x.WAV', 'PCM_16', 0.5 / 2**15),
        ('x.flac', 'PCM_16', 0.5 / 2**15),
        ('x.flac', 'PCM_24', 0.5 / 2**23),
        ('x.ogg', 'PCM_16', 0.05),
    ],
)
@pytest.mark.parametrize('channels', [1, 2, 5])
def test_written_then_read(tmp_path, name, subtype, tolerance, channels):
    sound = sine(channels=channels, level=0.3)
    assert write_audio(tmp_path / name, sound, 16000, subtype=subtype) == 1.0
    back, rate = read_audio(tmp_path / name)
    assert rate == 16000
    assert back.shape == sound.shape
    assert back.dtype == np.float32
    assert np.abs(back - sound).max() <= tolerance * 1.001
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_subtypes_are_what_was_asked(tmp_path):
    for subtype in ('PCM_16', 'PCM_24', 'FLOAT'):
        write_audio(tmp_path / f'{subtype}.wav', sine(), 16000, subtype=subtype)
        assert soundfile.info(tmp_path / f'{subtype}.wav').subtype == subtype


@pytest.mark.parametrize('name', ['x.wav', 'x.flac'])
def test_16_bit_samples_survive_bit_for_bit(tmp_path, name):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (3, 1000)).astype(np.int16)
    samples[:, :2] = [-(2**15), 2**15 - 1]
    soundfile.write(tmp_path / f'in{name}', samples.T, 8000, subtype='PCM_16')
    write_audio(tmp_path / name, read_audio(tmp_path / f'in{name}')[0], 8000)
    again, _ = soundfile.read(tmp_path / name, dtype='int16')
    np.testing.assert_array_equal(again.T, samples)


def test_rounding_has_no_bias(tmp_path):
    steps = np.array([[0.4, 0.6, -0.4, -0.6, 1.5]], np.float32) / 2**15
    write_audio(tmp_path / 'x.wav', steps, 8000)
    np.testing.assert_array_equal(soundfile.read(tmp_path / 'x.wav', dtype='int16')[0], [0, 1, 0, -1, 2])


@pytest.mark.parametrize('name', ['x.wav', 'x.flac', 'x.ogg'])
def test_overshoot_is_attenuated_as_a_whole(tmp_path, name):
    sound = sine(level=2.0)
    gain = write_audio(tmp_path / name, sound, 16000)
    assert 0.49 < gain < 0.5001
    back, _ = read_audio(tmp_path / name)
    assert np.abs(back - gain * sound).max() < (0.05 if name == 'x.ogg' else 1e-4)


def test_float_wav_keeps_an_overshoot(tmp_path):
    sound = sine(level=2.0)
    assert write_audio(tmp_path / 'x.wav', sound, 16000, subtype='FLOAT') == 1.0
    np.testing.assert_array_equal(read_audio(tmp_path / 'x.wav')[0], sound)


@pytest.mark.parametrize('name', ['{}.wav', '{}.flac'])
def test_files_written_together_share_a_gain_and_still_add_up(tmp_path, name):
    target, residual = sine(level=1.5), sine(level=0.7, hz=300)
    sounds = {tmp_path / name.format('target'): target, tmp_path / name.format('residual'): residual}
    gain = write_together(sounds, 16000)
    assert gain < 1
    total = sum(read_audio(path)[0] for path in sounds)
    np.testing.assert_allclose(total, gain * (target + residual), atol=1.1 / 2**15)


def test_files_written_together_all_appear_or_none(tmp_path):
    """The second cannot be written: the first is not there either."""
    (tmp_path / 'second.wav').mkdir()
    for second in ('second.wav', 'missing/second.wav'):
        with pytest.raises(AudioFileError, match=r'second\.wav: cannot be written'):
            write_together({tmp_path / 'first.wav': sine(), tmp_path / second: sine()}, 16000)
    assert [p.name for p in tmp_path.iterdir()] == ['second.wav']


@settings(max_examples=25)
@given(st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=6), st.sampled_from(['a.wav', 'a.flac', 'a.ogg']))
def test_no_sample_passes_full_scale(tmp_path_factory, values, name):
    path = tmp_path_factory.mktemp('scale') / name
    gain = write_audio(path, np.array([values]), 16000)
    assert gain * max(map(abs, values)) <= 1
    assert (gain == 1.0) == (max(map(abs, values)) <= 1.0)
    if name != 'a.ogg':
        np.testing.assert_allclose(read_audio(path)[0][0], gain * np.array(values), atol=1.1 / 2**15)


@pytest.mark.parametrize(
    ('name', 'options', 'says'),
    [
        ('x.txt', {}, 'use .wav, .flac, .ogg'),
        ('x', {}, 'without suffix'),
        ('x.flac', {'subtype': 'FLOAT'}, '16 or 24 bits, not FLOAT; use .wav'),
        ('x.wav', {'subtype': 'PCM_8'}, 'unknown subtype'),
        ('x.flac', {'channels': 9}, '1 to 8 channels'),
        ('x.ogg', {'channels': 256}, '1 to 255 channels'),
        ('x.ogg', {'rate': 200001}, 'rates up to 200000 Hz'),
        ('x.wav', {'rate': 0}, 'rates up to'),
        ('x.mp3', {'channels': 3}, '1 to 2 channels'),
        ('x.mp3', {'rate': 96000}, 'rates 8000, 11025'),
        ('x.opus', {'rate': 44100}, 'rates 8000, 12000'),
    ],
)
def test_formats_that_cannot_be_are_configuration_errors(tmp_path, name, options, says):
    sound = np.zeros((options.get('channels', 1), 100), np.float32)
    with pytest.raises(ConfigError, match=says):
        write_audio(tmp_path / name, sound, options.get('rate', 16000), subtype=options.get('subtype', 'PCM_16'))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / 'file').write_text('here first')
    (tmp_path / 'folder.wav').mkdir()
    for path in ('missing/x.wav', 'file/x.wav', 'folder.wav'):
        with pytest.raises(AudioFileError, match='cannot be written'):
            write_audio(tmp_path / path, sine(), 16000)
    with pytest.raises(AudioFileError, match='NaN'):
        write_audio(tmp_path / 'x.wav', np.full((1, 10), np.nan), 16000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'folder.wav']


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device'), ValueError])
def test_an_interrupted_writer_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / 'x.wav'
    write_audio(path, sine(), 16000)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(writing, 'quantize', fail)
    with pytest.raises((KeyboardInterrupt, AudioFileError, ValueError)):
        write_audio(path, sine(level=0.1), 16000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_more_than_four_gigabytes_become_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, '_MAX_WAV_BYTES', 1000)
    write_audio(tmp_path / 'x.wav', sine(), 16000)
    assert soundfile.info(tmp_path / 'x.wav').format == 'RF64'
    assert read_audio(tmp_path / 'x.wav')[0].shape == (1, 8000)


def test_long_vorbis_does_not_end_the_process(tmp_path):
    # libsndfile 1.2.2 overflows its stack when it gets three million frames in one call.
    assert write_audio(tmp_path / 'x.ogg', np.zeros((1, 3_000_000), np.float32), 44100) == 1.0
    assert soundfile.info(tmp_path / 'x.ogg').frames == 3_000_000


@pytest.mark.parametrize('mask', [0x3F, 0x60F, 0x33, 0x107, 0x63F, 0xFF, 0x600])
@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'FLOAT'])
def test_the_places_of_loudspeakers_are_kept(tmp_path, monkeypatch, mask, subtype):
    channels = mask.bit_count()
    sound = sine(channels=channels, level=0.3)
    for limit in (2**32, 1000):
        monkeypatch.setattr(writing, '_MAX_WAV_BYTES', limit)
        with written_together([tmp_path / 'x.wav'], 16000, channels=channels, subtype=subtype, mask=mask) as files:
            files.write([sound])
            files.finish()
        with open_sound(tmp_path / 'x.wav') as back:
            assert back.mask == mask
            assert back.subtype == subtype
            np.testing.assert_allclose(back.read(), sound, atol=1.1 / 2**15)


def test_without_places_a_wav_is_a_plain_one(tmp_path):
    for channels, mask in [(1, 0x4), (2, 0x3), (6, 0)]:
        with written_together([tmp_path / 'x.wav'], 16000, channels=channels, mask=mask) as files:
            files.write([sine(channels=channels, level=0.3)])
            files.finish()
        assert soundfile.info(tmp_path / 'x.wav').format == 'WAV'


@pytest.mark.parametrize('name', ['x.ogg', 'x.opus'])
@pytest.mark.parametrize('channels', [3, 5, 6, 7, 8])
def test_vorbis_and_opus_get_their_own_order(tmp_path, name, channels):
    """Each loudspeaker has a tone; FFmpeg, which knows the order of Vorbis, hears it from the same one."""
    import av

    sound = sine(1.0, 48000, channels=channels, hz=100.0, level=0.3)
    write_audio(tmp_path / name, sound, 48000)
    with av.open(str(tmp_path / name)) as container:
        layout = container.streams.audio[0].codec_context.layout
        speakers = [channel.name for channel in layout.channels]
    expected = {
        3: 'FL FR FC', 5: 'FL FR FC BL BR', 6: 'FL FR FC LFE BL BR', 7: 'FL FR FC LFE BC SL SR',
        8: 'FL FR FC LFE BL BR SL SR',
    }  # fmt: skip
    assert speakers == expected[channels].split()
    written = soundfile.read(tmp_path / name, always_2d=True)[0].T  # in the order of Vorbis
    order = {
        3: 'FL FC FR', 5: 'FL FC FR BL BR', 6: 'FL FC FR BL BR LFE', 7: 'FL FC FR SL SR BC LFE',
        8: 'FL FC FR SL SR BL BR LFE',
    }[channels].split()  # fmt: skip
    back = read_audio(tmp_path / name)[0]
    for i, speaker in enumerate(speakers):
        if speaker != 'LFE':  # Opus keeps its lowest octaves alone
            assert np.argmax(np.abs(np.fft.rfft(back[i]))) == 100 * (i + 1)
            assert np.argmax(np.abs(np.fft.rfft(written[order.index(speaker)]))) == 100 * (i + 1)
