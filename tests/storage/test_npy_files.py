"""Arrays in `.npy` files: those of numbers are read, and damage of any kind is a ValueError."""

import warnings

import numpy as np
import pytest

from audiosep_jax.storage.npy_files import read_npy

ROWS = np.arange(6, dtype=np.float16).reshape(2, 3)


@pytest.mark.parametrize(
    'array',
    [ROWS, np.asfortranarray(ROWS), np.float32(3), np.zeros((0, 5)), np.array([True]), np.arange(3, dtype='>i4')],
)
def test_arrays_of_numbers_are_read(tmp_path, array):
    np.save(tmp_path / 'x.npy', array)
    found = read_npy(tmp_path / 'x.npy')
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize('version', [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format_is_read(tmp_path, version):
    with open(tmp_path / 'x.npy', 'wb') as file:
        np.lib.format.write_array(file, ROWS, version)
    np.testing.assert_array_equal(read_npy(tmp_path / 'x.npy'), ROWS)


def header(text: str) -> bytes:
    return b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text.encode('latin-1')


@pytest.mark.parametrize(
    'text',
    [
        "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }  \n",
        "{'shape':(2L,3L),'fortran_order':False,'descr':'<f2'}",  # as Python 2 and other programs write it
        '{"descr": "<f2", "fortran_order": False, "shape": (2, 3,)}',
    ],
)
def test_headers_of_other_programs_are_read(tmp_path, text):
    (tmp_path / 'x.npy').write_bytes(header(text) + ROWS.tobytes())
    np.testing.assert_array_equal(read_npy(tmp_path / 'x.npy'), ROWS)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'not a .npy file'),
        (b'\x93NUMPY\x09\x00', 'not a .npy file'),
        (b'\x93NUMPY\x01\x00\xff\xff{', 'header is damaged'),
        (b'\x93NUMPY\x01\x00\xff\x00{', 'cut short'),
        (header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), "), 'header is damaged'),  # TokenError
        (header("{'descr': '<f2', 'fortran_order': False, 'shape': (2 3), }"), 'header is damaged'),  # SyntaxError
        (header('{' * 500 + '}'), 'header is damaged'),  # MemoryError
        (header("{'descr': '<f2', 'fortran_order': False, 'shape': (-2, 3), }"), 'header is damaged'),
        (header("{'descr': '<f2', 'fortran_order': False, 'shape': (3), }"), 'header is damaged'),
        (header("{'descr': '<f2', 'fortran_order': 0, 'shape': (2, 3), }"), 'header is damaged'),
        (header("{'descr': '<f2', 'fortran_order': False, 'fortran_order': False, }"), 'header is damaged'),
        (header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), 'x': 1}"), 'header is damaged'),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }"), 'not of an array of numbers'),
        (header("{'descr': '<U4', 'fortran_order': False, 'shape': (2, 3), }"), 'not of an array of numbers'),
        (header("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (6,), }"), 'not of an array of numbers'),
        (header("{'descr': '<f7', 'fortran_order': False, 'shape': (2, 3), }"), 'unknown type'),
        (header("{'descr': '<f2', 'fortran_order': False, 'shape': (3, 3), }"), 'shorter than its header says'),
        (header(f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({10**18}, {10**18}), }}"), 'shorter than'),
        (header(f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({'1, ' * 40}), }}"), 'shorter than'),
    ],
)
def test_damage_is_a_value_error(tmp_path, data, message):
    (tmp_path / 'x.npy').write_bytes(data + ROWS.tobytes() if data.endswith(b'}') else data)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(ValueError, match=message):
            read_npy(tmp_path / 'x.npy')


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_npy(tmp_path / 'x.npy')
