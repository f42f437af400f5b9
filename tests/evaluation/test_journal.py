"""Tests that scores on disk survive a killed process."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiosep_jax.errors import DataError
from audiosep_jax.evaluation.journal import Journal, key_of

RECORD = {'silent': False, 'scores': {'separated': {'SDR': 1.2345678901234567}}, 'name': 'ein Häuschen'}


def test_records_are_read_back(tmp_path):
    with Journal(tmp_path / 'out') as journal:
        assert journal.get('k') is None
        journal.append({'k': RECORD})
        assert journal.get('k') == RECORD
    with Journal(tmp_path / 'out') as journal:
        assert journal.get('k') == RECORD
        journal.append({'l': {'silent': True}})
    assert len((tmp_path / 'out' / 'scores-00000.jsonl').read_text().splitlines()) == 2


@settings(max_examples=40)
@given(st.integers(0, 400))
def test_a_line_that_is_cut_short_is_the_only_one_lost(tmp_path_factory, length):
    folder = tmp_path_factory.mktemp('cut')
    with Journal(folder) as journal:
        journal.append({f'key {i}': {'n': i} for i in range(10)})
    path = folder / 'scores-00000.jsonl'
    data = path.read_bytes()[:length]
    path.write_bytes(data)
    with Journal(folder) as journal:
        whole = data.count(b'\n') + (data[-1:] == b'}')
        assert [journal.get(f'key {i}') for i in range(10)] == [{'n': i} if i < whole else None for i in range(10)]
        journal.append({'new': {'n': 99}})
    with Journal(folder) as journal:
        assert journal.get('new') == {'n': 99}
        assert journal.get('key 0') == ({'n': 0} if whole else None)


def test_each_process_writes_its_own_file_and_reads_all(tmp_path):
    for process in range(3):
        with Journal(tmp_path, process) as journal:
            journal.append({f'of {process}': {}})
    with Journal(tmp_path, 7) as journal:
        assert all(journal.get(f'of {process}') == {} for process in range(3))


@pytest.mark.parametrize('line', [b'\xff\xfe\n', b'[1, 2]\n', b'3\n', b'{"no": "key"}\n', b'\n', b'{"key": [1]}\n'])
def test_foreign_lines_are_skipped(tmp_path, line):
    (tmp_path / 'scores-00000.jsonl').write_bytes(line + json.dumps({'key': 'k', 'n': 1}).encode())
    with Journal(tmp_path) as journal:
        assert journal.get('k') == {'n': 1}


def test_a_line_unlike_its_checksum_is_not_believed(tmp_path):
    with Journal(tmp_path) as journal:
        journal.append({'a': {'n': 1.25}, 'b': {'n': 2.5}, 'c': {'n': 5}})
    path = tmp_path / 'scores-00000.jsonl'
    path.write_bytes(path.read_bytes().replace(b'1.25', b'1.35').replace(b'"c"', b'"d"'))
    with Journal(tmp_path) as journal:
        assert [journal.get(key) for key in 'abcd'] == [None, {'n': 2.5}, None, None]
        assert journal.num_damaged == 2
        journal.append({'a': {'n': 1.25}, 'c': {'n': 5}})
    with Journal(tmp_path) as journal:
        assert [journal.get(key) for key in 'abcd'] == [{'n': 1.25}, {'n': 2.5}, {'n': 5}, None]
        assert journal.num_damaged == 1  # whose key is damaged, too


def test_lines_of_earlier_versions_have_no_checksum(tmp_path):
    lines = ['{"key": "a", "n": 1, "name": "\\udcff"}', '{"key": "b", "n": 2}']
    (tmp_path / 'scores-00000.jsonl').write_text('\n'.join(lines) + '\n')
    with Journal(tmp_path) as journal:
        assert journal.get('a') == {'n': 1, 'name': '\udcff'}
        assert (journal.get('b'), journal.num_damaged) == ({'n': 2}, 0)


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(DataError, match='scores cannot be kept there'):
        Journal(tmp_path / 'file')
    with pytest.raises(DataError, match='No such file'):
        Journal(tmp_path / 'a' / 'b')


def test_keys():
    assert key_of(['a', {'x': 1, 'y': 2}]) == key_of(['a', {'y': 2, 'x': 1}])
    assert key_of(['a']) != key_of(['b'])
    assert key_of('\udcff') != key_of('x')  # a name that is not UTF-8
