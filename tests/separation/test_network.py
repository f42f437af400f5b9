"""The network with the STFT around it: padded shapes, batches, and pieces that overlap-add to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.noisy_separator import CONFIG, noisy_variables, sound

from audiosep_jax.audio.stft import stft
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.models.folded import fold
from audiosep_jax.separation.network import Network, padded_frames, separate_batch, separate_whole, synthesize
from audiosep_jax.separation.queries import embed

WINDOW, HOP = CONFIG.window_size, CONFIG.hop_size


@pytest.fixture(scope='module')
def network():
    return Network(CONFIG, jax.jit(lambda variables: fold(CONFIG, variables))(noisy_variables()))


def test_padded_frames_are_multiples_of_the_pooling_grid():
    assert [padded_frames(samples, CONFIG) for samples in (1, 31 * HOP, 31 * HOP + 63, 32 * HOP)] == [32, 32, 32, 64]


@pytest.mark.parametrize('count', [3, 8])
def test_each_row_of_a_batch_is_separated_as_by_itself(network, count):
    """Eight rows are split over the eight devices of the tests; three are not."""
    mixtures = [sound(1500 + 10 * i, seed=i) for i in range(count)]
    encoder = load_encoder('words')
    embedded = [embed(query, encoder, CONFIG.condition_size) for query in ['rain', 'a siren'] * 4][:count]
    together = separate_batch(network, mixtures, np.concatenate([e.queries for e in embedded]))
    for mixture, queries, target in zip(mixtures, embedded, together, strict=True):
        alone = separate_whole(network, mixture[None], queries, per_channel=False)
        np.testing.assert_allclose(target, alone[0, 0], atol=1e-6)


def test_pieces_overlap_add_to_the_whole():
    spectra = stft(sound(2, 95 * HOP + WINDOW), WINDOW, HOP, center=False)
    mask = jnp.ones(spectra.shape, spectra.dtype)
    whole, _, _ = synthesize(CONFIG, spectra, mask, 0, 90, None, None)
    tail, weight, pieces = jnp.zeros((2, WINDOW - HOP)), jnp.zeros(WINDOW - HOP), []
    for start in range(0, 96, 32):
        part = slice(start, start + 32)
        piece, tail, weight = synthesize(CONFIG, spectra[:, part], mask[:, part], start, 90, tail, weight)
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces, axis=-1), whole[:, : 96 * HOP], atol=1e-6)
