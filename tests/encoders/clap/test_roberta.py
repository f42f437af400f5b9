"""Tests CLAP's text tower."""

import json

import numpy as np
import pytest
from support.paths import REFERENCE
from support.tiny_clap import TEXT, laion_tensors

from audiosep_jax.encoders.clap import roberta
from audiosep_jax.encoders.clap.roberta import RobertaConfig, TextTower, position_ids


@pytest.fixture(scope='module')
def tower():
    return TextTower(TEXT, laion_tensors())


def test_positions_begin_behind_the_padding_id():
    ids = np.array([[0, 40, 2, 1, 1], [0, 1, 50, 2, 1]])
    assert position_ids(ids).tolist() == [[2, 3, 4, 1, 1], [2, 1, 3, 4, 1]]


def test_the_longest_text_has_512_tokens():
    assert RobertaConfig().max_length == 512
    assert position_ids(np.zeros((1, 512), int)).max() == RobertaConfig().positions - 1


def test_tensors_are_those_of_laions_state_dict():
    with np.load(REFERENCE / 'clap_reference.npz') as archive:
        names = [str(name) for name in archive['state_names']]
        shapes = {n: tuple(json.loads(str(s))) for n, s in zip(names, archive['state_shapes'], strict=True)}
    ours = roberta.tensor_shapes(RobertaConfig())
    assert ours == {name: shapes[name] for name in ours}
    unused = {n for n in shapes if n.startswith('text_')} - set(ours)
    assert all('position_ids' in name or name.startswith('text_transform.') for name in unused)


def test_padding_changes_nothing(tower):
    ids = np.array([[0, 17, 42, 2]])
    short = np.asarray(tower(ids, np.ones_like(ids)))
    fill = ((0, 0), (0, 12))
    long = np.asarray(tower(np.pad(ids, fill, constant_values=1), np.pad(np.ones_like(ids), fill)))
    assert short.shape == (1, TEXT.embedding_size)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(long, short, atol=1e-6)


def test_masked_tokens_are_not_seen(tower):
    mask = np.array([[1, 1, 0, 1]])
    one, other = (np.asarray(tower(np.array([[0, 17, word, 2]]), mask)) for word in (42, 43))
    np.testing.assert_allclose(one, other, atol=1e-6)
    seen, _ = (np.asarray(tower(np.array([[0, 17, word, 2]]), np.ones_like(mask))) for word in (42, 43))
    assert np.abs(seen - one).max() > 1e-4


def test_word_order_matters(tower):
    one, other = (np.asarray(tower(np.array([[0, *words, 2]]), np.ones((1, 4), int))) for words in ((9, 8), (8, 9)))
    assert np.abs(one - other).max() > 1e-2
