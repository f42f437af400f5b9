"""Tests what the encoders CLAP and CLIP share."""

import numpy as np
import pytest

from audiosep_jax.encoders.towers import (
    check_finite,
    check_token_ids,
    fingerprint,
    in_batches,
    padded_length,
    read_settings,
)
from audiosep_jax.errors import CheckpointError, QueryError


def test_lengths_are_padded_to_the_next_size():
    assert [padded_length(n, (16, 32, 77)) for n in (1, 16, 17, 77, 80)] == [16, 16, 32, 77, 77]


@pytest.mark.parametrize('count', [1, 2, 3, 8, 9, 13])
def test_batches_are_powers_of_two_and_rows_keep_their_order(count):
    sizes = []

    def tower(a, b):
        assert np.isfinite(a).all()
        sizes.append(len(a))
        return np.stack([a, b], axis=1)

    a, b = np.arange(count, dtype=np.float64), -np.arange(count, dtype=np.float64)
    result = in_batches(tower, a, b, largest=8)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.stack([a, b], axis=1))
    assert all(size in (1, 2, 4, 8) for size in sizes)


def test_fingerprints_depend_on_names_shapes_values_and_settings():
    tensors = {'a': np.arange(1000, dtype=np.float32), 'b': np.zeros((2, 3), np.float32)}
    found = fingerprint(tensors)
    assert found == fingerprint(dict(reversed(tensors.items())))
    assert found == fingerprint(tensors | {'c': np.ones(1, np.float32)}, ['a', 'b'])
    changed = tensors['a'].copy()
    changed[-1] += 1
    others = [
        fingerprint(tensors | {'a': changed}),
        fingerprint({'a': tensors['a'], 'b': np.zeros((3, 2), np.float32)}),
        fingerprint({'a': tensors['a'], 'x': tensors['b']}),
        fingerprint(tensors, settings='mel bands from 0 Hz'),
    ]
    assert len({found, *others}) == 5


def test_token_ids_and_mask_have_the_same_shape():
    ids = np.zeros((2, 3), int)
    check_token_ids(ids, np.ones((2, 3)))
    for wrong_ids, mask in ((ids, np.ones((2, 2))), (ids[0], ids[0]), (ids.astype(float), ids)):
        with pytest.raises(QueryError, match=r'expected integers \[Q, L\]'):
            check_token_ids(wrong_ids, mask)


def test_embeddings_that_are_not_finite_are_refused():
    embeddings = np.ones((2, 3), np.float32)
    assert check_finite(embeddings, 'weights') is embeddings
    with pytest.raises(CheckpointError, match='weights: damaged weights'):
        check_finite(embeddings * np.inf, 'weights')


def test_settings_are_a_json_object(tmp_path):
    path = tmp_path / 'config.json'
    assert read_settings(path) is None
    path.write_text('{"a": 1}')
    assert read_settings(path) == {'a': 1}
    for text, message in (('{"a":', 'not valid JSON'), ('[]', 'expected an object, got a list'), ('3', 'got 3')):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=rf'config\.json: .*{message}.*: not the settings of a model$'):
            read_settings(path)
