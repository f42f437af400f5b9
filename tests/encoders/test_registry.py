import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.words import WordsEncoder, stem
from audiosep_jax.errors import ConfigError, EncoderMismatchError, QueryError


def cosine(a: str, b: str) -> float:
    x, y = load_encoder('words').encode_text([a, b])
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
def test_phrasings_of_one_thing_are_close(a, b):
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
def test_stem_unites_the_forms_of_a_word(forms, expected):
    assert {stem(form) for form in forms} == {expected}


@pytest.mark.parametrize('word', ['bus', 'glass', 'string', 'sing', 'bell', 'gas', 'speed', 'is'])
def test_stem_leaves_what_only_looks_like_an_ending(word):
    assert stem(word) == word


@given(st.text(min_size=1).filter(str.strip))
def test_every_visible_text_has_a_unit_embedding(text):
    embedding = load_encoder('words').encode_text([text])
    assert embedding.shape == (1, 512)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding), 1, rtol=1e-5)


@given(st.lists(st.sampled_from(['a', 'siren', 'dog', 'the', 'barking', 'rain', 'piano']), min_size=1), st.randoms())
def test_word_order_and_repetition_do_not_matter(words, random):
    shuffled = list(words) + words[:1]
    random.shuffle(shuffled)
    x, y = load_encoder('words').encode_text([' '.join(words), ' '.join(shuffled)])
    np.testing.assert_array_equal(x, y)


def test_stop_words_alone_have_an_embedding_of_their_own():
    assert cosine('it is on', 'the and') < 0.5
    assert cosine('sound', 'sounds') == pytest.approx(1)


@pytest.mark.parametrize('text', ['', '   ', '\t\n'])
def test_empty_query_is_an_error(text):
    with pytest.raises(QueryError, match='empty query'):
        load_encoder('words').encode_text([text])


def test_one_string_is_not_a_list_of_letters():
    with pytest.raises(QueryError, match='list'):
        load_encoder('words').encode_text('siren')


def test_no_queries_give_no_rows():
    assert load_encoder('words').encode_text([]).shape == (0, 512)


def test_same_vectors_in_another_process():
    """Python's own hash() is salted per process; these must not be. The values are those of version 1, for ever."""
    code = (
        'from audiosep_jax.encoders.registry import load_encoder\n'
        'print((load_encoder("words").encode_text(["a dog barking"])[0, :6] * 1e4).round().astype(int).tolist())'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    here = (load_encoder('words').encode_text(['a dog barking'])[0, :6] * 1e4).round().astype(int).tolist()
    assert out.strip() == str(here) == '[-32, 606, 606, 32, -32, -606]'


def test_identity_rebuilds_the_encoder():
    small = WordsEncoder(embedding_size=64, stop_weight=0.2)
    again = load_encoder(small.identity())
    assert again.identity() == small.identity()
    np.testing.assert_array_equal(again.encode_text(['a siren']), small.encode_text(['a siren']))
    assert isinstance(again, QueryEncoder)


def test_unknown_encoder_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'words'"):
        load_encoder('wrods')


def test_identity_of_another_version_is_refused():
    identity = load_encoder('words').identity()
    with pytest.raises(EncoderMismatchError, match='version 99'):
        load_encoder({**identity, 'version': 99})
    with pytest.raises(EncoderMismatchError, match='settings'):
        load_encoder({**identity, 'temperature': 1})


@pytest.mark.parametrize('settings', [{'embedding_size': 12}, {'embedding_size': 0}, {'stop_weight': 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        WordsEncoder(**settings)
