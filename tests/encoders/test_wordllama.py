"""Tests the encoder of static word vectors, with small stand-ins for the package's files and with the package."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers

from audiosep_jax.encoders import wordllama
from audiosep_jax.encoders.base import QueryEncoder
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.wordllama import WordLlamaEncoder
from audiosep_jax.errors import CheckpointError, ConfigError, EncoderMismatchError, QueryError

needs_package = pytest.mark.skipif(not wordllama.is_installed(), reason='the package wordllama is not installed')

_PIECES = ('<unk>', '▁', 'd', 'o', 'g', 'a', 'do', 'dog', '▁dog', '▁a')
_MERGES = (('d', 'o'), ('do', 'g'), ('▁', 'dog'), ('▁', 'a'))


@pytest.fixture
def folder(tmp_path):
    """A folder like the package's, with a few word pieces of random vectors."""
    vectors = np.random.default_rng(0).standard_normal((len(_PIECES), 256)).astype(np.float16)
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'tokenizers').mkdir()
    save_file({'embedding.weight': vectors}, tmp_path / 'weights' / 'l2_supercat_256.safetensors')
    vocabulary = {piece: number for number, piece in enumerate(_PIECES)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(_MERGES), unk_token='<unk>', fuse_unk=True))
    tokenizer.normalizer = normalizers.Prepend('▁')
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(tmp_path / 'tokenizers' / 'l2_supercat_tokenizer_config.json'))
    return tmp_path


def test_an_embedding_is_the_sum_of_the_vectors_of_its_word_pieces_with_stop_words_damped(folder):
    vectors = load_vectors(folder)
    encoder = WordLlamaEncoder(folder=folder)
    # 'a' and 'do' are stop words, and 'do' is in two pieces.
    dog, a, do = vectors[8], vectors[9], vectors[1] + vectors[6]
    expected = np.stack([dog, dog + 0.1 * a, dog + 0.1 * do])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = encoder.encode_text(['dog', 'A DOG, a dog', 'do dog'])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert encoder.encode_text([]).shape == (0, 256)


def load_vectors(folder):
    from safetensors.numpy import load_file

    return load_file(folder / 'weights' / 'l2_supercat_256.safetensors')['embedding.weight'].astype(np.float64)


def test_other_vectors_and_another_tokenizer_are_another_encoder(folder):
    first = WordLlamaEncoder(folder=folder).identity()
    assert first == WordLlamaEncoder(folder=folder).identity()
    assert first['embedding_size'] == 256
    path = folder / 'tokenizers' / 'l2_supercat_tokenizer_config.json'
    settings = json.loads(path.read_text('utf-8'))
    settings['normalizer']['prepend'] = 'd'
    path.write_text(json.dumps(settings), 'utf-8')
    second = WordLlamaEncoder(folder=folder).identity()
    vectors = load_vectors(folder)
    vectors[0, 0] += 1
    save_file({'embedding.weight': vectors}, folder / 'weights' / 'l2_supercat_256.safetensors')
    third = WordLlamaEncoder(folder=folder).identity()
    assert len({one['weights'] for one in (first, second, third)}) == 3


def test_a_missing_package_is_an_error_with_its_remedy(monkeypatch):
    monkeypatch.setattr(wordllama, 'PACKAGE', 'no_such_package')
    assert not wordllama.is_installed()
    with pytest.raises(ConfigError, match='not installed: pip install'):
        load_encoder('wordllama')


def test_a_folder_of_that_name_is_not_the_package(monkeypatch, tmp_path):
    (tmp_path / 'a_folder_only').mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(wordllama, 'PACKAGE', 'a_folder_only')
    assert not wordllama.is_installed()


@pytest.mark.parametrize(
    'damage',
    [
        lambda folder: (folder / 'weights' / 'l2_supercat_256.safetensors').unlink(),
        lambda folder: (folder / 'weights' / 'l2_supercat_256.safetensors').write_bytes(b'short'),
        lambda folder: save_file({'other': np.zeros(3)}, folder / 'weights' / 'l2_supercat_256.safetensors'),
        lambda folder: (folder / 'tokenizers' / 'l2_supercat_tokenizer_config.json').unlink(),
        lambda folder: (folder / 'tokenizers' / 'l2_supercat_tokenizer_config.json').write_text('{}'),
    ],
    ids=['no vectors', 'vectors cut short', 'other tensors', 'no tokenizer', 'another file'],
)
def test_damaged_files_are_named_with_the_remedy(folder, damage):
    damage(folder)
    with pytest.raises(CheckpointError, match=r'l2_supercat.*pip install --force-reinstall') as caught:
        WordLlamaEncoder(folder=folder)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('settings', [{'embedding_size': 512}, {'stop_weight': 0}, {'stop_weight': 1.5}])
def test_bad_settings_are_refused(folder, settings):
    with pytest.raises(ConfigError):
        WordLlamaEncoder(folder=folder, **settings)


@pytest.mark.parametrize('text', ['', '   ', '\t\n'])
def test_empty_query_is_an_error(folder, text):
    with pytest.raises(QueryError, match='empty query'):
        WordLlamaEncoder(folder=folder).encode_text([text])


# ---- With the package ------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def encoder():
    return load_encoder('wordllama')


@needs_package
@pytest.mark.parametrize(
    ('query', 'caption', 'others'),
    [
        ('a hound', 'a dog barking', ('a piano', 'rain falling', 'a car engine')),
        ('a fiddle', 'violin music', ('a snare drum', 'a dog barking', 'wind blowing')),
        ('an automobile', 'a car engine', ('a cello', 'a horse neighing', 'thunder rumbling')),
        ('THE SOUND OF A HELICOPTER IN THE BACKGROUND', 'helicopters', ('a train passing', 'a jet plane flying')),
    ],
)
def test_words_that_were_in_no_caption_are_closest_to_their_meaning(encoder, query, caption, others):
    found, own, *rest = encoder.encode_text([query, caption, *others])
    assert found @ own > max(found @ other for other in rest) + 0.05


@needs_package
def test_the_values_of_version_1_never_change(encoder):
    row = encoder.encode_text(['a dog barking'])[0]
    assert (row[:6] * 1e4).round().astype(int).tolist() == [-1080, 8, -122, 1083, 32, 959]
    assert encoder.identity() == {
        'name': 'wordllama',
        'version': 1,
        'embedding_size': 256,
        'stop_weight': 0.1,
        'weights': 'b2f668a46a9ad0ee',
    }


@needs_package
def test_the_identity_rebuilds_the_encoder_and_other_weights_are_refused(encoder):
    identity = encoder.identity()
    again = load_encoder(identity)
    assert isinstance(again, QueryEncoder)
    assert again.identity() == identity
    with pytest.raises(EncoderMismatchError, match='not those that were recorded'):
        load_encoder({**identity, 'weights': '0' * 16})


@needs_package
@given(st.text(min_size=1).filter(str.strip))
def test_every_visible_text_has_a_unit_embedding(encoder, text):
    embedding = encoder.encode_text([text])
    assert embedding.shape == (1, 256)
    np.testing.assert_allclose(np.linalg.norm(embedding), 1, rtol=1e-5)


@needs_package
def test_word_order_and_repetition_do_not_matter(encoder):
    x, y = encoder.encode_text(['a man bites a dog', 'dog a bites man man'])
    np.testing.assert_array_equal(x, y)
