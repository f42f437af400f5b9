"""Tables: rows with their lines, and one line for what is no table. Nothing is lost in silence."""

import csv

import pytest

from audiosep_jax.errors import DataError
from audiosep_jax.storage.tables import read_text, rows_of


def test_rows_have_the_lines_on_which_they_end():
    text = 'a,b\r\n\r\n"x\ny",z\n"say ""so""",\rlast,1'
    assert list(rows_of('t.csv', text)) == [
        *((1, ['a', 'b']), (2, []), (4, ['x\ny', 'z'])),
        *((5, ['say "so"', '']), (6, ['last', '1'])),
    ]
    assert list(rows_of('t.csv', '')) == []
    assert list(rows_of('t.csv', 'a;b; c\n', delimiter=';', skipinitialspace=True)) == [(1, ['a', 'b', 'c'])]


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('text', ['a,b\nc,"d\ne,f\ng,h\n', 'a,b\nc,"d', 'a,b\n"', 'a,b\n"x""\n'])
def test_a_quote_that_is_never_closed_is_refused(strict, text):
    with pytest.raises(DataError, match=r'^t\.csv: line 2: not valid CSV: a quote that begins there is never closed$'):
        list(rows_of('t.csv', text, strict=strict))


def test_text_after_a_quote():
    assert list(rows_of('t.csv', '"a"b,c\n', strict=False)) == [(1, ['ab', 'c'])]
    with pytest.raises(DataError, match=r"^t\.csv: line 1: not valid CSV: ',' expected after '\"'$"):
        list(rows_of('t.csv', '"a"b,c\n'))


def test_a_field_that_is_too_long():
    with pytest.raises(DataError, match=r'^t\.csv: line 2: not valid CSV: field larger than field limit'):
        list(rows_of('t.csv', f'a\n{"x" * (csv.field_size_limit() + 1)}\n'))


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'a,b\nc,\0\n', 'not UTF-8 text but UTF-16 or binary'),
        ('a,b'.encode('utf-16'), 'not UTF-8 text but UTF-16 or binary'),
        ('ä'.encode('latin-1'), r'cannot be read as utf-8 text \(at byte 0\): save it as UTF-8$'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'is a Git LFS pointer'),
    ],
)
def test_what_is_no_text_is_one_line(tmp_path, data, message):
    (tmp_path / 't.csv').write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_text(tmp_path / 't.csv')
    assert len(str(caught.value).splitlines()) == 1


def test_the_first_encoding_that_fits(tmp_path):
    (tmp_path / 't.csv').write_bytes('\ufeffä\r\n'.encode())
    assert read_text(tmp_path / 't.csv') == 'ä\r\n'
    (tmp_path / 't.csv').write_bytes('ä'.encode('latin-1'))
    assert read_text(tmp_path / 't.csv', ('utf-8-sig', 'latin-1')) == 'ä'
