"""The mask network in ONNX Runtime against `models/folded.py`: batches, any number of frames, pieces, float16."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.noisy_separator import CONFIG, noisy_variables
from support.onnx_runs import run, run_pieces, session_of
from support.random_equalizer import random_equalizer

from audiosep_jax.export.network import MaskNetwork, mask_graph
from audiosep_jax.models import folded

BINS = CONFIG.window_size // 2 + 1


@pytest.fixture(scope='module')
def variables():
    return noisy_variables()


@pytest.fixture(scope='module')
def equalizer():
    return random_equalizer(CONFIG)


def graph_of(variables, dtype='float32', equalizer=None, *, pieces=False):
    return mask_graph(MaskNetwork.fold(CONFIG, variables, dtype, equalizer), pieces=pieces)[0]


def inputs(rows, frames):
    rng = np.random.default_rng(frames)
    magnitude = np.abs(3 * rng.standard_normal((rows, frames, BINS))).astype(np.float32)
    magnitude[:, :, 5] = 0  # below the floor
    embedding = rng.standard_normal((rows, CONFIG.condition_size)).astype(np.float32)
    return {'magnitude': magnitude, 'embedding': embedding / np.linalg.norm(embedding, axis=1, keepdims=True)}


@jax.jit
def jax_mask(weights, magnitude, embedding, valid):
    x = folded.features(weights, magnitude.astype(jnp.complex64), valid)
    return folded.whole_mask(CONFIG, weights, folded.query_shifts(CONFIG, weights, embedding), x, valid)


def expected(variables, magnitude, embedding, equalizer=None):
    frames = magnitude.shape[1]
    padded = np.pad(magnitude, [(0, 0), (0, -frames % 32), (0, 0)])
    valid = np.broadcast_to(np.arange(padded.shape[1]) < frames, padded.shape[:2])
    weights = folded.fold(CONFIG, variables)
    if equalizer is not None:
        weights['equalizer'] = equalizer.weights()
    return np.asarray(jax_mask(weights, padded, embedding, valid))[:, :frames]


def test_masks_are_those_of_the_folded_network_for_any_number_of_frames_and_rows(variables):
    session = session_of(graph_of(variables))
    for frames in (33, 64):  # compiled once
        given = inputs(2, frames)
        wanted = expected(variables, **given)
        for rows in (2, 1):
            real, imaginary = run(session, **{name: array[:rows] for name, array in given.items()})
            assert real.shape == wanted[:rows].shape
            np.testing.assert_allclose(real + 1j * imaginary, wanted[:rows], atol=1e-4 * np.abs(wanted).max())


def test_the_equalizer_has_its_share(variables, equalizer):
    given = inputs(2, 33)
    given['embedding'][0] = equalizer.embeddings[2] + 0.2 * given['embedding'][0]
    real, imaginary = run(session_of(graph_of(variables, equalizer=equalizer)), **given)
    wanted = expected(variables, **given, equalizer=equalizer)
    np.testing.assert_allclose(real + 1j * imaginary, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(wanted - expected(variables, **given)).max() > 0.1


def test_half_precision_changes_the_masks_little(variables):
    given = inputs(2, 33)
    real, imaginary = run(session_of(graph_of(variables, 'float16')), **given)
    wanted = expected(variables, **given)
    error = np.linalg.norm(real + 1j * imaginary - wanted) / np.linalg.norm(wanted)
    assert error < 0.01
    assert real.dtype == np.float32


@pytest.mark.parametrize(('dtype', 'equalized'), [('float32', False), ('float32', True), ('float16', False)])
def test_pieces_are_the_whole(variables, equalizer, dtype, equalized):
    """Pieces of different lengths, of a recording whose length is said with the last ones only."""
    given, late = inputs(2, 70), folded.look_ahead(CONFIG)
    network = variables, dtype, equalizer if equalized else None
    whole = run(session_of(graph_of(*network)), **given)
    padded = np.pad(given['magnitude'], [(0, 0), (0, 500), (0, 0)], constant_values=7)
    starts = [0, 32, 96, 256, 288, 480]
    pieces = [
        {
            'magnitude': padded[:, start:end],
            'embedding': given['embedding'],
            'start': np.array([start]),
            'count': np.array([2**30 if end <= 70 else 70]),
        }
        for start, end in itertools.pairwise(starts)
    ]
    outputs = run_pieces(session_of(graph_of(*network, pieces=True)), pieces, batch=2)
    for masks, wanted in zip(zip(*outputs, strict=True), whole, strict=True):
        mask = np.concatenate(masks, axis=1)
        error = np.abs(mask[:, late : late + 70] - wanted)
        # In half precision a mask turns where both parts are close to 0.
        assert error.max() < 1e-5 if dtype == 'float32' else np.linalg.norm(error) < 0.005 * np.linalg.norm(wanted)
        assert not mask[:, :late].any()
        assert not mask[:, late + 70 :].any()


def test_the_graph_holds_every_weight_once_and_next_to_nothing_else(variables):
    tensors = graph_of(variables).model({}).graph.initializer
    held = sum(int(np.prod(tensor.dims)) for tensor in tensors if len(tensor.dims))
    weights = sum(leaf.size for leaf in jax.tree.leaves(folded.fold(CONFIG, variables)))
    assert held < weights + 200
