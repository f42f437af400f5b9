"""Trees of Python values as JSON, and back. test_convert.py tests what is kept of whole files."""

import json
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.checkpoints.originals import from_json, to_json

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
    ),
    max_leaves=20,
)


@given(trees)
def test_plain_trees_come_back_as_they_were(tree):
    encoded, dropped = to_json(tree, None)
    again = from_json(json.loads(json.dumps(encoded)), None)
    assert again == tree
    assert repr(again) == repr(tree)  # types and order too
    assert dropped == []


def test_arrays_are_replaced_by_names():
    arrays = {}

    def name_of(path, array):
        arrays['/'.join(map(str, path))] = array
        return '/'.join(map(str, path))

    tree = {'a': [np.zeros(2), {3: np.ones(1)}], 'b': np.float64(0.5), 'c': 1 + 2j}
    encoded, _ = to_json(tree, name_of)
    assert set(arrays) == {'a/0', 'a/1/3'}
    again = from_json(json.loads(json.dumps(encoded)), arrays.__getitem__)
    assert again['a'][0] is tree['a'][0]
    assert again['b'] == 0.5
    assert again['c'] == 1 + 2j


def test_other_objects_are_dropped_and_listed():
    encoded, dropped = to_json({'a': 1, 'b': object(), 'c': [object(), 2]}, None)
    assert from_json(encoded, None) == {'a': 1, 'c': [None, 2]}
    assert dropped == ['b', 'c/0']


@pytest.mark.parametrize('bad', [[1], {'list': [], 'dict': []}, {'pickle': 'x'}])
def test_other_json_is_refused(bad):
    with pytest.raises(ValueError, match='a '):
        from_json(bad, None)
