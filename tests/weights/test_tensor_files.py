"""Files of named tensors: every type comes back, nothing is copied, and damage is one line."""

import json
import os

import ml_dtypes
import numpy as np
import pytest

from audiosep_jax.errors import CheckpointError
from audiosep_jax.weights.tensor_files import SafeTensors, open_tensors, state_dict_of, write_tensors

TENSORS = {
    'float32': np.arange(6, dtype=np.float32).reshape(2, 3),
    'transposed': np.arange(6, dtype=np.float32).reshape(2, 3).T,
    'bfloat16': np.arange(4).astype(ml_dtypes.bfloat16),
    'float8': np.arange(4).astype(ml_dtypes.float8_e4m3fn),
    'complex128': np.array([1 + 2j]),
    'scalar': np.array(3, np.int64),
    'complex scalar': np.array(1j),
    'empty': np.zeros((0, 3), np.float16),
    'bool': np.array([True, False]),
}


def test_every_type_comes_back(tmp_path):
    write_tensors(tmp_path / 'x.safetensors', TENSORS, {'who': 'me'})
    found = open_tensors(tmp_path / 'x.safetensors')
    assert set(found) == set(TENSORS)
    assert found.metadata == {'who': 'me'}
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    assert 'other' not in found
    assert found.get('other') is None


def test_reading_copies_nothing(tmp_path):
    write_tensors(tmp_path / 'x.safetensors', TENSORS)
    found = open_tensors(tmp_path / 'x.safetensors')
    assert np.shares_memory(found['float32'], found['float32'])
    assert not found['float32'].flags.writeable
    write_tensors(tmp_path / 'none.safetensors', {'empty': np.zeros((0, 2))})
    assert open_tensors(tmp_path / 'none.safetensors')['empty'].shape == (0, 2)
    write_tensors(tmp_path / 'none.safetensors', {})
    assert dict(open_tensors(tmp_path / 'none.safetensors')) == {}


def test_a_folder_of_several_files(tmp_path):
    write_tensors(tmp_path / 'a.safetensors', {'x': np.zeros(2)})
    write_tensors(tmp_path / 'b.safetensors', {'y': np.ones(3)})
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {'x': 'a.safetensors', 'y': 'b.safetensors'}}))
    found = open_tensors(tmp_path)
    assert sorted(found) == ['x', 'y']
    np.testing.assert_array_equal(found['y'], 1)

    for bad in ('{}', 'nonsense', '{"weight_map": {"x": "../a.safetensors"}}', '[]'):
        index.write_text(bad)
        with pytest.raises(CheckpointError, match=r'index\.json'):
            open_tensors(tmp_path)


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / 'x.safetensors'
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r'x\.safetensors: not a safetensors file'):
            open_tensors(path)
    with pytest.raises(CheckpointError, match='no such file'):
        open_tensors(tmp_path / 'nothing.safetensors')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(CheckpointError, match=r'no model\.safetensors'):
        open_tensors(tmp_path / 'folder')


def test_false_types_in_the_metadata(tmp_path):
    """The type names are metadata, which any program may have written."""
    from safetensors.numpy import save_file

    for claim in (['object', [1]], ['float64', [1000]], ['nonsense', [8]], ['float8_e4m3fn', 'x']):
        save_file(
            {'x': np.zeros(8, np.uint8)}, tmp_path / 'x.safetensors', {'audiosep_jax.dtypes': json.dumps({'x': claim})}
        )
        with pytest.raises(CheckpointError, match="tensor 'x' cannot be read"):
            SafeTensors(tmp_path / 'x.safetensors')['x']


@pytest.mark.parametrize('table', ['[1]', '{"x": 3}', '{"x": []}', '[' * 100_000, 'null'])
def test_a_malformed_table_of_types(tmp_path, table):
    from safetensors.numpy import save_file

    save_file({'x': np.zeros(8, np.uint8)}, tmp_path / 'x.safetensors', {'audiosep_jax.dtypes': table})
    with pytest.raises(CheckpointError, match=r'x\.safetensors'):
        _ = SafeTensors(tmp_path / 'x.safetensors')['x']


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(CheckpointError, match='cannot be written'):
        write_tensors(tmp_path / 'missing' / 'x.safetensors', TENSORS)
    with pytest.raises(CheckpointError, match='cannot be written'):
        write_tensors(tmp_path / 'x.safetensors', {'x': np.array(['text'], object)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    'tree',
    [{'state_dict': {'a': np.ones(1)}, 'epoch': 3}, {'a': np.ones(1), 'n': 2}, {'model': {'a': np.ones(1)}}],
)
def test_the_state_dict_is_found(tree, tmp_path):
    assert list(state_dict_of(tree, tmp_path)) == ['a']


@pytest.mark.parametrize('tree', [{}, [np.zeros(1)], {'a': 1}, {'state_dict': {'a': 'b'}}, None])
def test_no_state_dict(tree, tmp_path):
    with pytest.raises(CheckpointError, match='no state dict'):
        state_dict_of(tree, tmp_path)


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({'x': ''}, "of another kind, such as ''"),
        ({'x': '.'}, "of another kind, such as '.'"),
        ({'x': '..'}, "of another kind, such as '..'"),
        ({'x': '../a.safetensors'}, 'names files outside its folder'),
        ({'x': 'model.safetensors.index.json'}, 'of another kind'),  # itself
        ({'x': 'a\0.safetensors'}, 'of another kind'),
        ({'x': ['a.safetensors']}, 'weight_map.x: expected a text, got a list'),
        ({'x': 'b.safetensors'}, 'no such file: '),
        (
            {'x': 'a.safetensors', 'z': 'a.safetensors'},
            '1 tensors are not in it that model.safetensors.',
        ),
        ({}, 'names no tensors'),
        ([], 'weight_map: expected an object, got a list'),
    ],
)
def test_a_damaged_index_is_one_line(tmp_path, files, message):
    write_tensors(tmp_path / 'a.safetensors', {'x': np.ones(2)})
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': files}))
    with pytest.raises(CheckpointError) as caught:
        open_tensors(tmp_path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
