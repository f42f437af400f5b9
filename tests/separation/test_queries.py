"""Queries of every kind, their arithmetic, and sounds to exclude from embeddings."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.audio.writing import write_audio
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import AudioFileError, EncoderMismatchError, QueryError
from audiosep_jax.separation.queries import Query, as_queries, embed

WORDS = load_encoder('words')
SIZE = WORDS.embedding_size


def embedded(*queries):
    return embed(list(queries), WORDS, SIZE).queries


def refused(query, message, encoder=WORDS, size=SIZE):
    with pytest.raises(QueryError, match=message) as error:
        embed(query, encoder, size)
    assert '\n' not in str(error.value)


class Recorder:
    """An encoder with all towers that remembers what it was asked: texts are one-hot by their first letter."""

    name = 'recorder'
    embedding_size = 32

    def __init__(self):
        self.calls = []

    def encode_text(self, texts):
        self.calls.append(('text', list(texts)))
        return np.stack([np.eye(32, dtype=np.float32)[ord(text[0]) % 32] for text in texts])

    def encode_audio(self, waveforms, *, sample_rate):
        self.calls.append(('audio', sample_rate, [len(w) for w in waveforms]))
        return np.stack([np.full(32, len(w), np.float32) for w in waveforms])

    def encode_image(self, images):
        self.calls.append(('image', len(images)))
        return np.full((len(images), 32), 3, np.float32)


# ---- what may be asked -----------------------------------------------------------------------------------------------


def test_texts_and_arrays_are_what_they_were():
    texts = ['a dog barking', 'rain']
    expected = WORDS.encode_text(texts)
    np.testing.assert_array_equal(embedded(*texts), expected)
    np.testing.assert_array_equal(embed('rain', WORDS, SIZE).queries, expected[1:])
    np.testing.assert_array_equal(embed(expected, None, SIZE).queries, expected)
    np.testing.assert_array_equal(embed(3 * expected[0], None, SIZE).queries, 3 * expected[:1])
    assert embed('rain', WORDS, SIZE).unwanted.shape == (0, SIZE)
    assert embed(texts, WORDS, SIZE).excluded == ((), ())


@pytest.mark.parametrize(
    ('queries', 'message'),
    [
        ('', 'empty'),
        ([], 'empty'),
        (['rain', ' \t'], 'empty'),
        (7, 'queries are texts'),
        ([7], 'queries are texts'),
        (np.zeros(7), r'\[512\] or \[Q, 512\], got \[7\]'),
        (np.zeros((0, 512)), r'got \[0, 512\]'),
        (np.zeros((1, 1, 512)), r'got \[1, 1, 512\]'),
        (np.full(512, np.nan), 'NaN'),
        (np.full(512, 1j), 'real numbers'),
        (Query(((1.0, Query.vector(np.zeros(7)).terms[0][1]),)), r'\[512\], got \[7\]'),
    ],
)
def test_what_cannot_be_asked(queries, message):
    refused(queries, message)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: Query.text('  '), 'empty'),
        (lambda: Query.text(3), 'string'),
        (lambda: Query.audio(np.zeros(100, np.float32), 8000), 'silent'),
        (lambda: Query.audio(np.ones(100, np.int16), 8000), 'divide int16'),
        (lambda: Query.audio(np.zeros((2, 0), np.float32), 8000), r'T > 0, got \[2, 0\]'),
        (lambda: Query.audio(np.array([0.1, np.inf]), 8000), 'infinite'),
        (lambda: Query.audio(np.ones(9), 0), 'sample rate'),
        (lambda: Query.image('/nowhere.png'), 'no such image'),
        (lambda: Query.image(np.zeros((4, 4, 3))), 'uint8'),
        (lambda: Query.image(np.zeros((4, 4), np.uint8)), r'got uint8 \[4, 4\]'),
        (lambda: Query.vector(np.zeros((2, 4))), r'\[E\], got \[2, 4\]'),
        (lambda: Query.vector(np.array([1, np.nan])), 'NaN'),
        (lambda: 0 * Query.text('rain'), 'above 0'),
        (lambda: -1 * Query.text('rain'), 'above 0, got -1: .*--not or Query.without'),
        (lambda: Query.text('rain') * float('nan'), 'above 0'),
        (lambda: Query.text('rain').without(''), 'empty'),
        (lambda: Query.text('rain').without(Query.text('a').without('b')), 'cannot exclude others itself: a not b'),
    ],
)
def test_queries_that_cannot_be_made(make, message):
    with pytest.raises(QueryError, match=message):
        make()


def test_vector_files(tmp_path):
    values = np.arange(4.0)
    np.save(tmp_path / 'one.npy', values[None])
    query = Query.vector_file(tmp_path / 'one.npy')
    np.testing.assert_array_equal(embed(query, None, 4).queries, values[None])
    assert str(query) == 'one.npy'

    np.save(tmp_path / 'objects.npy', np.array([{}, os.getcwd], object), allow_pickle=True)
    np.savez(tmp_path / 'several.npz', a=values)
    (tmp_path / 'cut.npy').write_bytes((tmp_path / 'one.npy').read_bytes()[:-3])
    (tmp_path / 'empty.npy').write_bytes(b'')
    for name in ('objects.npy', 'several.npz', 'cut.npy', 'empty.npy'):
        with pytest.raises(QueryError, match=r'not a \.npy file of numbers'):
            Query.vector_file(tmp_path / name)
    for name in ('missing.npy', '.'):
        with pytest.raises(QueryError, match='cannot be read'):
            Query.vector_file(tmp_path / name)


def test_audio_files(tmp_path):
    tone = np.sin(np.arange(400) / 5).astype(np.float32)
    write_audio(tmp_path / 'dog.wav', np.stack([0.5 * tone, 0 * tone]), 8000, subtype='FLOAT')
    query = Query.audio_file(tmp_path / 'dog.wav')
    assert str(query) == 'dog.wav'
    np.testing.assert_allclose(query.terms[0][1].waveform, 0.25 * tone, atol=1e-6)
    with pytest.raises(AudioFileError, match='no such file'):
        Query.audio_file(tmp_path / 'cat.wav')


# ---- through the encoder ---------------------------------------------------------------------------------------------


def test_each_tower_is_asked_once_for_all():
    encoder = Recorder()
    tone = np.ones(5, np.float32)
    queries = [
        Query.text('a') + Query.text('b'),
        Query.text('b') + Query.image(np.zeros((2, 2, 3), np.uint8)),
        Query.audio(tone, 8000),
        Query.audio(np.ones((2, 7), np.float32), 16000) + Query.audio(tone[:3], 8000),
        Query.image(np.ones((2, 2, 3), np.uint8)),
    ]
    found = embed(queries, encoder, 32)
    assert encoder.calls == [
        ('text', ['a', 'b']),
        ('audio', 8000, [5, 3]),
        ('audio', 16000, [7]),
        ('image', 2),
    ]
    np.testing.assert_array_equal(found.queries[2], np.full(32, 5))
    np.testing.assert_array_equal(found.queries[4], np.full(32, 3))


def test_towers_that_an_encoder_lacks():
    refused(Query.audio(np.ones(9), 8000), "'words' does not understand audio examples.*asked by text or a vector")
    refused(Query.text('rain') + Query.image(np.zeros((2, 2, 3), np.uint8)), "'words' does not understand images")
    refused('rain', 'no encoder for text: give embeddings', encoder=None)


def test_encoders_that_do_not_fit():
    with pytest.raises(EncoderMismatchError, match=r'\[1, 512\].*takes \[1, 64\]'):
        embed('rain', WORDS, 64)
    encoder = Recorder()
    encoder.encode_text = lambda texts: np.full((len(texts), 32), np.inf)
    refused('rain', 'infinite', encoder, 32)


# ---- combinations ----------------------------------------------------------------------------------------------------


def test_a_combination_points_between_its_parts():
    a, b = WORDS.encode_text(['dog', 'rain'])
    expected = 0.7 * a + 0.3 * b
    actual = embedded(0.7 * Query.text('dog') + 0.3 * Query.text('rain'))[0]
    np.testing.assert_allclose(actual, expected / np.linalg.norm(expected), atol=1e-6)


@given(st.lists(st.tuples(st.sampled_from(['dog', 'rain', 'a siren']), st.floats(1e-3, 1e3)), min_size=1))
def test_unit_vectors_combine_to_a_unit_vector(parts):
    query = sum(np.float32(weight) * Query.text(text) for text, weight in parts)
    assert isinstance(query, Query)
    np.testing.assert_allclose(np.linalg.norm(embedded(query)), 1, rtol=1e-5)


def test_only_the_proportion_of_weights_matters():
    a, b = Query.text('dog'), Query.text('rain')
    np.testing.assert_allclose(*embedded(2 * a + 6 * b, (a + 3 * b) * 0.1), atol=1e-6)
    np.testing.assert_array_equal(*embedded(5 * a, a))


def test_vectors_count_with_their_length():
    v = np.eye(SIZE)[:2] * [[4], [1]]
    np.testing.assert_array_equal(embedded(0.1 * Query.vector(v[0]))[0], v[0])
    both = embedded(0.5 * Query.vector(v[0]) + 0.5 * Query.vector(v[1]))[0]
    np.testing.assert_allclose(both[:2], np.array([4, 1]) / np.sqrt(17) * 2.5, rtol=1e-6)


def test_parts_that_cancel_are_refused():
    v = np.arange(1.0, SIZE + 1)
    refused(Query.vector(v) + Query.vector(-v), 'cancel each other: vector \\+ vector')


def test_names():
    query = 0.7 * Query.text('a dog') + 0.25 * Query.vector(np.zeros(3), name='x.npy')
    assert str(query.without('rain', 'wind')) == '0.7 a dog + 0.25 x.npy not rain not wind'
    assert [str(q) for q in as_queries(np.ones((2, 3)))] == ['vector 1', 'vector 2']
    assert Query.text('rain') == Query.text('rain') != Query.text('wind')
    assert Query.text('a').without('rain').without(Query.text('rain')).unwanted == (Query.text('rain'),)


def test_only_queries_add_up():
    with pytest.raises(TypeError):
        Query.text('a') + 'b'
    with pytest.raises(TypeError):
        Query.text('a') * 'b'


# ---- sounds to exclude ----------------------------------------------------------------------------------


def test_what_a_query_shares_with_the_unwanted_goes():
    rain, both = embedded('rain', Query.text('rain and piano').without('piano'))
    assert rain @ both > 0.97
    np.testing.assert_allclose(np.linalg.norm(both), 1, rtol=1e-5)


def test_a_query_that_never_mentioned_it_stays():
    found = embed([Query.text('rain').without('piano', 'a dog'), 'wind'], WORDS, SIZE)
    np.testing.assert_array_equal(found.queries, WORDS.encode_text(['rain', 'wind']))
    np.testing.assert_array_equal(found.unwanted, WORDS.encode_text(['piano', 'a dog']))
    assert found.excluded == ((0, 1), ())


def test_the_unwanted_are_shared_between_queries():
    queries = [Query.text('rain').without('piano'), Query.text('siren').without('dog', 'piano')]
    found = embed(queries, WORDS, SIZE)
    assert found.excluded == ((0,), (1, 0))
    assert len(found.unwanted) == 2


def test_the_unwanted_lose_what_the_query_has():
    found = embed(Query.text('rain').without('rain outdoors'), WORDS, SIZE)
    rain, outdoors = WORDS.encode_text(['rain', 'outdoors'])
    assert found.unwanted[0] @ outdoors > 0.95
    assert abs(found.unwanted[0] @ rain) < 0.1


def test_the_order_of_the_unwanted_does_not_matter():
    query = Query.text('rain and piano and siren')
    a, b = embedded(query.without('piano', 'piano siren', 'dog'), query.without('dog', 'piano siren', 'piano'))
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert a @ embedded('rain')[0] > 0.95


def test_asking_for_the_unwanted_is_refused():
    refused(Query.text('rain').without('the sound of rain'), 'asks for exactly what it excludes: rain not the sound of')
    mixed = Query.text('rain') + Query.text('piano')
    refused(mixed.without('rain', 'piano'), 'exactly what it excludes')


def test_what_all_captions_share_is_no_likeness():
    """CLIP's embeddings fill a narrow cone: unrelated texts have cosines of 0.8 here, and still nothing in common."""

    class Cone:
        name = 'cone'

        def encode_text(self, texts):
            cone = np.sqrt(0.2) * WORDS.encode_text(texts) + np.sqrt(0.8) * np.eye(SIZE)[0]
            return cone.astype(np.float32)

    cone = Cone()
    rain, piano = cone.encode_text(['rain', 'piano'])
    assert rain @ piano > 0.7
    found = embed(Query.text('rain').without('piano'), cone, SIZE)
    np.testing.assert_array_equal(found.queries[0], rain)
    both = embed(Query.text('rain and piano').without('piano'), cone, SIZE).queries[0]
    assert (both - rain) @ (both - rain) < 0.05
    np.testing.assert_allclose(np.linalg.norm(both), np.linalg.norm(cone.encode_text(['rain and piano'])), rtol=1e-5)


def test_vectors_can_exclude_vectors_without_an_encoder():
    a, b = np.eye(4)[:2]
    found = embed(Query.vector(2 * a + b).without(Query.vector(7 * b)), None, 4)
    np.testing.assert_allclose(found.queries, np.sqrt(5) * a[None], atol=1e-6)
