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
