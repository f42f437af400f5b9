"""Pieces of a file are read as one."""

import io
import os

import pytest

from audiosep_jax.audio.structure.pieces import file_bytes, find_bytes, open_pieces, skip_tags


@pytest.mark.parametrize('in_memory', [False, True])
def test_pieces_are_read_and_sought_as_a_file(tmp_path, in_memory):
    (tmp_path / 'x').write_bytes(bytes(range(100)))
    file = io.BytesIO(bytes(range(100))) if in_memory else tmp_path / 'x'
    assert file_bytes(file) == 100
    expected = bytes(range(10, 20)) + b'between' + bytes(range(90, 100))
    with open_pieces(file, [(10, 20), b'between', (50, 50), b'', (90, 100)]) as pieces:
        assert pieces.read() == expected
        assert pieces.seek(0, os.SEEK_END) == len(expected)
        for start in range(len(expected) + 2):
            pieces.seek(start)
            assert pieces.read(8) == expected[start : start + 8]
        with pytest.raises(OSError, match='Invalid'):
            pieces.seek(-1)
    with open_pieces(file, None) as whole:
        assert whole.read() == bytes(range(100))


def test_bytes_are_found_across_blocks():
    data = bytes((1 << 20) - 2) + b'here' + bytes(100)
    assert find_bytes(io.BytesIO(data), b'here', 0, len(data)) == (1 << 20) - 2
    assert find_bytes(io.BytesIO(data), b'here', 1 << 20, len(data)) == len(data)


def test_tags_are_skipped():
    tag = b'ID3\x04\x00\x00\x00\x00\x01\x02' + bytes(130)
    assert skip_tags(io.BytesIO(tag + tag + b'fLaC')) == 2 * len(tag)
    assert skip_tags(io.BytesIO(b'fLaC')) == 0
