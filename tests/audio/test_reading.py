"""Audio files: what is read back, what is refused and how, and that no half file is ever left."""

import os

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.audio import writing as sound_output
from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.resampling import resample
from audiosep_jax.audio.writing import write_audio, write_together
from audiosep_jax.errors import AudioFileError, ConfigError


def tone(seconds=0.5, rate=16000, channels=1, hz=440.0, level=0.5):
    time = np.arange(int(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * hz * (c + 1) * time) for c in range(channels)]).astype(np.float32)


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
    sound = tone(channels=channels, level=0.3)
    assert write_audio(tmp_path / name, sound, 16000, subtype=subtype) == 1.0
    back, rate = read_audio(tmp_path / name)
    assert rate == 16000
    assert back.shape == sound.shape
    assert back.dtype == np.float32
    assert np.abs(back - sound).max() <= tolerance * 1.001
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_subtypes_are_what_was_asked(tmp_path):
    for subtype in ('PCM_16', 'PCM_24', 'FLOAT'):
        write_audio(tmp_path / f'{subtype}.wav', tone(), 16000, subtype=subtype)
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
    sound = tone(level=2.0)
    gain = write_audio(tmp_path / name, sound, 16000)
    assert 0.49 < gain < 0.5001
    back, _ = read_audio(tmp_path / name)
    assert np.abs(back - gain * sound).max() < (0.05 if name == 'x.ogg' else 1e-4)


def test_float_wav_keeps_an_overshoot(tmp_path):
    sound = tone(level=2.0)
    assert write_audio(tmp_path / 'x.wav', sound, 16000, subtype='FLOAT') == 1.0
    np.testing.assert_array_equal(read_audio(tmp_path / 'x.wav')[0], sound)


@pytest.mark.parametrize('name', ['{}.wav', '{}.flac'])
def test_files_written_together_share_a_gain_and_still_add_up(tmp_path, name):
    target, residual = tone(level=1.5), tone(level=0.7, hz=300)
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
            write_together({tmp_path / 'first.wav': tone(), tmp_path / second: tone()}, 16000)
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


def test_mono_is_the_mean_of_the_channels(tmp_path):
    sound = tone(channels=2)
    write_audio(tmp_path / 'x.wav', sound, 16000, subtype='FLOAT')
    mono, rate = read_audio(tmp_path / 'x.wav', mono=True, sample_rate=8000)
    assert rate == 8000
    assert mono.shape == (1, 4000)
    np.testing.assert_allclose(mono, resample(sound, 16000, 8000).mean(axis=0, keepdims=True), atol=1e-6)


@settings(max_examples=60)
@given(
    st.integers(0, 300),
    st.sampled_from([8000, 11025, 16000, 22050, 32000, 44100, 48000]),
    st.sampled_from([8000, 32000, 44100, 96000]),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
)
def test_resampled_length_is_exact(length, from_rate, to_rate, lead):
    out = resample(np.ones((*lead, length), np.float32), from_rate, to_rate)
    assert out.shape == (*lead, round(length * to_rate / from_rate))
    assert out.dtype == np.float32


def test_resampling_keeps_a_tone():
    out = resample(tone(rate=44100, seconds=0.5), 44100, 32000)
    expected = tone(rate=32000, seconds=0.5)
    assert np.abs(out - expected)[:, 500:-500].max() < 1e-3


def truncate(path, fraction=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


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
    truncate(path)
    with pytest.raises(AudioFileError, match='cut short'):
        read_audio(path)


def test_header_of_a_pipe_is_no_damage(tmp_path):
    path = tmp_path / 'x.wav'
    write_audio(path, tone(), 16000)
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
    write_audio(folder / 'length.flac', tone(), 16000)
    content = bytearray((folder / 'length.flac').read_bytes())
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])  # STREAMINFO without a total, as written to a pipe
    (folder / 'length.flac').write_bytes(content)


@pytest.mark.filterwarnings('default')  # libmpg123 also complains on stderr by itself
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
        ('length.flac', 'no usable length'),
        ('text.wav/inside.wav', 'cannot be read'),
        ('n' * 300 + '.wav', 'cannot be read'),
        ('nul\0byte.wav', 'not a file name'),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, says):
    bad_files(tmp_path)
    with pytest.raises(AudioFileError, match=says) as caught:
        read_audio(tmp_path / name)
    assert '\n' not in str(caught.value)
    assert name.partition('\0')[0] in str(caught.value)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'x.wav')
    with pytest.raises(AudioFileError, match='not a regular file'):
        read_audio(tmp_path / 'x.wav')


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
            write_audio(tmp_path / path, tone(), 16000)
    with pytest.raises(AudioFileError, match='NaN'):
        write_audio(tmp_path / 'x.wav', np.full((1, 10), np.nan), 16000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file', 'folder.wav']


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device'), ValueError])
def test_an_interrupted_writer_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / 'x.wav'
    write_audio(path, tone(), 16000)
    before = path.read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(sound_output, 'quantised', fail)
    with pytest.raises((KeyboardInterrupt, AudioFileError, ValueError)):
        write_audio(path, tone(level=0.1), 16000)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_more_than_four_gigabytes_become_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_output, '_WAV_BYTES', 1000)
    write_audio(tmp_path / 'x.wav', tone(), 16000)
    assert soundfile.info(tmp_path / 'x.wav').format == 'RF64'
    assert read_audio(tmp_path / 'x.wav')[0].shape == (1, 8000)


def test_long_vorbis_does_not_end_the_process(tmp_path):
    # libsndfile 1.2.2 overflows its stack when it gets three million frames in one call.
    assert write_audio(tmp_path / 'x.ogg', np.zeros((1, 3_000_000), np.float32), 44100) == 1.0
    assert soundfile.info(tmp_path / 'x.ogg').frames == 3_000_000
