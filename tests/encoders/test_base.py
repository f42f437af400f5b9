"""Tests what all query encoders share."""

import numpy as np
import pytest

from audiosep_jax.encoders.base import (
    AudioTextEncoder,
    QueryEncoder,
    UnavailableEncoder,
    check_texts,
    comparable,
    same_encoder,
)
from audiosep_jax.encoders.clap.encoder import ClapEncoder
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import DownloadError, QueryError


def test_an_unavailable_encoder_has_an_identity_and_raises_when_it_is_used():
    identity = WordsEncoder(64).identity()
    encoder = UnavailableEncoder(identity, DownloadError('offline'))
    assert isinstance(encoder, QueryEncoder)
    assert (encoder.name, encoder.embedding_size, encoder.identity()) == ('words', 64, identity)
    with pytest.raises(DownloadError, match='offline'):
        encoder.encode_text(['a dog'])
    with pytest.raises(DownloadError, match='offline'):
        encoder.encode_audio(np.zeros(9), sample_rate=48000)


def test_the_source_of_the_weights_does_not_distinguish_encoders():
    identity = {'name': 'clap', 'version': 1, 'weights': 'abc'}
    assert same_encoder(identity | {'source': 'here'}, identity | {'source': 'there'})
    assert not same_encoder(identity, identity | {'weights': 'abd'})
    assert comparable(identity | {'source': 'here'}) == identity


def test_only_some_encoders_map_sounds_to_the_space_of_texts():
    assert not isinstance(WordsEncoder(), AudioTextEncoder)
    assert hasattr(ClapEncoder, 'encode_audio')


@pytest.mark.parametrize(
    ('texts', 'says'),
    [
        ('a dog', "expected a list of queries, got the string 'a dog'"),
        ([''], '^empty query: describe'),
        (['a dog', ' '], r'empty query \(number 2 of 2\)'),
        ([None], 'empty query'),
    ],
)
def test_empty_texts_are_refused(texts, says):
    with pytest.raises(QueryError, match=says):
        check_texts(texts)
