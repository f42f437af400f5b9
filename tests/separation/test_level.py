"""What the network hears is brought to its level; the sounds stay in proportion to the recording."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.noisy_separator import CONFIG, noisy_separator, noisy_variables, sound

from audiosep_jax.checkpoints.checkpoint import Level
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import ConfigError
from audiosep_jax.separation.level import LevelState, initial_level, level_frames, leveled
from audiosep_jax.separation.separator import Separator
from audiosep_jax.separation.spans import Span, stream_spans

TRAINED = Level(-40.0, -26.0, -14.0, 256)
QUERIES = ['a dog barking', 'rain']


@pytest.fixture(scope='module')
def separator():
    return noisy_separator(trained_level=TRAINED)


def at(level_db, *shape, seed=0):
    """Noise of this RMS level."""
    x = sound(*shape, seed=seed)
    return x * np.float32(10 ** (level_db / 20) / np.sqrt(np.mean(x**2)))


def targets(separator, x, level=None, **options):
    return separator.separate(x, QUERIES, sample_rate=8000, level=level, **options).targets


def assert_near(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


# ---- the gain --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('gain_db', [-35, -20, -6])
def test_quieter_recordings_give_the_same_sounds_quieter(separator, gain_db):
    x, gain = at(-32, 2, 9000), np.float32(10 ** (gain_db / 20))
    assert_near(targets(separator, gain * x), gain * targets(separator, x))
    off = targets(separator, gain * x, 'off')
    assert np.abs(off - gain * targets(separator, x, 'off')).max() > 1e-2 * np.abs(off).max(), 'the test needs a mask'


@pytest.mark.parametrize('gain_db', [6, 20, 90])
def test_louder_recordings_give_the_same_sounds_louder(separator, gain_db):
    x, gain = at(-8, 2, 9000), np.float32(10 ** (gain_db / 20))
    assert_near(targets(separator, gain * x), gain * targets(separator, x))


def test_a_power_of_two_changes_no_bit(separator):
    x = at(-40, 9000)
    np.testing.assert_array_equal(targets(separator, x / 8), targets(separator, x) / 8)


def test_a_recording_as_loud_as_the_training_is_left_alone(separator):
    x = at(-20, 2, 9000)
    np.testing.assert_array_equal(gains_of(x, TRAINED), 1)
    assert_near(targets(separator, x), targets(separator, x, 'off'), 1e-6)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_quiet_recording_is_heard_at_the_median_and_a_loud_one_at_the_90th_percentile():
    """A sine, whose level is the same in all blocks."""
    sine = np.sqrt(2) * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 8000).astype(np.float32)[None]
    for level_db, heard_db in ((-60, -26), (-26.5, -26), (-20, -20), (-13, -14), (30, -14)):
        x = np.float32(10 ** (level_db / 20)) * sine
        exact = targets(noisy_separator(), np.float32(10 ** (heard_db / 20)) * sine, 'off')
        found = targets(noisy_separator(trained_level=TRAINED), x) * 10 ** ((heard_db - level_db) / 20)
        inner = slice(300, -300)  # the reflected ends have another level
        assert_near(found[..., inner], exact[..., inner], 1e-2)


def test_silence_is_never_amplified(separator):
    assert not targets(separator, np.zeros((2, 5000), np.float32)).any()
    x = at(-95, 9000)
    np.testing.assert_array_equal(targets(separator, x), targets(separator, x, 'off'))


def test_the_gain_is_bounded():
    quiet = Level(-10.0, -6.0, -2.0, 1)
    gains = gains_of(at(-85, 1, 9000), quiet)
    np.testing.assert_allclose(20 * np.log10(gains), 50, atol=1e-4)
    assert gains_of(at(-95, 1, 9000), quiet).max() == 1


def gains_of(x, level):
    """The gain of each frame."""
    from audiosep_jax.audio.stft import stft

    spectra = stft(x, CONFIG.window_size, CONFIG.hop_size)
    spectra = spectra[:, : spectra.shape[1] // 32 * 32]
    heard, _ = leveled(CONFIG, spectra, 0, spectra.shape[1], initial_level(CONFIG, level, len(x)))
    return np.abs(heard).max(-1) / np.abs(spectra).max(-1)


def test_the_level_is_of_the_last_ten_seconds_and_never_of_what_comes():
    frames = level_frames(CONFIG)
    assert frames * CONFIG.hop_size / CONFIG.sample_rate == pytest.approx(10, abs=0.13)
    x = at(-40, 1, 25 * 8000)
    x[:, 5 * 8000 : 6 * 8000] *= 100  # 0 dB
    gains = 20 * np.log10(gains_of(x, TRAINED))
    second = 8000 / CONFIG.hop_size
    np.testing.assert_allclose(gains[:, : int(4.7 * second)], 14, atol=0.5)
    loud = gains[:, int(6 * second) : int(14.7 * second)]
    assert -7 < loud.min() < loud.max() < -3  # one second of 0 dB in the last ten, or in as many as there are
    np.testing.assert_allclose(gains[:, int(16.6 * second) :], 14, atol=0.5)


def test_rows_of_different_lengths_are_measured_by_themselves():
    spectra = np.ones((2, 64, CONFIG.window_size // 2 + 1), np.complex64)
    spectra[1, 40:] = 1000  # past its end
    heard, state = leveled(CONFIG, jnp.asarray(spectra), 0, jnp.array([64, 40]), initial_level(CONFIG, TRAINED, 2))
    np.testing.assert_allclose(heard[0, :40], heard[1, :40], rtol=1e-6)
    assert isinstance(state, LevelState)
    np.testing.assert_allclose(state.sums[0, -1] / 32, state.sums[1, -1] / 8, rtol=1e-6)


# ---- pieces and the whole --------------------------------------------------------------------------------------------


def uneven(channels, rate=8000, seconds=26):
    """Noise that is quiet, loud, silent, quiet and very quiet."""
    x = at(-45, channels, seconds * rate)
    for start, stop, gain in ((3, 6, 50), (8, 9, 0), (15, 19, 0.05), (19, seconds, 3)):
        x[:, start * rate : stop * rate] *= np.float32(gain)
    return x


def blocks_of(x, size=3001):
    return (x[:, start : start + size] for start in range(0, x.shape[-1], size))


@pytest.fixture(scope='module')
def whole():
    return noisy_separator(trained_level=TRAINED, max_whole_seconds=100)


@pytest.mark.slow
@pytest.mark.parametrize('live', [True, False])
@pytest.mark.parametrize('per_channel', [True, False])
@pytest.mark.parametrize('rate', [8000, 11025])
def test_a_stream_gives_what_the_whole_gives(separator, whole, live, per_channel, rate):
    x = uneven(2, rate)
    expected = whole.separate(x, QUERIES, sample_rate=rate, per_channel=per_channel)
    stream = separator.stream(blocks_of(x), QUERIES, sample_rate=rate, per_channel=per_channel, live=live)
    pieces = list(stream)
    assert len(pieces) > 1
    found = np.concatenate([piece.targets for piece in pieces], axis=-1)
    residual = np.concatenate([piece.residual for piece in pieces], axis=-1)
    assert_near(found, expected.targets)
    np.testing.assert_allclose(residual + found.sum(0), x, atol=1e-6)
    # In the quietest part, too.
    quiet = slice(int(15.5 * rate), int(18.5 * rate))
    assert_near(found[..., quiet], expected.targets[..., quiet], 1e-4)
    off = whole.separate(x, QUERIES, sample_rate=rate, per_channel=per_channel, level='off').targets
    assert np.abs(off[..., quiet] - expected.targets[..., quiet]).max() > 1e-2 * np.abs(off[..., quiet]).max()


@pytest.mark.slow
def test_long_recordings_in_pieces_are_the_whole(whole):
    in_pieces = noisy_separator(trained_level=TRAINED, max_whole_seconds=0)
    for x in (uneven(2), uneven(2)[:, :700], uneven(1)[:, :1]):
        assert_near(targets(in_pieces, x), targets(whole, x))


def test_per_channel_is_each_channel_alone(separator):
    x = np.stack([at(-40, 9000), at(-60, 9000, seed=1)])
    found = targets(separator, x, per_channel=True)
    for channel in range(2):
        assert_near(found[:, channel], targets(separator, x[channel])[:, 0])


@pytest.mark.parametrize('rate', [8000, 11025])
def test_spans_are_those_of_the_whole(separator, whole, rate):
    x = uneven(1, rate)
    expected = whole.separate(x, QUERIES, sample_rate=rate).targets
    spans = [Span(16, 17), Span(24, 25)]
    prepared = separator.prepare(QUERIES)
    pieces = stream_spans(separator, blocks_of(x), prepared, spans, sample_rate=rate)
    found = np.concatenate([piece.targets for piece in pieces], axis=-1)
    for span in spans:
        inside = slice(int((span.start + 0.02) * rate), int((span.stop - 0.02) * rate))
        assert_near(found[..., inside], expected[..., inside], 1e-4)


@pytest.mark.slow
def test_batches_are_each_mixture_alone(separator):
    mixtures = [at(level, n, seed=n) for level, n in ((-60, 700), (-20, 3000), (0, 2990), (-40, 40), (-70, 90_000))]
    embeddings = separator.embed(['rain', 'a siren', 'rain', 'a dog', 'a cat'])
    together = separator.separate_batch(mixtures, embeddings, batch_size=2)
    off = separator.separate_batch(mixtures, embeddings, batch_size=2, level='off')
    for mixture, embedding, out, plain in zip(mixtures, embeddings, together, off, strict=True):
        assert_near(out, separator.separate(mixture, embedding, sample_rate=8000).targets[0, 0])
        assert_near(plain, separator.separate(mixture, embedding, sample_rate=8000, level='off').targets[0, 0])


def test_a_batch_over_all_devices(separator):
    mixtures = [at(-5 * n, 700, seed=n) for n in range(8)]
    embeddings = separator.embed(['rain', 'a siren'] * 4)
    for mixture, embedding, out in zip(
        mixtures, embeddings, separator.separate_batch(mixtures, embeddings, batch_size=8), strict=True
    ):
        assert_near(out, separator.separate(mixture, embedding, sample_rate=8000).targets[0, 0])


# ---- the default -----------------------------------------------------------------------------------------------------


def test_it_is_on_where_the_level_is_known_and_off_elsewhere():
    variables, encoder = noisy_variables(), load_encoder('words')
    known = Separator(CONFIG, variables, encoder, trained_level=TRAINED)
    unknown = Separator(CONFIG, variables, encoder)
    assert (known.level, unknown.level) == ('auto', 'off')
    assert Separator(CONFIG, variables, encoder, trained_level=TRAINED, level='off').level == 'off'
    x = at(-60, 5000)
    np.testing.assert_array_equal(targets(unknown, x), targets(known, x, 'off'))
    assert_near(targets(known, x), targets(known, x, 'auto'), 0)
    # Without a record, a usual level is assumed.
    assert_near(targets(unknown, x / 4, 'auto'), targets(unknown, x, 'auto') / 4)
    assert_near(targets(Separator(CONFIG, variables, encoder, level='auto'), x), targets(unknown, x, 'auto'), 0)


def test_other_words_are_refused(separator):
    with pytest.raises(ConfigError, match="level 'loud': use 'auto' or 'off'"):
        noisy_separator(level='loud')
    with pytest.raises(ConfigError, match="level 'loud'"):
        targets(separator, at(-20, 500), 'loud')
    with pytest.raises(ConfigError, match="level 'loud'"):
        separator.stream([at(-20, 500)], 'rain', sample_rate=8000, level='loud')


def test_the_fingerprint_tells_outputs_apart():
    prints = [
        noisy_separator(**options).fingerprint()
        for options in ({}, {'trained_level': TRAINED}, {'trained_level': TRAINED, 'level': 'off'}, {'level': 'auto'})
    ]
    assert prints[0] == prints[2]
    assert len(set(prints)) == 3


def test_without_a_level_nothing_is_computed():
    spectra = jax.ShapeDtypeStruct((1, 32, 65), np.complex64)
    program = jax.make_jaxpr(lambda x: leveled(CONFIG, x, 0, 32, None)[0])(spectra)
    assert not program.eqns
