"""Tests the encoder of sentences, with a tiny BERT of random weights, against transformers where it is installed."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.tiny_bert import CONFIG, write_bert

from audiosep_jax.encoders import pretrained
from audiosep_jax.encoders.base import QueryEncoder, same_encoder
from audiosep_jax.encoders.pretrained import kind_of, locate, store
from audiosep_jax.encoders.registry import load_encoder
from audiosep_jax.errors import CheckpointError, DownloadError, QueryError


@pytest.fixture
def folder(tmp_path):
    return write_bert(tmp_path / 'bert')


TEXTS = ['a dog', 'the bark of a dog barking', 'rain', 'A DOG']


def test_embeddings_are_those_of_transformers(folder):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    model = transformers.BertModel(transformers.BertConfig(**CONFIG), add_pooling_layer=False).eval()
    stored = {name: torch.from_numpy(tensor) for name, tensor in load_file(folder / 'model.safetensors').items()}
    missing = model.load_state_dict(stored, strict=False)
    assert not missing.unexpected_keys
    assert all('position_ids' in name for name in missing.missing_keys)
    expected = []
    for ids in ([1, 5, 6, 2], [1, 10, 8, 11, 5, 6, 8, 9, 2], [1, 7, 2], [1, 5, 6, 2]):
        with torch.no_grad():
            mean = model(torch.tensor([ids]))[0][0].mean(0).numpy()
        expected.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(load_encoder(folder).encode_text(TEXTS), expected, atol=2e-6)


def test_other_texts_and_their_lengths_do_not_change_an_embedding(folder):
    encoder = load_encoder(folder)
    together = encoder.encode_text([*TEXTS, 'dog ' * 40, 'dog ' * 100])
    assert (together.shape, together.dtype) == ((6, 8), np.float32)
    for text, embedding in zip(TEXTS, together, strict=False):
        np.testing.assert_allclose(encoder.encode_text([text])[0], embedding, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(together[0], together[3])
    # A text is cut after as many tokens as there are positions, so the end of a longer one does not matter.
    np.testing.assert_allclose(encoder.encode_text(['dog ' * 80]), together[5:], atol=1e-6)
    assert encoder.encode_text([]).shape == (0, 8)
    with pytest.raises(QueryError, match='empty query'):
        encoder.encode_text(['a', ' '])


def test_the_identity_finds_its_weights_again(folder, tmp_path):
    encoder = load_encoder(folder)
    assert isinstance(encoder, QueryEncoder)
    identity = json.loads(json.dumps(encoder.identity()))
    assert (identity['name'], identity['embedding_size'], identity['source']) == ('minilm', 8, str(folder))
    store(folder, tmp_path / 'copy')
    assert kind_of(tmp_path / 'copy') == 'minilm'
    elsewhere = load_encoder({**identity, 'source': 'nowhere/at all'}, folders=[tmp_path / 'copy'])
    assert same_encoder(elsewhere.identity(), identity)
    np.testing.assert_array_equal(elsewhere.encode_text(TEXTS), encoder.encode_text(TEXTS))
    tensors = load_file(folder / 'model.safetensors')
    tensors['encoder.layer.1.output.dense.bias'] += 1
    save_file(tensors, tmp_path / 'copy' / 'model.safetensors')
    assert not same_encoder(load_encoder(tmp_path / 'copy').identity(), identity)


def test_an_installed_package_saves_the_download(folder, tmp_path, monkeypatch, offline):
    with pytest.raises(DownloadError):
        locate('minilm')
    package = tmp_path / 'site' / 'carries_minilm'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text('raise RuntimeError("must not be imported")')
    store(folder, package / 'model')
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(pretrained._PACKAGES, 'minilm', ('carries_minilm', 'model'))
    assert locate('minilm') == package / 'model'
    assert load_encoder('minilm').identity()['source'] == 'minilm'


@pytest.mark.parametrize(
    ('damage', 'says'),
    [
        (lambda folder: (folder / 'config.json').unlink(), 'no CLAP or CLIP weights'),
        (lambda folder: (folder / 'config.json').write_text(json.dumps({'model_type': 'bert'})), 'not the sizes'),
        (lambda folder: rewrite(folder, hidden_act='relu'), 'another activation or pooling'),
        (lambda folder: rewrite(folder, num_hidden_layers=3), r'encoder.layer.2.*expected .* got none'),
        (lambda folder: rewrite(folder, max_position_embeddings=32), r'position_embeddings.*got \[64, 8\]'),
        (lambda folder: (folder / 'tokenizer.json').write_text('{}'), 'damaged or not a tokenizer'),
    ],
)
def test_damaged_and_other_folders_are_refused_in_one_line(folder, damage, says):
    damage(folder)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_encoder(folder).encode_text(['a dog'])
    assert '\n' not in str(caught.value)


def rewrite(folder, **settings):
    (folder / 'config.json').write_text(json.dumps({**CONFIG, **settings}))
