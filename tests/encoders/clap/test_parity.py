"""Compares CLAP with transformers' `ClapModel` of random weights, in folders that it stores, if torch is installed."""

import dataclasses
import json

import numpy as np
import pytest
from support.tiny_clap import write_tokenizer

from audiosep_jax.encoders.clap.encoder import ClapEncoder

pytestmark = pytest.mark.large

RATE = 48000
SIZES = {
    # A small model with unusual numbers of stages and heads.
    'tiny': (
        {'hidden_size': 32, 'num_attention_heads': 4, 'num_hidden_layers': 2, 'intermediate_size': 40},
        {'patch_embeds_hidden_size': 16, 'depths': [2, 3, 1], 'num_attention_heads': [2, 4, 4], 'hidden_size': 64},
        24,
    ),
    # laion/clap-htsat-unfused with a smaller vocabulary.
    'htsat-tiny': ({}, {}, 512),
    # laion/larger_clap_general with all layers at a quarter of the width.
    'htsat-base': (
        {'hidden_size': 192, 'num_attention_heads': 12, 'intermediate_size': 768},
        {
            'patch_embeds_hidden_size': 32,
            'depths': [2, 2, 12, 2],
            'num_attention_heads': [4, 8, 16, 32],
            'hidden_size': 256,
        },
        128,
    ),
}


def model_of(torch, transformers, size: str, **text_settings):
    text, audio, projection = SIZES[size]
    config = transformers.ClapConfig(
        text_config={'vocab_size': 400, **text, **text_settings}, audio_config=audio, projection_dim=projection
    )
    model = transformers.ClapModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith('running_var'):
            drawn = 100 + 10 * drawn
        elif name.endswith('running_mean'):
            drawn = 5 * drawn - 35
        elif value.ndim > 1:
            drawn = drawn * (0.3 if 'embeddings' in name else 1.2 / value[0].numel() ** 0.5)
        else:
            drawn = 0.1 * drawn + (1 if 'norm' in name.lower() and name.endswith('weight') else 0)
        value.copy_(drawn)
    return model


@pytest.fixture(scope='module')
def parity():
    """(torch, transformers), with gradients off."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    with torch.no_grad():
        yield torch, transformers


@pytest.fixture(scope='module', params=list(SIZES))
def pair(request, parity, tmp_path_factory):
    """(transformers' model, ours of the folder that it stores)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = model_of(*parity, request.param)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model, ClapEncoder.open(folder)


def text_embeddings(torch, model, ids, mask) -> np.ndarray:
    return model.get_text_features(torch.tensor(ids), attention_mask=torch.tensor(mask)).pooler_output.numpy()


@pytest.mark.parametrize('length', [5, 40])
def test_text(parity, pair, length):
    torch, _ = parity
    model, encoder = pair
    rng = np.random.default_rng(length)
    lengths = [length, 3, 4]
    ids = np.full((3, length), 1)
    for row, count in zip(ids, lengths, strict=True):
        row[:count] = [0, *rng.integers(5, 400, count - 2), 2]
    mask = (ids != 1).astype(int)
    expected = text_embeddings(torch, model, ids, mask)
    np.testing.assert_allclose(encoder.encode_token_ids(ids, mask), expected, atol=1e-6)
    spread = np.abs(expected - expected[0]).max()
    assert spread > 1e-2  # otherwise any query would agree


def test_audio(parity, pair):
    """Uses transformers' feature extractor, at the published 50 Hz and at its default of 0 Hz."""
    _, transformers = parity
    model, encoder = pair
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(np.arange(RATE * 10) / 30)
    sounds = [0.1 * rng.standard_normal(RATE * 3), tone + 0.01 * rng.standard_normal(RATE * 10)]
    outputs = []
    for lowest in (50, 0):
        extractor = transformers.ClapFeatureExtractor(frequency_min=lowest, truncation='rand_trunc')
        features = extractor(sounds, sampling_rate=RATE, return_tensors='pt')['input_features']
        expected = model.get_audio_features(features.float()).pooler_output.numpy()
        audio = dataclasses.replace(encoder.audio, lowest=float(lowest))
        ours = ClapEncoder(encoder._tensors, encoder.text, audio, encoder._folder)
        np.testing.assert_allclose(ours.encode_audio(sounds, sample_rate=RATE), expected, atol=2e-6)
        outputs.append(expected)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4
    assert np.abs(outputs[0][0] - outputs[0][1]).max() > 1e-3


def test_the_feature_extractor_that_is_stored_beside_the_weights(parity, pair, tmp_path):
    _, transformers = parity
    model, encoder = pair
    model.config.save_pretrained(tmp_path)
    extractor = transformers.ClapFeatureExtractor(frequency_min=60, frequency_max=12000, truncation='rand_trunc')
    extractor.save_pretrained(tmp_path)
    (tmp_path / 'model.safetensors').symlink_to(encoder._folder / 'model.safetensors')
    audio = ClapEncoder.open(tmp_path).audio
    assert (audio.lowest, audio.highest) == (60, 12000)
    assert dataclasses.replace(audio, lowest=50.0, highest=14000.0) == encoder.audio


def test_layer_norm_epsilon_is_the_configurations(parity, tmp_path):
    """transformers uses the value of config.json as well, here one that makes a difference."""
    torch, transformers = parity
    model = model_of(torch, transformers, 'tiny', layer_norm_eps=0.1)
    model.save_pretrained(tmp_path)
    ids = np.array([[0, 20, 30, 2]])
    ours = ClapEncoder.open(tmp_path).encode_token_ids(ids)
    np.testing.assert_allclose(ours, text_embeddings(torch, model, ids, np.ones_like(ids)), atol=1e-6)
    config = json.loads((tmp_path / 'config.json').read_text())
    config['text_config'].pop('layer_norm_eps')
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert np.abs(ClapEncoder.open(tmp_path).encode_token_ids(ids) - ours).max() > 1e-3


def test_ids_of_an_encoder_are_transformers_own(parity, pair):
    """Sentences are embedded with the tokenizer in the folder."""
    torch, transformers = parity
    model, encoder = pair
    tokenizer = transformers.RobertaTokenizerFast.from_pretrained(str(encoder._folder))
    texts = ['a dog barks', 'rain', 'the bell of a cat 🐈']
    batch = tokenizer(texts, padding='max_length', max_length=64, truncation=True)
    expected = text_embeddings(torch, model, batch['input_ids'], batch['attention_mask'])
    np.testing.assert_allclose(encoder.encode_text(texts), expected, atol=1e-6)
