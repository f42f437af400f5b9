"""Reading sound files: what is returned, and what is refused with which message."""

import os

import numpy as np
import pytest
import soundfile
from support.small_media import sine

from audiosep_jax.audio.reading import read_audio
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
    write_audio(folder / 'length.flac', sine(), 16000)
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
