"""Files of learnt queries."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from support.two_band_separator import TwoWords, two_band_separator

from audiosep_jax.errors import DataError, QueryError
from audiosep_jax.separation.queries import Query
from audiosep_jax.separation.query_files import LearntQuery, QueryScores

LEARNT = LearntQuery(
    embedding=np.array([0.1, -1 / 3], np.float32),
    encoder=TwoWords().identity(),
    network='0123',
    checkpoint='runs/a',
    step=3,
    start="the query 'low'",
    learnt=True,
    steps=40,
    examples=('a.wav', 'b.wav'),
    backgrounds=(),
    held_out_mixtures=64,
    before=QueryScores(1.0, 2.0, -3.0),
    after=QueryScores(2.5, 3.0, -9.0),
)


@pytest.fixture(scope='module')
def separator():
    return two_band_separator()


def test_a_file_gives_back_all_that_was_saved(tmp_path):
    path = tmp_path / 'low.query'
    LEARNT.save(path)
    found = LearntQuery.load(path)
    np.testing.assert_array_equal(found.embedding, LEARNT.embedding)
    for field in dataclasses.fields(LearntQuery):
        if field.name != 'embedding':
            assert getattr(found, field.name) == getattr(LEARNT, field.name)
    assert [file.name for file in tmp_path.iterdir()] == ['low.query']
    record = json.loads(path.read_text('utf-8'))
    assert record['format'] == 'audiosep_jax query'
    record['later'] = 'a field of a later version'
    path.write_text(json.dumps(record), 'utf-8')
    assert LearntQuery.load(path).steps == 40


def changed(**values):
    def change(record):
        record.update(values)

    return change


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (changed(format='something else'), 'not a query file'),
        (changed(version=2), 'later version'),
        (changed(version='x'), 'expected a whole number'),
        (changed(embedding=[]), 'empty'),
        (changed(embedding=[1, 'x']), r'embedding\[1\]: expected a number'),
        (changed(embedding=[1e300, 0]), 'infinite'),
        (changed(before={'sdri': 1}), 'no key'),
        (lambda record: record.pop('network'), "no key 'network'"),
    ],
)
def test_files_that_are_refused(tmp_path, change, message):
    path = tmp_path / 'low.query'
    LEARNT.save(path)
    record = json.loads(path.read_text('utf-8'))
    change(record)
    path.write_text(json.dumps(record), 'utf-8')
    with pytest.raises(QueryError, match=message):
        Query.vector_file(path)


def test_a_folder_that_is_missing_is_said(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match=r'low\.query: cannot be written'):
        LEARNT.save(tmp_path / 'file' / 'low.query')


def test_a_query_of_another_encoder_is_refused(separator, tmp_path):
    other = dataclasses.replace(LEARNT, encoder=TwoWords(version=2).identity(), network=separator.network.identity)
    other.save(tmp_path / 'low.query')
    with pytest.raises(QueryError, match=r"low\.query: learnt with the encoder 'two words' of runs/a, .* learn it"):
        separator.embed(Query.vector_file(tmp_path / 'low.query'))


def test_a_query_of_another_checkpoint_is_warned_of(separator, tmp_path, caplog):
    LEARNT.save(tmp_path / 'low.query')
    dataclasses.replace(LEARNT, network=separator.network.identity).save(tmp_path / 'same.query')
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(separator.embed(Query.vector_file(tmp_path / 'same.query'))[0], LEARNT.embedding)
        assert not caplog.records
        separator.embed([Query.vector_file(tmp_path / name) for name in ('low.query', 'same.query')])
    assert [record.getMessage() for record in caplog.records] == [
        'low.query: learnt with another checkpoint, so it may do worse: learn it with this one'
    ]


def test_the_identity_of_a_network_does_not_depend_on_how_it_is_folded(separator):
    assert separator.network.identity == two_band_separator().network.identity
    assert separator.network.identity != LEARNT.network
    assert len(separator.network.identity) == 16
