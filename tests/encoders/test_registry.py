"""Tests that encoders are built from names and identities."""

import numpy as np
import pytest

from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.words import WordsEncoder
from audiosep_jax.errors import ConfigError, EncoderMismatchError


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
