"""Text encoders in ONNX Runtime against themselves in JAX, and those that have no graph."""

import json

import numpy as np
import pytest
from support import tiny_bert, tiny_clap
from support.onnx_runs import run, session_of
from tokenizers import Tokenizer

from audiosep_jax.encoders import wordllama
from audiosep_jax.encoders.base import UnavailableEncoder
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.encoders.words import words_of
from audiosep_jax.errors import CheckpointError
from audiosep_jax.export.text import text_graph, why_not_exported


@pytest.fixture(params=['clap', 'minilm'])
def encoder(request, tmp_path):
    if request.param == 'clap':
        return load_encoder(tiny_clap.write_laion(tmp_path))
    return load_encoder(tiny_bert.write_bert(tmp_path / 'bert'))


def test_embeddings_are_those_of_the_encoder_for_any_number_of_texts_and_tokens(encoder):
    text = text_graph(encoder)
    session, tokenizer = session_of(text.graph), Tokenizer.from_str(text.tokenizer)
    tokenizer.enable_padding(pad_id=int(text.metadata['padding_id']))
    tokenizer.enable_truncation(int(text.metadata['max_tokens']))
    for texts in (['dog', 'rain of a dog, barking'], ['a dog ' * 30]):
        encoded = tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(e, name) for e in encoded]) for name in ('ids', 'attention_mask'))
        (embeddings,) = run(session, ids=ids, mask=mask)
        np.testing.assert_allclose(embeddings, encoder.encode_text(texts), atol=1e-5)


@pytest.mark.skipif(not wordllama.is_installed(), reason='the package wordllama is not installed')
def test_word_vectors_are_summed_with_stop_words_damped():
    encoder = load_encoder('wordllama')
    text = text_graph(encoder)
    tokenizer, stop_words = Tokenizer.from_str(text.tokenizer), json.loads(text.metadata['stop_words'])
    query = 'The sound of a hound baying'
    ids, weights = [], []
    for word in set(words_of(query)):
        pieces = tokenizer.encode(word, add_special_tokens=False).ids
        ids += pieces
        weights += [float(text.metadata['stop_weight']) if word in stop_words else 1.0] * len(pieces)
    session = session_of(text.graph)
    (embedding,) = run(session, ids=np.array([[*ids, 0]]), weights=np.array([[*weights, 0]], np.float32))
    np.testing.assert_allclose(embedding, encoder.encode_text([query]), atol=1e-6)


def test_what_has_no_graph_says_why():
    missing = UnavailableEncoder({'name': 'clap', 'embedding_size': 4}, CheckpointError('gone'))
    assert why_not_exported(None) == 'the checkpoint has no query encoder'
    assert 'hashes of the letters' in why_not_exported(load_encoder('words'))
    assert why_not_exported(missing) == 'the weights of its query encoder clap are missing'
