"""The separator on audio of every rate, length and number of channels."""

import dataclasses

import jax
import numpy as np
import pytest
from support.noisy_separator import CONFIG, noisy_variables, sound
from support.small_separator import save_small

from audiosep_jax.checkpoints.checkpoint import describe
from audiosep_jax.checkpoints.run_folder import save_for_inference
from audiosep_jax.encoders import wordllama
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import AudioFileError, ConfigError, EncoderMismatchError, QueryError
from audiosep_jax.models.audiosep import AudioSep, ModelConfig, init_variables
from audiosep_jax.separation.loading import load
from audiosep_jax.separation.separator import Separator
from audiosep_jax.training.config import TrainConfig


@pytest.fixture(scope='module')
def variables():
    return noisy_variables()


@pytest.fixture(scope='module')
def separator(variables):
    return Separator(CONFIG, variables, load_encoder('words'))


def test_is_the_model_applied_to_the_mixture(separator, variables):
    x = sound(3000)
    out = separator.separate(x, 'rain', sample_rate=8000)
    expected = jax.jit(AudioSep(CONFIG).apply)(variables, x[None], separator.embed('rain'))
    assert out.targets.shape == (1, 1, 3000)
    assert out.targets.dtype == out.residual.dtype == np.float32
    np.testing.assert_allclose(out.targets[0], expected, atol=1e-6)


def test_several_queries_and_the_residual(separator):
    x = sound(2, 2500)
    out = separator.separate(x, ['a dog barking', 'rain', 'a siren'], sample_rate=8000)
    assert out.targets.shape == (3, 2, 2500)
    np.testing.assert_allclose(out.targets.sum(0) + out.residual, x, atol=1e-6)
    alone = separator.separate(x, 'rain', sample_rate=8000)
    np.testing.assert_allclose(out.targets[1], alone.targets[0], atol=1e-6)
    assert np.abs(out.targets[0] - out.targets[1]).max() > 1e-4


def test_embeddings_instead_of_text(separator):
    x = sound(1500)
    embeddings = separator.embed(['rain', 'a siren'])
    by_text = separator.separate(x, ['rain', 'a siren'], sample_rate=8000)
    by_array = separator.separate(x, embeddings, sample_rate=8000)
    np.testing.assert_array_equal(by_array.targets, by_text.targets)
    one = separator.separate(x, embeddings[1], sample_rate=8000)
    np.testing.assert_array_equal(one.targets[0], by_text.targets[1])


@pytest.mark.parametrize('rate', [8000, 11025, 44100])
@pytest.mark.parametrize('length', [1, 2, 63, 4999])
def test_rate_and_length_are_the_input_s(separator, rate, length):
    x = sound(length) if length > 8 else np.full(length, 0.1, np.float32)
    out = separator.separate(x, 'rain', sample_rate=rate)
    assert out.targets.shape == (1, 1, length)
    assert np.isfinite(out.targets).all()
    np.testing.assert_allclose(out.targets[0] + out.residual, x[None], atol=1e-6)


def test_stereo_keeps_its_image(separator):
    """Both channels get one mask: a source that is panned to one side stays there, in the same proportion."""
    x = sound(3000)
    out = separator.separate(np.stack([x, 0.25 * x]), 'rain', sample_rate=8000).targets[0]
    np.testing.assert_allclose(out[1], 0.25 * out[0], atol=1e-6)
    left = separator.separate(np.stack([x, 0 * x]), 'rain', sample_rate=8000).targets[0]
    assert np.any(left[0])
    assert not np.any(left[1])


def test_per_channel_is_each_channel_alone(separator):
    x = sound(2, 2000)
    out = separator.separate(x, 'rain', sample_rate=8000, per_channel=True).targets[0]
    for c in range(2):
        np.testing.assert_allclose(out[c], separator.separate(x[c], 'rain', sample_rate=8000).targets[0, 0], atol=1e-6)


def test_silence_stays_silence(separator):
    out = separator.separate(np.zeros((2, 1000), np.float32), 'rain', sample_rate=8000)
    assert not np.any(out.targets)
    assert not np.any(out.residual)


def test_batches_of_any_lengths(separator):
    mixtures = [sound(n, seed=n) for n in (700, 3000, 2990, 40, 701)]
    embeddings = separator.embed(['rain', 'a siren', 'rain', 'a dog', 'a cat'])
    together = separator.separate_batch(mixtures, embeddings, batch_size=2)
    for mixture, embedding, out in zip(mixtures, embeddings, together, strict=True):
        alone = separator.separate(mixture, embedding, sample_rate=8000).targets[0, 0]
        # Batches are padded to other lengths, and so computed by another program, which rounds differently.
        np.testing.assert_allclose(out, alone, atol=2e-6)


def test_a_batch_for_all_devices_is_split_over_them(separator):
    """The tests have eight devices. The ninth mixture is filled up to another batch."""
    mixtures = [sound(700, seed=n) for n in range(9)]
    embeddings = separator.embed(['rain', 'a siren', 'a dog'] * 3)
    together = separator.separate_batch(mixtures, embeddings, batch_size=8)
    for mixture, embedding, out in zip(mixtures, embeddings, together, strict=True):
        alone = separator.separate(mixture, embedding, sample_rate=8000).targets[0, 0]
        np.testing.assert_allclose(out, alone, atol=1e-6)
    _, weights = separator._network.on_all_devices
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(weights))


def test_the_fingerprint_depends_on_the_weights(separator, variables):
    assert Separator(CONFIG, noisy_variables()).fingerprint() == separator.fingerprint()
    other = {**variables, 'batch_stats': jax.tree.map(lambda x: x + 0.1, variables['batch_stats'])}
    assert Separator(CONFIG, other).fingerprint() != separator.fingerprint()


def test_long_input_in_pieces_is_the_whole(variables):
    whole = Separator(CONFIG, variables, max_whole_seconds=60)
    in_pieces = Separator(CONFIG, variables, max_whole_seconds=0)
    query = sound(512, seed=3)
    for length in (1, 64, 65, 4000, 20 * 8000 + 123):
        x = sound(2, length) if length > 8 else np.full((2, length), 0.1, np.float32)
        expected = whole.separate(x, query, sample_rate=8000).targets
        actual = in_pieces.separate(x, query, sample_rate=8000).targets
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_negative_seconds_are_refused(variables):
    with pytest.raises(ConfigError, match='max_whole_seconds -1'):
        Separator(CONFIG, variables, max_whole_seconds=-1)


def test_encoder_of_another_size_is_refused(variables):
    with pytest.raises(EncoderMismatchError, match="'words' gives 64 numbers, the model takes 512"):
        Separator(CONFIG, variables, load_encoder({'name': 'words', 'embedding_size': 64}))


@pytest.mark.parametrize(
    ('query', 'message'),
    [
        ('', 'empty'),
        ([], 'empty'),
        (['rain', '  '], 'empty'),
        (np.zeros(7), r'\[512\] or \[Q, 512\], got \[7\]'),
        (np.zeros((0, 512)), r'got \[0, 512\]'),
        (np.full(512, np.nan), 'NaN'),
    ],
)
def test_invalid_queries_are_refused(separator, query, message):
    with pytest.raises(QueryError, match=message):
        separator.separate(sound(100), query, sample_rate=8000)


def test_text_without_an_encoder(variables):
    with pytest.raises(QueryError, match='no encoder'):
        Separator(CONFIG, variables).embed('rain')


@pytest.mark.parametrize(
    ('audio', 'rate', 'message'),
    [
        (np.zeros(0, np.float32), 8000, 'T > 0'),
        (np.zeros((0, 5), np.float32), 8000, 'T > 0'),
        (np.zeros((1, 2, 3), np.float32), 8000, r'got \[1, 2, 3\]'),
        (np.zeros((8000, 2), np.float32), 44100, 'transpose it'),
        (np.zeros(5, np.int16), 8000, 'divide int16 samples by 32768'),
        (np.array([0.1, np.nan], np.float32), 8000, 'NaN'),
        (np.array([0.1, np.inf], np.float32), 8000, 'infinite'),
        (np.zeros(5, np.float32), 0, 'sample rate'),
    ],
)
def test_invalid_audio_is_refused(separator, audio, rate, message):
    with pytest.raises(AudioFileError, match=message):
        separator.separate(audio, 'rain', sample_rate=rate)


def test_a_missing_package_of_the_encoder_is_reported_by_the_first_text(tmp_path, monkeypatch):
    model = ModelConfig(sample_rate=8000, window_size=128, hop_size=32, widths=(1,) * 2, condition_size=256)
    identity = {'name': 'wordllama', 'version': 1, 'embedding_size': 256, 'stop_weight': 0.1, 'weights': '0' * 16}
    record = describe(TrainConfig(model=model), identity)
    save_for_inference(tmp_path / 'it', variables=init_variables(model, jax.random.key(0)), record=record, step=1)
    monkeypatch.setattr(wordllama, 'PACKAGE', 'no_such_package')
    separator = load(tmp_path / 'it')
    assert separator.embed(np.ones(256, np.float32)).shape == (1, 256)
    with pytest.raises(ConfigError, match='not installed: pip install') as caught:
        separator.embed('a dog')
    assert 'put them into' not in str(caught.value)


def test_progress_is_in_seconds(variables):
    calls = []
    in_pieces = Separator(CONFIG, variables, load_encoder('words'), max_whole_seconds=1)
    x = sound(40 * 8000)
    out = in_pieces.separate(x, 'rain', sample_rate=8000, progress=lambda *call: calls.append(call))
    assert out.targets.shape[-1] == x.shape[-1]
    assert [total for _, total in calls] == [40] * len(calls)
    assert calls[0][0] < calls[1][0] < 40
    assert calls[-1] == (40, 40)
    assert calls.count((40, 40)) == 1

    def stop(done, total):
        raise ZeroDivisionError('mine')

    with pytest.raises(ZeroDivisionError, match='mine'):
        in_pieces.separate(x, 'rain', sample_rate=8000, progress=stop)


def test_bfloat16_is_near(variables, separator):
    """An untrained network in bfloat16: its targets are within 2 % of the float32 ones, and it says what it is."""
    x = sound(2, 4000)
    exact = separator.separate(x, ['rain', 'a siren'], sample_rate=8000).targets
    rough = Separator(
        dataclasses.replace(CONFIG, dtype='bfloat16'), variables, load_encoder('words'), max_whole_seconds=0.25
    )
    found = rough.separate(x, ['rain', 'a siren'], sample_rate=8000).targets
    assert found.dtype == np.float32
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 1e-6 < error < 0.02


def test_the_number_format_of_a_checkpoint_can_be_chosen(tmp_path):
    save_small(tmp_path)
    assert load(tmp_path).config.dtype == 'float32'
    assert load(tmp_path, dtype='bfloat16').config.dtype == 'bfloat16'
    with pytest.raises(ConfigError, match=r"model.dtype: 'float16' is neither"):
        load(tmp_path, dtype='float16')
