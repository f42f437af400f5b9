"""The equalizer's gains against their formula, and its share in the masks of the folded network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.noisy_separator import CONFIG, noisy_separator, noisy_variables, sound
from support.random_equalizer import random_equalizer

from audiosep_jax.errors import ConfigError
from audiosep_jax.models import folded
from audiosep_jax.models.equalizer import gains
from audiosep_jax.separation.separator import Separator

BINS = CONFIG.window_size // 2 + 1


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def expected_gains(equalizer, query):
    """The formula, one query at a time in float64."""
    cosines = equalizer.embeddings.astype(float) @ unit(query).astype(float)
    nearness = equalizer.counts * np.exp(cosines / equalizer.temperature)
    power = nearness @ equalizer.power / nearness.sum()
    return power / (power + np.average(equalizer.power, axis=0, weights=equalizer.counts))


def test_gains_are_those_of_the_formula():
    equalizer = random_equalizer(CONFIG)
    queries = np.stack([5 * equalizer.embeddings[0], equalizer.embeddings[1] + 0.3 * equalizer.embeddings[2]])
    found = gains(equalizer.weights(), queries)
    np.testing.assert_allclose(found, [expected_gains(equalizer, query) for query in queries], atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.1


def test_a_query_without_meaning_is_the_mean_and_a_bin_without_power_stays_out():
    equalizer = random_equalizer(CONFIG)
    equalizer.power[:, 7] = 0
    found = np.asarray(gains(equalizer.weights(), np.zeros((1, CONFIG.condition_size), np.float32)))[0]
    assert found[7] == 0
    np.testing.assert_allclose(np.delete(found, 7), 0.5, atol=1e-6)


@pytest.mark.parametrize('share', [-0.1, 1.5, float('nan')])
def test_a_share_that_is_none(share):
    with pytest.raises(ConfigError, match=r'between 0 and 1, got .* \(--equalizer\)'):
        random_equalizer(CONFIG, share=share)


def test_masks_are_the_weighted_mean_of_both():
    equalizer = random_equalizer(CONFIG)
    plain = folded.fold(CONFIG, noisy_variables())
    with_it = {**plain, 'equalizer': equalizer.weights()}
    embedding = np.random.default_rng(2).standard_normal((2, CONFIG.condition_size)).astype(np.float32)
    valid = jnp.arange(32) < jnp.array([32, 20])[:, None]
    x = jax.random.normal(jax.random.key(0), (2, 32, BINS - 1))

    @jax.jit
    def mask(weights):
        return folded.whole_mask(CONFIG, weights, folded.query_shifts(CONFIG, weights, embedding), x, valid)

    gain = np.stack([expected_gains(equalizer, query) for query in embedding])[:, None]
    expected = np.where(valid[..., None], 0.6 * mask(plain) + 0.4 * gain, 0)
    # Where the network's mask is near zero, its angle is a matter of rounding.
    np.testing.assert_allclose(mask(with_it), expected, atol=1e-4)


def test_a_separator_mixes_it_into_whole_recordings_pieces_streams_and_batches():
    equalizer, x = random_equalizer(CONFIG), sound(9000)
    separator = noisy_separator(equalizer=equalizer)
    network = noisy_separator().separate(x, 'rain', sample_rate=8000).targets
    alone = noisy_separator(equalizer=dataclasses.replace(equalizer, share=1.0))
    alone = alone.separate(x, 'rain', sample_rate=8000).targets
    expected = 0.6 * network + 0.4 * alone
    assert np.abs(network - alone).max() > 1e-3
    found = separator.separate(x, 'rain', sample_rate=8000).targets
    np.testing.assert_allclose(found, expected, atol=1e-6)
    (row,) = separator.separate_batch([x], separator.embed('rain'))
    np.testing.assert_allclose(row, expected[0, 0], atol=2e-6)
    pieces = noisy_separator(equalizer=equalizer, max_whole_seconds=0.1).separate(x, 'rain', sample_rate=8000)
    np.testing.assert_allclose(pieces.targets, expected, atol=2e-6)
    live = list(separator.stream([x[:4000], x[4000:]], 'rain', sample_rate=8000))
    np.testing.assert_allclose(np.concatenate([p.targets for p in live], -1), expected, atol=2e-6)
    assert separator.fingerprint() != noisy_separator().fingerprint()


def test_no_share_is_no_equalizer():
    separator = noisy_separator(equalizer=random_equalizer(CONFIG, share=0.0))
    assert separator.equalizer is None
    assert separator.fingerprint() == noisy_separator().fingerprint()


def test_it_is_on_every_device_that_shares_a_batch():
    """The tests have eight devices."""
    separator = Separator(CONFIG, noisy_variables(), equalizer=random_equalizer(CONFIG))
    mixtures = [sound(700, seed=n) for n in range(8)]
    embeddings = np.random.default_rng(3).standard_normal((8, CONFIG.condition_size)).astype(np.float32)
    together = separator.separate_batch(mixtures, embeddings, batch_size=8)
    for mixture, embedding, out in zip(mixtures, embeddings, together, strict=True):
        alone = separator.separate(mixture, embedding, sample_rate=8000).targets[0, 0]
        np.testing.assert_allclose(out, alone, atol=2e-6)


def test_gradients_of_a_query_go_through_it():
    weights = random_equalizer(CONFIG).weights()
    slope = jax.grad(lambda query: gains(weights, query[None])[0, 3])(jnp.ones(CONFIG.condition_size))
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0
    zero = jax.grad(lambda query: gains(weights, query[None])[0, 3])(jnp.zeros(CONFIG.condition_size))
    assert np.isfinite(zero).all()
