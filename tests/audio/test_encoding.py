"""M4A files: what is decoded, the length that they state, and that nothing half-written is left."""

import logging

import av
import numpy as np
import pytest
from support.small_media import sine

from audiosep_jax.audio.encoding import MAX_CHANNELS, encode_m4a
from audiosep_jax.audio.formats import WRITERS
from audiosep_jax.audio.reading import read_audio
from audiosep_jax.audio.writing import write_audio, write_together
from audiosep_jax.errors import AudioFileError, ConfigError


def stated_length(path):
    """Samples, as the edit list and the durations of the packets state them."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        packets = [packet for packet in container.demux(stream) if packet.duration]
        assert stream.start_time == 0
        assert sum(packet.duration for packet in packets if packet.pts >= 0) == stream.duration
        return stream.duration * stream.time_base * stream.rate


@pytest.mark.parametrize('samples', [1, 5, 1000, 1023, 1024, 1025, 44100, 100_001])
@pytest.mark.parametrize('rate', [8000, 16000, 44100, 96000])
def test_the_length_is_right_to_the_sample(tmp_path, samples, rate):
    write_audio(tmp_path / 'x.m4a', 0.1 * np.ones((1, samples), np.float32), rate)
    assert stated_length(tmp_path / 'x.m4a') == samples
    decoded, read_rate = read_audio(tmp_path / 'x.m4a')
    assert read_rate == rate
    assert 0 <= decoded.shape[1] - samples < 1024  # a decoder may give the whole last frame


@pytest.mark.parametrize('channels', range(1, MAX_CHANNELS + 1))
def test_the_sound_is_where_it_was_in_each_channel(tmp_path, channels):
    sound = sine(channels=channels, rate=44100, hz=50, level=0.3)
    assert write_audio(tmp_path / 'x.m4a', sound, 44100) == 1.0
    decoded, _ = read_audio(tmp_path / 'x.m4a')
    middle = slice(2000, -2000)
    for given, got in zip(sound, decoded[:, : sound.shape[1]], strict=True):
        assert np.corrcoef(got[middle], given[middle])[0, 1] > 0.99
    assert WRITERS['.m4a'].max_channels == MAX_CHANNELS


def test_quality_at_every_rate_and_nothing_is_said(tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        for rate in WRITERS['.m4a'].rates:
            sound = sine(seconds=1, rate=rate, channels=2, hz=400, level=0.5)
            write_audio(tmp_path / 'x.m4a', sound, rate)
            decoded = read_audio(tmp_path / 'x.m4a')[0][:, : sound.shape[1]]
            middle = slice(2048, -2048)
            error = np.mean((decoded - sound)[:, middle] ** 2) / np.mean(sound[:, middle] ** 2)
            assert 10 * np.log10(error) < -25, rate
    assert capfd.readouterr() == ('', '')
    assert caplog.records == []


def test_files_written_together_share_a_gain(tmp_path):
    sounds = {tmp_path / 'a.m4a': sine(level=2.0), tmp_path / 'b.m4a': sine(level=0.2)}
    gain = write_together(sounds, 16000)
    assert 0.49 < gain < 0.5001
    assert 0.95 < np.abs(read_audio(tmp_path / 'a.m4a')[0]).max() < 1.05
    assert 0.09 < np.abs(read_audio(tmp_path / 'b.m4a')[0]).max() < 0.11


def test_a_name_that_is_not_utf_8(tmp_path):
    path = tmp_path / 'x\udcff.m4a'
    write_audio(path, sine(), 16000)
    assert path.read_bytes()[4:8] == b'ftyp'


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_an_interrupted_writer_leaves_the_old_file(tmp_path, monkeypatch, error):
    write_audio(tmp_path / 'x.m4a', sine(), 16000)
    before = (tmp_path / 'x.m4a').read_bytes()

    def broken(path, blocks, *settings):
        def interrupted():
            yield next(iter(blocks))
            raise error

        encode_m4a(path, interrupted(), *settings)

    monkeypatch.setattr('audiosep_jax.audio.writing.encode_m4a', broken)
    with pytest.raises((KeyboardInterrupt, AudioFileError)):
        write_audio(tmp_path / 'x.m4a', sine(level=0.1), 16000)
    assert (tmp_path / 'x.m4a').read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ['x.m4a']


def test_what_cannot_be_is_a_configuration_error(tmp_path):
    for channels, rate, says in ((7, 16000, '1 to 6 channels'), (1, 12345, 'holds rates 7350')):
        with pytest.raises(ConfigError, match=says):
            write_audio(tmp_path / 'x.m4a', np.zeros((channels, 9)), rate)
    assert list(tmp_path.iterdir()) == []
