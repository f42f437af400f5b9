"""JSON is read with a shape and limits: what does not fit is one line that names the place and the remedy."""

import json
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from audiosep_jax.errors import CheckpointError, DataError
from audiosep_jax.storage.json_files import check_shape, parse_json, read_json, write_json


class Clip(TypedDict):
    name: str
    size: NotRequired[int | None]


class Listed(TypedDict):
    clips: list[Clip]
    kind: NotRequired[Literal['a', 'b', 1]]
    counts: NotRequired[dict[str, int]]
    gain: NotRequired[float]


GOOD = {'clips': [{'name': 'ä', 'size': None}, {'name': '', 'size': 3, 'more': [1, {}]}], 'kind': 'b', 'gain': 1}


def test_what_fits_is_returned(tmp_path):
    path = tmp_path / 'x.json'
    write_json(path, GOOD)
    assert read_json(path, Listed) == read_json(path) == read_json(path, dict) == GOOD
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())  # a byte order mark, as editors on Windows write it
    assert read_json(path, Listed) == GOOD
    assert parse_json('\ufeff[1]', 'x', list[int]) == [1]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'clips': {}}, 'clips: expected a list, got an object'),
        ({'clips': [{'name': 'a'}, {'name': 3}]}, 'clips[1].name: expected a text, got 3'),
        ({'clips': [{}]}, "clips[0]: no key 'name'"),
        ({'clips': [{'name': '', 'size': '3'}]}, "clips[0].size: expected a whole number or null, got '3'"),
        ({'clips': [{'name': '', 'size': True}]}, 'clips[0].size: expected a whole number, got true'),
        ({'clips': [{'name': '', 'size': 1.0}]}, 'clips[0].size: expected a whole number or null, got 1.0'),
        ({'clips': [{'name': '', 'size': 1 << 63}]}, 'clips[0].size: a number of 19 digits'),
        ({'kind': 'c'}, "kind: expected 'a' or 'b' or 1, got 'c'"),
        ({'kind': True}, "kind: expected 'a' or 'b' or 1, got true"),
        ({'counts': {'a b': []}}, "counts.'a b': expected a whole number, got a list"),
        ({'gain': 'x' * 200}, f"gain: expected a number, got '{'x' * 78}…"),
        ({'clips': [{'name': 'two\nlines\ud800'}]}, 'clips[0].name: a text that UTF-8 cannot express: '),
        ({'other': {'deep': [10**30]}}, 'other.deep[0]: a number of 31 digits'),
        ({'\udcff': 1}, 'a text that UTF-8 cannot express'),
    ],
)
def test_another_shape_is_one_line(change, message):
    with pytest.raises(CheckpointError) as caught:
        parse_json(json.dumps({**GOOD, **change}), 'x.json', Listed, error=CheckpointError, remedy='make it again')
    assert str(caught.value).startswith(f'x.json: {message}')
    assert str(caught.value).endswith(': make it again')
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'not valid JSON: it is empty'),
        (b' \n', 'not valid JSON: it is empty'),
        (b'{"a": 1', 'not valid JSON: Expecting'),
        (b'[' * 200_000, 'not valid JSON: nested too deeply'),
        (b'[' * 300 + b']' * 300, 'not valid JSON: nested too deeply'),
        (b'{"a":' * 200_000, 'not valid JSON: nested too deeply'),
        (b'{"a": 1, "a": 2}', "not valid JSON: the key 'a' occurs twice"),
        (b'[NaN]', 'holds NaN, which is no number'),
        (b'[-Infinity]', 'holds -Infinity, which is no number'),
        (b'[1e999]', '[0]: a number out of range'),
        (b'[' + b'9' * 5000 + b']', 'holds a number of 5000 digits'),
        ('["ä"]'.encode('latin-1'), 'not UTF-8 text (at byte 2): delete it'),
        ('["ä"]'.encode('utf-16'), 'not UTF-8 text but UTF-16 or binary: delete it'),
        ('["ä"]'.encode('utf-16-le'), 'not UTF-8 text but UTF-16 or binary: delete it'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'is a Git LFS pointer'),
    ],
)
def test_what_is_not_json_is_one_line(tmp_path, data, message):
    (tmp_path / 'x.json').write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_json(tmp_path / 'x.json', remedy='delete it')
    assert str(caught.value).startswith(f'{tmp_path / "x.json"}: {message}')
    assert str(caught.value).endswith(': delete it')
    assert len(str(caught.value).splitlines()) == 1


def test_files_of_others_may_hold_what_python_writes():
    text = '{"seconds": NaN, "large": 1e999, "id": 1180591620717411303424, "name": "\\ud800"}'
    assert parse_json(text, 'x', strict=False).keys() == {'seconds', 'large', 'id', 'name'}
    for text in ('[' * 300 + ']' * 300, '{"a": 1, "a": 1}', '9' * 5000):
        with pytest.raises(DataError):
            parse_json(text, 'x', strict=False)


def test_a_list_in_another_encoding_has_a_remedy():
    for data in ('["ä"]'.encode('latin-1'), '["ä"]'.encode('utf-16')):
        with pytest.raises(DataError, match=r': save it as UTF-8$'):
            parse_json(data, 'x')


def test_a_file_that_is_missing_or_too_large(tmp_path):
    with pytest.raises(DataError, match=r'x\.json: cannot be read as JSON: No such file or directory$'):
        read_json(tmp_path / 'x.json')
    with pytest.raises(DataError, match='cannot be read as JSON: Is a directory'):
        read_json(tmp_path)
    (tmp_path / 'x.json').write_text(' ' * (2 << 20) + '1')
    assert read_json(tmp_path / 'x.json', int) == 1
    with pytest.raises(DataError, match=r'too large for such a file, more than 1 MiB: delete it$'):
        read_json(tmp_path / 'x.json', max_bytes=1 << 20, remedy='delete it')


def test_values_that_something_else_parsed():
    check_shape(GOOD, Listed, 'x', error=DataError)
    check_shape([1, None, 'a'], list[Any], 'x', error=DataError)
    with pytest.raises(DataError, match=r'^x: expected an object, got null: again$'):
        check_shape(None, Listed, 'x', error=DataError, remedy='again')
    with pytest.raises(DataError, match='out of range'):
        check_shape([float('nan')], list[float], 'x', error=DataError)
