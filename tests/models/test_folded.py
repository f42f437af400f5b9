"""The folded network equals the trained one, and in pieces it equals itself on the whole recording."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.noisy_separator import noisy_variables, sound

from audiosep_jax.audio.stft import istft, stft
from audiosep_jax.models import folded
from audiosep_jax.models.audiosep import AudioSep, ModelConfig

CONFIG = ModelConfig(sample_rate=8000, window_size=128, hop_size=64, widths=(2, 3, 4, 4, 5, 5))
SHALLOW = dataclasses.replace(CONFIG, widths=(2, 3, 3))
FRAMES = 352
COUNT = 337  # frames of the first recording


@pytest.fixture(
    scope='module', params=[(CONFIG, 1), (CONFIG, 8), (SHALLOW, 1)], ids=['plain', 'packed by 4', 'three blocks']
)
def case(request):
    """A network, spectra, embeddings, numbers of frames, and the spectra masked by the trained network.

    The network is its configuration and its folded weights.
    """
    config, lanes = request.param
    variables = noisy_variables(config)
    samples = np.stack([sound((FRAMES - 1) * 64 + 128, seed=seed) for seed in (0, 1)])
    spectra = stft(samples, 128, 64, center=False)
    embeddings = jax.random.normal(jax.random.key(3), (2, 512)) / 20
    counts = jnp.array([COUNT, FRAMES])
    expected = jax.jit(lambda *x: AudioSep(config).apply(*x, method='mask'))(variables, spectra, embeddings, counts)
    network = jax.jit(functools.partial(folded.fold, config, lanes=lanes))(variables)
    assert network['norms']['encoder_block1/norm1']['scale'].size == (8 if lanes > 1 else 2)
    return config, network, spectra, embeddings, counts, np.asarray(expected * spectra)


def assert_same_sound(actual, expected, counts):
    """Compares waveforms, because the angle of the mask is arbitrary where its magnitude is near 0."""
    actual, expected = (istft(x, 128, 64, length=COUNT * 64, frame_count=counts) for x in (actual, expected))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize('copies', [1, 4])
def test_folded_whole(case, copies):
    """On eight rows, bins and maps are packed otherwise than on two."""
    config, network, spectra, embeddings, counts, expected = case
    spectra, embeddings, counts, expected = (
        np.concatenate([x] * copies) for x in (spectra, embeddings, counts, expected)
    )
    valid = jnp.arange(FRAMES) < counts[:, None]

    @jax.jit
    def masked(network, spectra):
        shifts = folded.query_shifts(config, network, embeddings)
        x = folded.features(network, spectra, valid)
        return spectra * folded.whole_mask(config, network, shifts, x, valid)

    assert_same_sound(masked(network, spectra), expected, counts)
    gain = np.abs(expected[0, :COUNT, :8] / spectra[0, :COUNT, :8])
    assert gain.max() > 0.5
    assert gain.std() > 0.02  # the mask is not constant


def test_in_pieces(case):
    size = 32
    config, network, spectra, embeddings, counts, expected = case
    late = folded.look_ahead(config)
    padded = jnp.pad(spectra[:1], [(0, 0), (0, -(-(FRAMES + late) // size) * size - FRAMES), (0, 0)])
    shifts = folded.query_shifts(config, network, embeddings[:1])
    piece = jax.jit(functools.partial(folded.piece_mask, config))
    state, masks = folded.initial_state(config, network, 1), []
    for start in range(0, padded.shape[1], size):
        # The number of frames is not known until the last piece.
        count = COUNT if start + size > COUNT else 2**30
        valid = (start + jnp.arange(size) < count)[None]
        x = folded.features(network, padded[:, start : start + size], valid)
        mask, state = piece(network, shifts, x, start, count, state)
        masks.append(np.asarray(mask))
    masks = np.concatenate(masks, axis=1)
    assert not masks[:, :late].any()
    actual = masks[:, late : late + FRAMES] * spectra[:1]
    assert_same_sound(actual, expected[:1], counts[:1])
    assert not masks[:, late + COUNT :].any()


def test_the_look_ahead_is_the_reach_of_the_layers():
    """Two 3×3 convolutions at each level on either side, six at the lowest, and two frames for the pooling."""
    levels = [1, 2, 4, 8, 16]
    reach = 2 * sum(levels) + 6 * 32 + 2 * 32 + 2 * sum(levels)
    assert folded.look_ahead(CONFIG) == reach - 2 * 32 + 2
    # With three blocks, the bottleneck is the one level with an eighth of the frames.
    assert folded.look_ahead(SHALLOW) == 2 * (1 + 2 + 4) + 2 * 8 + 2 * (1 + 2 + 4) + 2
