"""Files separated in Python: what is written, how far it is, and that nothing is left where something fails."""

import numpy as np
import pytest
from support.quarter_separator import RATE, QuarterSeparator, files, sound, write

import audiosep_jax as asj
from audiosep_jax.audio.reading import read_audio
from audiosep_jax.errors import AudioFileError, ConfigError
from audiosep_jax.separation.files import FileOptions, separate_file, separated_pieces
from audiosep_jax.separation.spans import Span

SAMPLES = 200_000  # several blocks


def test_a_file_for_each_query_and_the_residual(folder):
    write('in.wav', samples=SAMPLES)
    written = asj.separate_file(
        QuarterSeparator(), 'in.wav', ['a dog', 'rain'], ['dog.wav', 'rain.wav'], residual='rest.wav', strength=0.5
    )
    assert (written.seconds, written.sample_rate, written.subtype, written.gain) == (SAMPLES / RATE, RATE, 'FLOAT', 1)
    x = read_audio('in.wav')[0]
    for name, share in (('dog.wav', 0.25), ('rain.wav', 0.25), ('rest.wav', 0.5)):
        np.testing.assert_allclose(read_audio(name)[0], (0.5 * share + 0.5) * x, atol=1e-6)


def test_other_formats(folder):
    write('in.wav', samples=SAMPLES)
    written = separate_file(QuarterSeparator(), 'in.wav', 'a dog', ['dog.mp3'], bit_rate=64_000)
    assert written.subtype is None
    assert 0.9 < (folder / 'dog.mp3').stat().st_size / (64_000 / 8 * SAMPLES / RATE) < 1.1


def test_progress_is_in_seconds_and_ends_at_the_end(folder):
    write('in.wav', samples=SAMPLES)
    calls = []
    separate_file(QuarterSeparator(), 'in.wav', 'a dog', ['dog.wav'], progress=lambda *call: calls.append(call))
    seconds = SAMPLES / RATE
    assert [total for _, total in calls] == [seconds] * len(calls)
    done = [seconds for seconds, _ in calls]
    assert done == sorted(set(done))
    assert len(done) > 2
    assert done[-1] == seconds


@pytest.mark.parametrize('error', [KeyboardInterrupt, ZeroDivisionError('mine')])
def test_what_progress_raises_ends_it_and_leaves_nothing(folder, error):
    write('in.wav', samples=SAMPLES)

    def progress(done, total):
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        separate_file(QuarterSeparator(), 'in.wav', 'a dog', ['dog.wav'], residual='rest.wav', progress=progress)
    assert files(folder) == ['in.wav']


@pytest.mark.parametrize(
    ('targets', 'options', 'error', 'says'),
    [
        ([], {}, ConfigError, '0 files for 1 queries'),
        (['a.wav', 'b.wav'], {}, ConfigError, '2 files for 1 queries'),
        (['no/a.wav'], {}, AudioFileError, 'does not exist; make it first'),
        (['a.wav'], {'residual': 'no/b.wav'}, AudioFileError, 'does not exist; make it first'),
        (['a.xyz'], {}, ConfigError, 'cannot write .xyz'),
        (['a.wav'], {'strength': 7}, ConfigError, 'between 0 and 1'),
        (['a.wav'], {'bit_rate': 192_000}, ConfigError, 'a.wav: .wav is lossless'),
    ],
)
def test_mistakes(folder, targets, options, error, says):
    write('in.wav')
    with pytest.raises(error, match=says):
        separate_file(QuarterSeparator(), 'in.wav', 'a dog', targets, **options)
    assert files(folder) == ['in.wav']


def test_strength_leaves_a_part_of_the_recording_outside_of_the_spans():
    separator, x = QuarterSeparator(), sound(samples=RATE)
    options = FileOptions(spans=(Span(0.5, 0.75),))
    blocks = iter(np.array_split(x, 10, axis=1))
    pieces = list(separated_pieces(separator, blocks, RATE, separator.prepare('a dog'), options, live=False))
    target = np.concatenate([piece.blended(0.9).targets[0] for piece in pieces], axis=-1)
    residual = np.concatenate([piece.blended(0.9).residual for piece in pieces], axis=-1)
    outside, inside = slice(0, 7000), slice(9000, 11000)
    np.testing.assert_allclose(target[:, outside], 0.1 * x[:, outside], atol=1e-6)
    np.testing.assert_allclose(residual[:, outside], x[:, outside], atol=1e-6)
    np.testing.assert_allclose(target[:, inside], (0.9 * 0.25 + 0.1) * x[:, inside], atol=1e-6)


def test_loudness_is_that_of_the_recording_whatever_the_strength(folder):
    write('in.wav', samples=SAMPLES, level=0.1)
    x = read_audio('in.wav')[0]
    for strength in (1.0, 0.5):
        written = separate_file(
            QuarterSeparator(), 'in.wav', 'a dog', ['dog.wav'], strength=strength, keep_loudness=True
        )
        np.testing.assert_allclose(read_audio('dog.wav')[0], x, atol=1e-4)
        assert written.loudness_gains[0] == pytest.approx(1 / (1 - 0.75 * strength), rel=1e-3)
