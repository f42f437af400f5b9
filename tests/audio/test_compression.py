"""Bit rates and qualities of lossy files: what the encoders make of them, and what is refused."""

import av
import numpy as np
import pytest
import soundfile

from audiosep_jax.audio.compression import Compression, check_compression, parse_bit_rate
from audiosep_jax.audio.writing import write_audio
from audiosep_jax.errors import ConfigError

SECONDS = 4


def noise(rate, channels):
    return np.random.default_rng(0).uniform(-0.3, 0.3, (channels, SECONDS * rate)).astype(np.float32)


@pytest.mark.parametrize(
    ('name', 'rate', 'channels', 'bit_rate'),
    [
        ('x.mp3', 44100, 2, 192_000),
        ('x.mp3', 48000, 1, 32_000),
        ('x.mp3', 44100, 2, 320_000),
        ('x.mp3', 22050, 2, 144_000),
        ('x.mp3', 8000, 1, 64_000),
        ('x.opus', 48000, 2, 96_000),
        ('x.opus', 16000, 1, 256_000),
        ('x.m4a', 44100, 2, 96_000),
        ('x.m4a', 44100, 2, 256_000),
    ],
)
def test_a_file_has_the_bit_rate(tmp_path, name, rate, channels, bit_rate):
    write_audio(tmp_path / name, noise(rate, channels), rate, bit_rate=bit_rate)
    size = (tmp_path / name).stat().st_size * 8 / SECONDS
    assert 0.9 * bit_rate < size < 1.1 * bit_rate + 6000  # headers are about 3 kB
    if name == 'x.mp3':
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.audio[0].bit_rate == bit_rate


@pytest.mark.parametrize('name', ['x.mp3', 'x.ogg'])
def test_quality_is_from_the_smallest_to_the_best(tmp_path, name):
    sound = noise(44100, 1)
    sizes, errors = [], []
    for quality in (0, 3.5, 7, 10):
        write_audio(tmp_path / name, sound, 44100, quality=quality)
        sizes.append((tmp_path / name).stat().st_size)
        errors.append(np.square(soundfile.read(tmp_path / name)[0][: sound.shape[1]] - sound[0, : 4 * 44100]).mean())
    assert sizes == sorted(sizes)
    assert sizes[-1] > 2 * sizes[0]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ('name', 'settings', 'says'),
    [
        ('x.wav', {'bit_rate': 192_000}, 'x.wav: .wav is lossless'),
        ('x.flac', {'quality': 5}, 'x.flac: .flac is lossless'),
        ('x.ogg', {'bit_rate': 192_000}, '.ogg takes a quality from 0 to 10, but no bit rate'),
        ('x.opus', {'quality': 5}, '.opus takes a bit rate, for example 128k, but no quality'),
        ('x.m4a', {'quality': 5}, '.m4a takes a bit rate'),
        ('x.mp3', {'bit_rate': 190_000}, '190k is not one of .mp3 at 48000 Hz with 2 channels: 32k, 40k'),
        ('x.mp3', {'bit_rate': 192}, '192 bit/s is too low; in kbit/s it is written 192k'),
        ('x.mp3', {'quality': 11}, 'must be from 0 to 10'),
        ('x.mp3', {'quality': float('nan')}, 'must be from 0 to 10'),
        ('x.mp3', {'quality': 5, 'bit_rate': 192_000}, 'give only one'),
        ('x.m4a', {'bit_rate': 600_000}, 'from 16k to 576k'),
    ],
)
def test_what_a_format_has_not_is_refused(tmp_path, name, settings, says):
    with pytest.raises(ConfigError, match=says):
        write_audio(tmp_path / name, noise(48000, 2), 48000, **settings)
    assert list(tmp_path.iterdir()) == []


def test_before_a_sound_is_known_only_the_impossible_is_refused():
    check_compression('.mp3', Compression(bit_rate=8000))  # for 22 kHz
    check_compression('.opus', Compression(bit_rate=500_000))  # for stereo
    with pytest.raises(ConfigError, match=r'\.opus: from 6k to 65280k'):
        check_compression('.opus', Compression(bit_rate=10**9))


def test_bit_rates_are_read():
    assert [parse_bit_rate(text) for text in ('192k', '192K', ' 192000 ', '64.5k')] == [192000, 192000, 192000, 64500]
    for text in ('', 'k', '-1k', '192 kbit', '1e5', 'nan', '٣k'):
        with pytest.raises(ConfigError, match='write, for example, 192k'):
            parse_bit_rate(text)
