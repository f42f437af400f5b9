"""Tests the hashed bag of words."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.encoders.words import WordsEncoder, stem
from audiosep_jax.errors import ConfigError, QueryError


def cosine(a: str, b: str) -> float:
    x, y = WordsEncoder().encode_text([a, b])
    return float(x @ y)


@pytest.mark.parametrize(
    ('a', 'b'),
    [
        ('siren', 'a siren'),
        ('siren', 'the sound of a siren'),
        ('siren', 'Sirens!'),
        ('a recording of acoustic guitar', 'someone is playing acoustic guitar'),
        ('a siren in the foreground', 'siren'),
        ('a dog barking', 'the dog barks'),
        ('a dog’s bark', "dog's barking"),
        ('ﬁre', 'fire'),
    ],
)
def test_phrasings_of_the_same_thing_are_close(a, b):
    assert cosine(a, b) > 0.95


@pytest.mark.parametrize(('a', 'b'), [('siren', 'rain'), ('the sound of a siren', 'the sound of a piano')])
def test_different_things_are_nearly_orthogonal(a, b):
    assert abs(cosine(a, b)) < 0.2


def test_shared_words_are_shared_directions():
    assert 0.5 < cosine('a dog barking', 'a dog') < 0.9


@pytest.mark.parametrize(
    ('forms', 'expected'),
    [
        (('bark', 'barks', 'barking', 'barked'), 'bark'),
        (('drive', 'drives', 'driving'), 'driv'),
        (('run', 'runs', 'running'), 'run'),
        (('cry', 'cries', 'crying'), 'cry'),
        (('call', 'calling', 'called'), 'call'),
        (('church', 'churches'), 'church'),
        (('horse', 'horses'), 'hors'),
    ],
)
def test_all_forms_of_a_word_have_the_same_stem(forms, expected):
    assert {stem(form) for form in forms} == {expected}


@pytest.mark.parametrize('word', ['bus', 'glass', 'string', 'sing', 'bell', 'gas', 'speed', 'is'])
def test_words_that_only_look_inflected_are_kept(word):
    assert stem(word) == word


@given(st.text(min_size=1).filter(str.strip))
def test_every_visible_text_has_a_unit_embedding(text):
    embedding = WordsEncoder().encode_text([text])
    assert embedding.shape == (1, 512)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding), 1, rtol=1e-5)


@given(st.lists(st.sampled_from(['a', 'siren', 'dog', 'the', 'barking', 'rain', 'piano']), min_size=1), st.randoms())
def test_word_order_and_repetition_do_not_matter(words, random):
    shuffled = list(words) + words[:1]
    random.shuffle(shuffled)
    x, y = WordsEncoder().encode_text([' '.join(words), ' '.join(shuffled)])
    np.testing.assert_array_equal(x, y)


def test_queries_of_only_stop_words_differ():
    assert cosine('it is on', 'the and') < 0.5
    assert cosine('sound', 'sounds') == pytest.approx(1)


@pytest.mark.parametrize('text', ['', '   ', '\t\n'])
def test_empty_query_is_an_error(text):
    with pytest.raises(QueryError, match='empty query'):
        WordsEncoder().encode_text([text])


def test_one_string_is_not_a_list_of_letters():
    with pytest.raises(QueryError, match='list'):
        WordsEncoder().encode_text('siren')


def test_no_queries_give_no_rows():
    assert WordsEncoder().encode_text([]).shape == (0, 512)


def test_same_vectors_in_another_process():
    """Python's hash() is salted per process, these are not. The values of version 1 must never change."""
    code = (
        'from audiosep_jax.encoders.words import WordsEncoder\n'
        'print((WordsEncoder().encode_text(["a dog barking"])[0, :6] * 1e4).round().astype(int).tolist())'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    here = (WordsEncoder().encode_text(['a dog barking'])[0, :6] * 1e4).round().astype(int).tolist()
    assert out.strip() == str(here) == '[-32, 606, 606, 32, -32, -606]'


@pytest.mark.parametrize('settings', [{'embedding_size': 12}, {'embedding_size': 0}, {'stop_weight': 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        WordsEncoder(**settings)
