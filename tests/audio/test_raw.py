"""Samples without a header: every format there and back, however the bytes come."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.audio.raw import RAW_FORMATS, decoded, encoded, read_raw, sample_bytes

STEP = {'u8': 2**-7, 's16le': 2**-15, 's24le': 2**-23, 's32le': 2**-24, 'f32le': 0, 'f64le': 0}


@given(
    st.sampled_from(RAW_FORMATS),
    st.integers(1, 3),
    st.lists(st.floats(-1, 0.984375, width=32), min_size=3, max_size=60),
)
def test_there_and_back(form, channels, values):
    block = np.array(values[: len(values) // channels * channels], np.float32).reshape(channels, -1)
    data, clipped = encoded(block, form)
    assert clipped == 0
    assert len(data) == block.size * sample_bytes(form)
    np.testing.assert_allclose(decoded(data, form, channels), block, atol=STEP[form] / 2)


@pytest.mark.parametrize(
    ('form', 'data'),
    [
        ('u8', bytes([192, 0])),
        ('s16le', b'\x00\x40\x00\x80'),
        ('s24le', b'\x00\x00\x40\x00\x00\x80'),
        ('s32le', b'\x00\x00\x00\x40\x00\x00\x00\x80'),
        ('f32le', b'\x00\x00\x00\x3f\x00\x00\x80\xbf'),
    ],
)
def test_the_bytes_of_a_half_and_of_minus_one(form, data):
    np.testing.assert_array_equal(decoded(data, form, 1), [[0.5, -1.0]])
    assert encoded(np.array([[0.5, -1.0]], np.float32), form) == (data, 0)


@pytest.mark.parametrize('form', ['u8', 's16le', 's24le', 's32le'])
def test_beyond_full_scale_is_clipped_and_counted(form):
    data, clipped = encoded(np.array([[1.5, -1.5, 0.0]], np.float32), form)
    assert clipped == 2
    np.testing.assert_allclose(decoded(data, form, 1), [[1.0, -1.0, 0.0]], atol=STEP[form])


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data, sizes):
        self.data, self.sizes = data, list(sizes)

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(self.sizes.pop(0) if self.sizes else 7, len(buffer), len(self.data))
        buffer[:count], self.data = self.data[:count], self.data[count:]
        return count


@given(st.binary(min_size=6, max_size=200), st.lists(st.integers(1, 20), max_size=20))
def test_bytes_may_come_in_any_pieces(data, sizes):
    notes = []
    blocks = list(read_raw(io.BufferedReader(Trickle(data, sizes)), 's24le', 2, notes.append))
    whole = len(data) // 6 * 6
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), decoded(data[:whole], 's24le', 2))
    assert len(notes) == (len(data) > whole)
