"""numpy's scalars and arrays in pickles: false states are refused, everything but plain numbers and text is inert."""

import numpy as np
import pytest
from support.torch_pickles import (
    assert_same_bits,
    call,
    check_refused,
    named,
    numpy_array,
    numpy_dtype,
    numpy_state,
    read_bytes,
    value,
    zipped,
)

from audiosep_jax.weights.torch_files.inert import Inert

HUGE = 1 << 62


@pytest.mark.parametrize('order', ['<', '>'])
def test_arrays_become_little_endian(tmp_path, order):
    expected = np.arange(6, dtype='<i2').reshape(2, 3)
    data = expected.astype(f'{order}i2').tobytes()
    dtype = numpy_dtype('i2', (3, order, None, None, None, -1, -1, 0))
    found = read_bytes(tmp_path, zipped(numpy_array(numpy_state((2, 3), dtype, data))))
    assert_same_bits(found, expected)
    assert not found.flags.writeable
    scalar = read_bytes(tmp_path, zipped(call('numpy._core.multiarray', 'scalar', dtype, value(data[2:4]))))
    assert (type(scalar), scalar) == (np.int16, 1)


@pytest.mark.parametrize(
    ('pickled', 'reason'),
    [
        (numpy_array(numpy_state((2,), numpy_dtype(), b'abc')), 'damaged'),
        (numpy_array(numpy_state((HUGE,), numpy_dtype(), b'abcd')), 'damaged'),
        (numpy_array(numpy_state((-1,), numpy_dtype(), b'abcd')), 'without a shape'),
        (numpy_array(numpy_state([1], numpy_dtype(), b'abcd')), 'without a shape'),
        (numpy_array(value((1, 2))), 'damaged'),
        (numpy_array(numpy_state((1,), numpy_dtype('U1'), b'\xff\xff\xff\xff')), 'invalid characters'),
        (call('numpy.core.multiarray', 'scalar', numpy_dtype(), value(b'abc')), 'damaged'),
        (call('numpy.core.multiarray', 'scalar', numpy_dtype(), value(b'abcdefgh')), 'damaged'),
        (numpy_array(numpy_state((1,), numpy_dtype(), b'abcd')) + value((1, (2,), None, 0, b'')) + b'bq\0', None),
    ],
)
def test_numpy_arrays_with_false_states(tmp_path, pickled, reason):
    if reason:
        check_refused(tmp_path, zipped(pickled), reason)
    else:  # a second state, for an array that is already rebuilt
        assert read_bytes(tmp_path, zipped(pickled)).tobytes() == b'abcd'


@pytest.mark.parametrize(
    'pickled',
    [
        numpy_array(numpy_state((1,), numpy_dtype('O8', (3, '|', None, None, None, -1, -1, 63)), [1])),
        numpy_array(numpy_state((1,), numpy_dtype('V8', (3, '|', None, ('a',), {'a': 1}, 8, 1, 16)), b'abcdefgh')),
        numpy_array(numpy_state((1,), numpy_dtype('f4,O'), b'abcdefgh')),
        numpy_array(numpy_state((1,), numpy_dtype('U999999999'), b'abcd')),
        numpy_array(numpy_state((1,), named('mine', 'Type'), b'abcd')),
        numpy_array(numpy_state((1,), numpy_dtype(), b'abcd'), named('numpy', 'matrix')),
        numpy_array(numpy_state((1,), numpy_dtype(), b'abcd'), named('mine', 'Array')),
        call('numpy.core.multiarray', 'scalar', numpy_dtype('O'), value(1)),
        call('numpy', 'ndarray', value((1 << 40,))),
        call('numpy', 'zeros', value(1 << 40)),
        call('numpy', 'memmap_', value('/etc/passwd')),
        numpy_dtype('f4', ('x', 1)),
    ],
)
def test_other_numpy_objects_are_inert(tmp_path, pickled):
    assert type(read_bytes(tmp_path, zipped(pickled))) is Inert
